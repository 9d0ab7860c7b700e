"""AOTInductor packages, called through the C entry of their shared library.

torch's own loader holds the interpreter for as long as a model computes; a call through ctypes gives it free, so that
instances can be threads.  The C entry is AOTInductor's stable one (`torch/csrc/inductor/aoti_runtime/interface.h`).
What needs more than it, operators that are called back by name and weights outside of the library, goes through torch's
loader, with a warning.
"""

import _ctypes
import ctypes
import json
import os
import platform
import shutil
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.utils import _pytree as pytree

FOLDER = "data/aotinductor/"
DEFAULT_MODEL = "model"

CHECK_VARIABLE = "AOTI_RUNTIME_CHECK_INPUTS"
_first_run = threading.Lock()

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class PackageError(ValueError):
    """A package that cannot run here; the message says why and what to do."""


class Package:
    """What a `.pt2` file holds for one AOTInductor model: names of its files and what they were built for."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            PackageError: it holds several models, or none for this machine.
        """
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self._files = _model_files(archive.namelist())
            self.library = next((name for name in self._files if name.endswith(".so")), "")
            if not self.library:
                raise PackageError(
                    "the package holds no shared library; write it with torch._inductor.aoti_compile_and_package"
                )
            metadata = self.library.removesuffix(".so") + "_metadata.json"
            self.metadata = json.loads(archive.read(metadata)) if metadata in self._files else {}
        if fault := unfit(self.metadata, platform.machine(), torch.cpu.get_capabilities()):
            raise PackageError(fault)

    @property
    def device(self) -> str:
        """Which kind of device it was compiled for, such as "cpu" or "cuda"."""
        return str(self.metadata.get("AOTI_DEVICE_KEY", "cpu"))

    @property
    def is_self_contained(self) -> bool:
        """Whether the shared library is all that it takes: no operators called by name, no weights beside it."""
        known = (".so", ".cpp", "_metadata.json", ".cubin", ".o", ".h")
        return all(name.endswith(known) for name in self._files) and sum(n.endswith(".so") for n in self._files) == 1

    def extract(self, folder: Path) -> Path:
        """Put the library and its kernels into a folder; the library's path."""
        with zipfile.ZipFile(self.path) as archive:
            for name in self._files:
                if name.endswith((".so", ".cubin")):
                    with archive.open(name) as source, (folder / PurePosixPath(name).name).open("wb") as target:
                        shutil.copyfileobj(source, target)
        return folder / PurePosixPath(self.library).name


def _model_files(names: Sequence[str]) -> list[str]:
    """The files of the one model, or of the one called "model"."""
    models: dict[str, list[str]] = {}
    for name in names:
        _, found, rest = name.partition("/" + FOLDER)
        if found and "/" in rest:
            models.setdefault(rest.partition("/")[0], []).append(name)
    if DEFAULT_MODEL in models:
        return models[DEFAULT_MODEL]
    if len(models) != 1:
        raise PackageError(f"the package holds {len(models)} models: {', '.join(sorted(models))}; package one of them")
    return next(iter(models.values()))


def unfit(metadata: Mapping[str, Any], machine: str, capabilities: Mapping[str, Any]) -> str:
    """Why a package with this metadata cannot run on this machine; "" if it can.

    A library with instructions that the processor lacks would end the process.
    """
    remedy = "compile the package on a machine like this one (tandem export --format pt2)"
    built_for = metadata.get("AOTI_MACHINE", machine)
    if built_for != machine:
        return f"the package is compiled for {built_for}, this machine is {machine}; {remedy}"
    wanted = str(metadata.get("AOTI_CPU_ISA", "")).lower().split()
    # what torch's compiler calls avx512 is its foundation, avx512_f, among others
    lacking = [
        name
        for name in wanted
        if name.startswith(("avx", "amx")) and not capabilities.get("avx512_f" if name == "avx512" else name)
    ]
    if lacking:
        return f"the package uses {', '.join(lacking)}, which this processor lacks; {remedy}"
    return ""


class Library:
    """A loaded library: a function of flat tensors.  As many threads may call it at a time as it has `runners`."""

    def __init__(self, package: Package, device: str, runners: int) -> None:
        """
        Raises:
            PackageError: the library cannot be loaded.
        """
        with tempfile.TemporaryDirectory(prefix="tandem-aoti-") as folder:
            try:
                self._library = ctypes.CDLL(str(package.extract(Path(folder))))
            except OSError as error:
                reason = str(error).rpartition(": ")[2]
                raise PackageError(f"its shared library cannot be loaded: {reason}") from None
            self._run = self._library.AOTInductorModelContainerRun
            pointer, size = ctypes.c_void_p, ctypes.c_size_t
            self._run.argtypes = [pointer, pointer, size, pointer, size, pointer, pointer]
            self._handle = ctypes.c_void_p()
            self._check(
                self._library.AOTInductorModelContainerCreateWithDevice(
                    ctypes.byref(self._handle), ctypes.c_size_t(runners), device.encode(), folder.encode()
                )
            )
        weakref.finalize(self, _release, self._library, self._handle)
        self.input_count = self._count("AOTInductorModelContainerGetNumInputs")
        self._output_count = self._count("AOTInductorModelContainerGetNumOutputs")

    def call_spec(self) -> tuple[str, str]:
        """How arguments and results are nested, as torch's pytree writes it."""
        specs = ctypes.c_char_p(), ctypes.c_char_p()
        self._check(
            self._library.AOTInductorModelContainerGetCallSpec(self._handle, *(ctypes.byref(spec) for spec in specs))
        )
        return (specs[0].value or b"").decode(), (specs[1].value or b"").decode()

    def __call__(self, tensors: Sequence[torch.Tensor], stream: int | None = None) -> list[torch.Tensor]:
        """The flat results.  Blocks without the interpreter.

        Raises:
            RuntimeError: the library refuses; it has written why to standard error.
        """
        # the library takes over the handles that it is given, and gives the ones that it returns away
        given = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
        handles: Any = (ctypes.c_void_p * len(given))(*(_capsule_pointer(handle, None) for handle in given))
        results: Any = (ctypes.c_void_p * self._output_count)()
        if self._run(self._handle, handles, len(given), results, self._output_count, stream, None):
            raise RuntimeError(
                "the compiled function refuses its inputs or failed (their shapes must be those that it was compiled "
                "for); its words are on standard error"
            )
        return torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(
            [_capsule(result, None, None) for result in results]
        )

    def _count(self, function: str) -> int:
        count = ctypes.c_size_t()
        self._check(getattr(self._library, function)(self._handle, ctypes.byref(count)))
        return count.value

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise PackageError("its shared library refuses to start; its words are on standard error")


@contextmanager
def checking(*, wanted: bool) -> Iterator[None]:
    """Around a library's first call: whether it checks the shapes of what it is given, then and ever after.

    It asks the environment once.  Unchecked it reads past the end of a tensor that is too short; checked it refuses a
    batch of one, which it could compute (its lower bound is 2, torch.export's way of saying "not a constant").  So a
    copy is checked when a model loads, and another one serves.
    """
    with _first_run:
        before = os.environ.get(CHECK_VARIABLE)
        if wanted:
            os.environ[CHECK_VARIABLE] = "1"
        try:
            yield
        finally:
            if wanted and before is None:
                del os.environ[CHECK_VARIABLE]
            elif wanted and before is not None:
                os.environ[CHECK_VARIABLE] = before


def _release(library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
    library.AOTInductorModelContainerDelete(handle)
    _ctypes.dlclose(library._handle)


def leaf_names(spec: Any, root: Sequence[str]) -> list[str]:
    """How AOTInductor's users spell each leaf, such as "ARGS[0]" or "KWARGS[mask]".

    Args:
        root: names for the entries of the outermost tuple.
    """
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    names = []
    for path in paths:
        keys = [getattr(key, "idx", getattr(key, "key", getattr(key, "name", ""))) for key in path]
        names.append(root[int(keys[0])] + "".join(f"[{key}]" for key in keys[1:]))
    return names
