"""One backend for every runtime: hands each model to the backend that its configuration asks for.

Imports a runtime when its first model comes.  Knows no file format.
"""

import importlib
import threading
from pathlib import Path

from torchscript_predictor.backends import Backend, LoadedModel, LoadError
from torchscript_predictor.model_config import Description, ModelConfig
from torchscript_predictor.runtimes import Runtime

_BACKENDS = {
    Runtime.TORCHSCRIPT: ("torchscript_predictor.backends.torchscript", "TorchScriptBackend"),
    Runtime.PT2: ("torchscript_predictor.backends.exported", "ExportedBackend"),
    Runtime.PYTHON: ("torchscript_predictor.backends.eager", "EagerBackend"),
}


class PyTorchBackend:
    """Implements `Backend` with the three runtimes."""

    def __init__(self, *, allow_python_models: bool = False, describes_models: bool = True) -> None:
        """
        Args:
            allow_python_models: whether model.py may be run.
            describes_models: whether inputs and outputs that nobody configured may be found out.

        Raises:
            LoadError: torch is not installed.
        """
        self._describes_models = describes_models
        self._allow_python_models = allow_python_models
        self._backends: dict[Runtime, Backend] = {}
        self._lock = threading.Lock()
        self._backend(Runtime.TORCHSCRIPT)  # so that a missing torch is said once, and early

    def gpu_count(self) -> int:
        """See `Backend.gpu_count`."""
        return self._backend(Runtime.TORCHSCRIPT).gpu_count()

    def load(self, path: Path, config: ModelConfig, device: str | None) -> LoadedModel:
        """See `Backend.load`."""
        return self._allowed(config).load(path, config, device)

    def describe(self, path: Path, config: ModelConfig) -> Description:
        """See `Backend.describe`."""
        if not self._describes_models:
            raise LoadError(
                f"model '{config.name}' has no input and output in config.pbtxt, and --disable-auto-complete-config "
                "forbids finding them out; write them, or take the flag away"
            )
        return self._allowed(config).describe(path, config)

    def release_memory(self) -> None:
        """See `CachesMemory.release_memory`: GPU memory that torch keeps for later."""
        torch = importlib.import_module("torch")
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _allowed(self, config: ModelConfig) -> Backend:
        if config.runtime is Runtime.PYTHON and not self._allow_python_models:
            raise LoadError(
                f"model '{config.name}' is Python code ({config.model_filename}), which would run in this process with "
                "all its rights; start with --allow-python-models if you trust it, or export it (tandem export)"
            )
        return self._backend(config.runtime)

    def _backend(self, runtime: Runtime) -> Backend:
        with self._lock:
            if runtime not in self._backends:
                module, name = _BACKENDS[runtime]
                try:
                    self._backends[runtime] = getattr(importlib.import_module(module), name)()
                except ModuleNotFoundError as error:
                    raise LoadError(f"{error.name} is not installed; install tandem-serving[predictor]") from error
            return self._backends[runtime]
