"""torch.compile where it can work, eager execution where it cannot: the answers are the same.

Looks for a compiler and a writable cache before, and falls back at the first execution that fails only when compiled.
Knows no model.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from torchscript_predictor.backends.failure import reason

logger = logging.getLogger(__name__)

Function = Callable[..., Any]
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


class Compiled:
    """A compiled function that becomes the eager one if compiling turns out to fail."""

    def __init__(self, model_name: str, eager: Function, compiled: Function) -> None:
        self._model_name = model_name
        self._eager = eager
        self._call = compiled

    def __call__(self, *arguments: Any) -> Any:
        """What the eager function gives.

        Raises:
            Exception: what the eager function raises.
        """
        call = self._call
        if call is self._eager:
            return call(*arguments)
        try:
            return call(*arguments)
        except Exception as error:
            # Was it the request, which fails either way, or the compiler?
            result = self._eager(*arguments)
            self._call = self._eager
            logger.warning(
                "model %s: executed eagerly from now on, torch.compile failed: %s", self._model_name, reason(error)
            )
            return result


def compiled(
    model_name: str, function: Function, options: Mapping[str, Any], on_cpu: bool
) -> tuple[Function, tuple[str, ...]]:
    """The function, compiled if that is wanted and possible, and what to tell the operator.

    Args:
        options: keyword arguments of torch.compile.
    """
    if options.get("disable"):
        return function, ()
    by_inductor = options.get("backend", "inductor") == "inductor"
    obstacle = find_obstacle(on_cpu) if by_inductor else ""
    if obstacle:
        return function, (f"model '{model_name}': executed eagerly, without torch.compile: {obstacle}",)
    try:
        options = _for_inductor(options) if by_inductor else options
        return Compiled(model_name, function, torch.compile(function, **options)), ()
    except Exception as error:  # a backend or an option that torch does not know
        raise ValueError(f"TORCH_COMPILE_OPTIONAL_PARAMETERS are refused by torch.compile: {reason(error)}") from None


def find_obstacle(on_cpu: bool) -> str:
    """Why torch's own compiler cannot work here; "" if nothing speaks against it."""
    try:
        folder = Path(os.environ.get(CACHE_VARIABLE) or tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return f"its cache folder is not writable; set {CACHE_VARIABLE} to one that is"
    # no pool of compiler processes that would stay for as long as the server; read at the first import
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        from torch._inductor import cpp_builder
    except Exception as error:  # it looks for a user's name and a home while it is imported
        return reason(error)
    if on_cpu:
        try:
            cpp_builder.get_cpp_compiler()
        except Exception:  # torch has several names for it
            return "no C++ compiler is installed; install g++, or set CXX"
    return ""


def _for_inductor(options: Mapping[str, Any]) -> dict[str, Any]:
    """With what suits a server, unless the options say otherwise.

    C++ around the kernels gives the interpreter free while they run, Python around them would hold it; and kernels
    ask for the calling thread's number of threads, instead of keeping that of the one that compiled them.
    """
    from torch._inductor import list_mode_options

    chosen = dict(options)
    mode = chosen.pop("mode", None) or "default"
    given = chosen.pop("options", None) or {}
    suitable = {"cpp_wrapper": True, "cpp.dynamic_threads": True}
    return {**chosen, "options": {**suitable, **list_mode_options(mode), **given}}
