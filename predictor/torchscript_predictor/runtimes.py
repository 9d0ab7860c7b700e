"""Which of the three ways of running PyTorch a configuration asks for.

A pure decision over the fields `backend`, `platform`, `runtime`, `default_model_filename` and the names of the
files that are there (Triton's core, `AutoCompleteBackendFields`).  Knows no torch and no file system.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath

LIBTORCH = ("pytorch_libtorch", "libtorch")
AOTI = "torch_aoti"

SUPPORTED = (
    'what is served here is backend: "pytorch" with platform: "pytorch_libtorch" (<version>/model.pt) or "torch_aoti" '
    '(<version>/model.pt2), and backend: "python" with platform: "pytorch" or runtime: "model.py" (<version>/model.py)'
)


class Runtime(Enum):
    """What executes a model; the value is the file that it runs by default."""

    TORCHSCRIPT = "model.pt"
    PT2 = "model.pt2"
    """AOTInductor packages and saved ExportedPrograms."""
    PYTHON = "model.py"
    """One torch.nn.Module in a Python file, with or without a state dict."""


@dataclass(frozen=True)
class UnservedError(ValueError):
    """No runtime fits; `field` is the one to look at."""

    field: str
    message: str


def choose_runtime(
    backend: str, platform: str, runtime: str, filename: str = "", files: Collection[str] = ()
) -> Runtime:
    """The runtime of a model.

    Args:
        filename: `default_model_filename`, "" if it is not set.
        files: names of the files of a version, for a configuration that does not say.

    Raises:
        UnservedError: the fields ask for something that is not served.
    """
    if backend == "python":
        if platform == "pytorch":
            return Runtime.PYTHON
        raise UnservedError(
            "backend",
            f"unexpected 'platform' and 'backend' pair, got: {platform!r}, {backend!r}; a model.py with a "
            'TritonPythonModel is not served: give model.py one torch.nn.Module and set platform: "pytorch"',
        )
    if backend not in ("", "pytorch") or platform not in ("", AOTI, *LIBTORCH):
        raise UnservedError(
            "backend" if backend not in ("", "pytorch") else "platform",
            f"unexpected 'platform' and 'backend' pair, got: {platform!r}, {backend!r}; {SUPPORTED}",
        )
    if runtime == Runtime.PYTHON.value:
        return Runtime.PYTHON
    if runtime.endswith(".py"):
        raise UnservedError("runtime", f'runtime {runtime!r} is not served; the Python runtime is runtime: "model.py"')
    if platform == AOTI:
        return Runtime.PT2
    if platform in LIBTORCH:
        return Runtime.TORCHSCRIPT
    return _by_file(filename, files)


def _by_file(filename: str, files: Collection[str]) -> Runtime:
    for runtime in Runtime:
        if filename and PurePosixPath(filename).suffix == PurePosixPath(runtime.value).suffix:
            return runtime
    if filename:
        return Runtime.TORCHSCRIPT
    # model.pt beside model.py is TorchScript, as in Triton, unless the configuration asks for the Python runtime
    return next((runtime for runtime in Runtime if runtime.value in files), Runtime.TORCHSCRIPT)
