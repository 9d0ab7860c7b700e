"""The Python runtime: a `model.py` with one torch.nn.Module, its state dict beside it, torch.compile over it.

Triton's layouts: the state dict is `model.pt` (PyTorch backend) or `model.py.pt` (Python backend).  It is read with
`weights_only=True`, so that a pickle cannot run code.  Loads into a `Program`; all else is `program`'s.
"""

import inspect
import pickle
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torchscript_predictor.backends import LoadError
from torchscript_predictor.backends.compiling import compiled
from torchscript_predictor.backends.describing import describe
from torchscript_predictor.backends.failure import reason
from torchscript_predictor.backends.program import Program, TorchModel, input_device, state_of
from torchscript_predictor.backends.python_source import SourceError, module_class
from torchscript_predictor.model_config import Description, ModelConfig
from torchscript_predictor.signature import REQUIRED, Argument


class EagerBackend:
    """Loads `model.py` files.  Whoever calls it has decided that their code is trusted."""

    def gpu_count(self) -> int:
        """See `Backend.gpu_count`."""
        return torch.cuda.device_count()

    def load(self, path: Path, config: ModelConfig, device: str | None) -> TorchModel:
        """See `Backend.load`."""
        module = self._module(path, config, device)
        function, arguments = _function(module, config)
        where = _device_of(module, device)
        try:
            call, warnings = compiled(
                config.name, function, dict(config.parameters.compile_options), on_cpu=where is None
            )
        except ValueError as error:
            raise LoadError(f"failed to load model '{config.name}': {error}") from None
        return TorchModel(Program(call, arguments, state_of(module), where, warnings), config)

    def describe(self, path: Path, config: ModelConfig) -> Description:
        """See `Backend.describe`."""
        module = self._module(path, config, "cpu")
        return describe(Program(*_function(module, config), state_of(module)), config)

    def _module(self, path: Path, config: ModelConfig, device: str | None) -> torch.nn.Module:
        try:
            module = module_class(path, config.parameters.class_name)()
        except SourceError as error:
            raise LoadError(f"failed to load model '{config.name}': {error}") from None
        except BaseException as error:  # SystemExit too: a model must not end the process
            raise LoadError(
                f"failed to load model '{config.name}': {path.name} raises {type(error).__name__}: {reason(error)}"
            ) from error
        weights = state_dict_file(path, config.name)
        if weights is not None:
            _load_state(module, weights, config.name)
        return module.eval() if device is None else module.eval().to(device)


def _function(module: torch.nn.Module, config: ModelConfig) -> tuple[Callable[..., Any], tuple[Argument, ...]]:
    """What to call, and its arguments.  For `forward` it is the module itself, with its hooks."""
    name = config.parameters.method
    method = getattr(module, name, None)
    if not callable(method):
        raise LoadError(
            f"failed to load model '{config.name}': {type(module).__name__} has no method '{name}'; correct the "
            "parameter MODULE_METHOD_NAME"
        )
    return (module if name == "forward" else method), _arguments(method)


def state_dict_file(path: Path, model_name: str) -> Path | None:
    """The state dict beside a `model.py`: `model.pt` or `model.py.pt`; None where there is none.

    Raises:
        LoadError: there are both.
    """
    found = [file for file in (path.with_suffix(".pt"), path.with_name(path.name + ".pt")) if file.is_file()]
    if len(found) > 1:
        raise LoadError(
            f"failed to load model '{model_name}': both {found[0].name} and {found[1].name} are there; keep the one "
            "that holds the state dict"
        )
    return found[0] if found else None


def _load_state(module: torch.nn.Module, file: Path, model_name: str) -> None:
    where = f"failed to load model '{model_name}': {file.name}"
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # "Weights only load failed. ... WeightsUnpickler error: Unsupported global: GLOBAL os.system was not ..."
        found = str(error).partition("Unsupported ")[2].partition(" was not")[0]
        raise LoadError(
            f"{where} is refused: it holds more than tensors{f' ({found[:200]})' if found else ''}, and unpickling "
            "that would run code; write it with torch.save(model.state_dict(), ...)"
        ) from None
    except Exception as error:
        raise LoadError(
            f"{where} is no state dict: {reason(error)}; write it with torch.save(model.state_dict(), ...)"
        ) from error
    if not isinstance(state, dict):
        raise LoadError(f"{where} holds a {type(state).__name__}; write it with torch.save(model.state_dict(), ...)")
    try:
        module.load_state_dict(state)
    except Exception as error:
        raise LoadError(f"{where} does not fit {type(module).__name__}: {reason(error)}") from error


def _device_of(module: torch.nn.Module, device: str | None) -> torch.device | None:
    """Where inputs go; a KIND_MODEL instance has placed itself, and its first parameter says where."""
    if device is not None:
        return input_device(device)
    first = next(module.parameters(), None)
    return None if first is None or first.device.type == "cpu" else first.device


def _arguments(method: Any) -> tuple[Argument, ...]:
    hints = _hints(method)
    return tuple(
        Argument(
            name,
            _type_name(hints.get(name, torch.Tensor)),
            REQUIRED if parameter.default is parameter.empty else parameter.default,
        )
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    )


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # an annotation that cannot be evaluated says nothing; the argument is then a tensor
        return {}


def _type_name(hint: Any) -> str:
    """An annotation as TorchScript spells it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any or (inspect.isclass(hint) and issubclass(hint, torch.Tensor)):
        return "Tensor"
    if origin in (typing.Union, types.UnionType) and type(None) in parts:
        others = [part for part in parts if part is not type(None)]
        return f"Optional[{_type_name(others[0])}]" if len(others) == 1 else str(hint)
    if origin in (list, dict, tuple):
        return f"{origin.__name__.title()}[{', '.join(map(_type_name, parts))}]"
    return hint.__name__ if inspect.isclass(hint) else str(hint)
