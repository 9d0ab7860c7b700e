"""torch's settings of which a process has one: the first model that asks for a value gets it.

Some of Triton's parameters of a model are such settings underneath.  Nothing here pretends otherwise: whoever sets one
is told that it holds for every model, whoever comes later with another value is told who was first.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

_SETTERS: Mapping[str, Callable[[Any], Any]] = {
    "INTER_OP_THREAD_COUNT": torch.set_num_interop_threads,
    "ENABLE_JIT_EXECUTOR": torch._C._jit_set_profiling_executor,
    "ENABLE_JIT_PROFILING": torch._C._jit_set_profiling_mode,
    "ENABLE_TENSOR_FUSER": torch._C._jit_set_texpr_fuser_enabled,
    "DISABLE_CUDNN": lambda disabled: setattr(torch.backends.cudnn, "enabled", not disabled),
}


class ProcessWide:
    """Who set what."""

    def __init__(self, setters: Mapping[str, Callable[[Any], Any]] = _SETTERS) -> None:
        self._setters = setters
        self._set: dict[str, tuple[str, bool | int]] = {}
        self._lock = threading.Lock()

    def apply(self, model_name: str, settings: Iterable[tuple[str, bool | int]]) -> list[str]:
        """Set what nobody has set yet; what to tell the operator."""
        with self._lock:
            return [text for key, value in settings if (text := self._apply(model_name, key, value))]

    def _apply(self, model_name: str, key: str, value: bool | int) -> str:
        asked = f"model '{model_name}': parameter {key} ({str(value).lower()})"
        if key in self._set:
            setter, current = self._set[key]
            if current == value:
                return ""
            return f"{asked} has no effect: it is process-wide, and model '{setter}' has set {str(current).lower()}"
        try:
            self._setters[key](value)
        except RuntimeError:  # of the inter-op threads: they are running already
            return f"{asked} has no effect: it is process-wide, and torch cannot change it once it has computed"
        self._set[key] = (model_name, value)
        return f"{asked} is process-wide in torch: it now holds for every model of this process"


PROCESS = ProcessWide()
