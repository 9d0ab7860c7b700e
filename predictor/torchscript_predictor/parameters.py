"""The `parameters` of a model configuration that steer TorchScript's execution.

A pure reading of string keys and values.  The keys are Triton's (PyTorch backend, "Using the PyTorch
Backend"); those that do nothing here are checked all the same and warned about, an unknown key too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

_TRUE = ("true", "1")
_FALSE = ("false", "0")
_MAX_THREADS = 1024

_NO_EFFECT_BOOLEANS = {
    "DISABLE_CUDNN": "cuDNN is used wherever torch finds it",
    "ENABLE_CACHE_CLEANING": "no memory cache is emptied between executions",
    "ENABLE_JIT_EXECUTOR": "torch's default executor is used",
    "ENABLE_JIT_PROFILING": "torch's default executor is used",
    "ENABLE_TENSOR_FUSER": "torch's default fuser is used",
}
_NO_EFFECT_COUNTS = {
    "INTER_OP_THREAD_COUNT": "every model instance is a thread; set instance_group.count instead",
    "NUM_THREADS": "it belongs to the Python runtime; set INTRA_OP_THREAD_COUNT",
    "NUM_INTEROP_THREADS": "it belongs to the Python runtime; set instance_group.count instead",
}
_NO_EFFECT_TEXTS = {
    "EXECUTION_ENV_PATH": "it belongs to the Python runtime",
    "FORCE_CPU_ONLY_INPUT_TENSORS": "it belongs to the Python runtime",
    "TORCH_COMPILE_OPTIONAL_PARAMETERS": "it belongs to the Python runtime",
}
_KNOWN = (
    "INFERENCE_MODE",
    "DISABLE_OPTIMIZED_EXECUTION",
    "INTRA_OP_THREAD_COUNT",
    "ENABLE_WEIGHT_SHARING",
    *_NO_EFFECT_BOOLEANS,
    *_NO_EFFECT_COUNTS,
    *_NO_EFFECT_TEXTS,
)


@dataclass(frozen=True, slots=True)
class ExecutionParameters:
    """How a model executes.  `intra_op_thread_count` None: derived from the machine (see `threads`)."""

    inference_mode: bool = True
    optimized_execution: bool = True
    weight_sharing: bool = False
    intra_op_thread_count: int | None = None


class ParameterError(ValueError):
    """A value that its key does not take; `key` says which."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def read_parameters(parameters: Mapping[str, str]) -> tuple[ExecutionParameters, list[tuple[str, str]]]:
    """The settings that the parameters ask for, and (key, warning) pairs.

    Raises:
        ParameterError: a value is not of its key's kind.
    """
    warnings = []
    for key, value in parameters.items():
        if key in _NO_EFFECT_BOOLEANS:
            _boolean(parameters, key, False)
            warnings.append((key, f"parameter {key} has no effect: {_NO_EFFECT_BOOLEANS[key]}"))
        elif key in _NO_EFFECT_COUNTS:
            _count(parameters, key)
            warnings.append((key, f"parameter {key} has no effect: {_NO_EFFECT_COUNTS[key]}"))
        elif key in _NO_EFFECT_TEXTS:
            warnings.append((key, f"parameter {key} has no effect: {_NO_EFFECT_TEXTS[key]}"))
        elif key not in _KNOWN:
            near = get_close_matches(key.upper(), _KNOWN, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            warnings.append((key, f"parameter {key} (value {value[:80]!r}) is not known here and has no effect{hint}"))
    return (
        ExecutionParameters(
            inference_mode=_boolean(parameters, "INFERENCE_MODE", True),
            optimized_execution=not _boolean(parameters, "DISABLE_OPTIMIZED_EXECUTION", False),
            weight_sharing=_boolean(parameters, "ENABLE_WEIGHT_SHARING", False),
            intra_op_thread_count=_count(parameters, "INTRA_OP_THREAD_COUNT"),
        ),
        warnings,
    )


def _boolean(parameters: Mapping[str, str], key: str, default: bool) -> bool:
    value = parameters.get(key)
    if value is None:
        return default
    if value.lower() not in (*_TRUE, *_FALSE):
        raise ParameterError(key, f'parameter {key} has value {value[:80]!r}; it takes "true" or "false"')
    return value.lower() in _TRUE


def _count(parameters: Mapping[str, str], key: str) -> int | None:
    value = parameters.get(key)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= 6 and 1 <= int(value) <= _MAX_THREADS):
        raise ParameterError(
            key, f"parameter {key} has value {value[:80]!r}; it takes a whole number from 1 to {_MAX_THREADS}"
        )
    return int(value)
