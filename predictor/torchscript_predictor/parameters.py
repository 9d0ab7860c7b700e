"""The `parameters` of a model configuration that steer a PyTorch model's execution.

A pure reading of string keys and values.  The keys are Triton's (PyTorch backend, "Using the PyTorch
Backend", and its Python runtime).  Each has one row in a table: what it takes and which runtimes it concerns; what
does nothing here is checked all the same and warned about, an unknown key too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torchscript_predictor import compile_options
from torchscript_predictor.runtimes import Runtime

_TRUE = ("true", "1")
_FALSE = ("false", "0")
_MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class _Key:
    """`kind` is "bool", "count" or "text".  `unserved` says why a key does nothing anywhere."""

    kind: str
    runtimes: tuple[Runtime, ...] = tuple(Runtime)
    gpu_only: bool = False
    unserved: str = ""


_TORCHSCRIPT = (Runtime.TORCHSCRIPT,)
_PYTHON = (Runtime.PYTHON,)

_KEYS = {
    "INFERENCE_MODE": _Key("bool"),
    "DISABLE_OPTIMIZED_EXECUTION": _Key("bool", _TORCHSCRIPT),
    "DISABLE_CUDNN": _Key("bool", gpu_only=True),
    "ENABLE_WEIGHT_SHARING": _Key("bool"),
    "ENABLE_CACHE_CLEANING": _Key("bool", gpu_only=True),
    "CACHE_CLEANING_ENABLED": _Key("bool", (Runtime.PT2,), gpu_only=True),
    "INTER_OP_THREAD_COUNT": _Key("count"),
    "INTRA_OP_THREAD_COUNT": _Key("count"),
    "ENABLE_JIT_EXECUTOR": _Key("bool", _TORCHSCRIPT),
    "ENABLE_JIT_PROFILING": _Key("bool", _TORCHSCRIPT),
    "ENABLE_TENSOR_FUSER": _Key("bool", _TORCHSCRIPT),
    "NUM_THREADS": _Key("count", _PYTHON),
    "NUM_INTEROP_THREADS": _Key("count", _PYTHON),
    compile_options.KEY: _Key("text", _PYTHON),
    "MODULE_METHOD_NAME": _Key("text", (Runtime.TORCHSCRIPT, Runtime.PYTHON)),
    "MODULE_CLASS_NAME": _Key("text", _PYTHON),
    "EXECUTION_ENV_PATH": _Key("text", unserved="models run in this process's own environment; install it here"),
    "FORCE_CPU_ONLY_INPUT_TENSORS": _Key("text", unserved="inputs go to the device of their instance"),
}
_BELONGS: dict[tuple[Runtime, ...], str] = {
    _TORCHSCRIPT: "TorchScript",
    _PYTHON: "the Python runtime",
    (Runtime.PT2,): 'platform: "torch_aoti"',
}
_INSTEAD = {"NUM_THREADS": "; set INTRA_OP_THREAD_COUNT", "NUM_INTEROP_THREADS": "; set INTER_OP_THREAD_COUNT"}

PROCESS_WIDE = ("INTER_OP_THREAD_COUNT", "ENABLE_JIT_EXECUTOR", "ENABLE_JIT_PROFILING", "ENABLE_TENSOR_FUSER")
"""torch has one of each for the whole process; so has cuDNN's switch."""


@dataclass(frozen=True, slots=True)
class ExecutionParameters:
    """How a model executes.  `intra_op_thread_count` None: derived from the machine (see `threads`).
    `weight_sharing` None: CPU instances share where that is safe.

    `process_wide` holds what was set of `PROCESS_WIDE` and, where there is a GPU, "DISABLE_CUDNN".
    `compile_options` are keyword arguments of torch.compile.
    """

    inference_mode: bool = True
    optimized_execution: bool = True
    weight_sharing: bool | None = None
    cache_cleaning: bool = False
    intra_op_thread_count: int | None = None
    method: str = "forward"
    class_name: str = ""
    compile_options: tuple[tuple[str, Any], ...] = ()
    process_wide: tuple[tuple[str, bool | int], ...] = ()


class ParameterError(ValueError):
    """A value that its key does not take; `key` says which."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def read_parameters(
    parameters: Mapping[str, str], runtime: Runtime = Runtime.TORCHSCRIPT, *, has_gpu: bool = False
) -> tuple[ExecutionParameters, list[tuple[str, str]]]:
    """The settings that the parameters ask for, and (key, warning) pairs.

    Raises:
        ParameterError: a value is not of its key's kind, or would change answers if it were ignored.
    """
    values: dict[str, Any] = {}
    warnings = []
    for key, text in parameters.items():
        known = _KEYS.get(key)
        if known is None:
            near = get_close_matches(key.upper(), _KEYS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            warnings.append((key, f"parameter {key} (value {text[:80]!r}) is not known here and has no effect{hint}"))
            continue
        value = _read(key, text, known)
        if why := _why_no_effect(key, known, runtime, has_gpu):
            warnings.append((key, f"parameter {key} has no effect: {why}"))
        else:
            values[key] = value
    inter_op = values.get("NUM_INTEROP_THREADS", values.get("INTER_OP_THREAD_COUNT"))
    process_wide = {**values, "INTER_OP_THREAD_COUNT": inter_op}
    return (
        ExecutionParameters(
            inference_mode=values.get("INFERENCE_MODE", True),
            optimized_execution=not values.get("DISABLE_OPTIMIZED_EXECUTION", False),
            weight_sharing=values.get("ENABLE_WEIGHT_SHARING"),
            cache_cleaning=values.get("ENABLE_CACHE_CLEANING", False) or values.get("CACHE_CLEANING_ENABLED", False),
            intra_op_thread_count=values.get("NUM_THREADS", values.get("INTRA_OP_THREAD_COUNT")),
            method=values.get("MODULE_METHOD_NAME", "forward"),
            class_name=values.get("MODULE_CLASS_NAME", ""),
            compile_options=tuple(values.get(compile_options.KEY, {}).items()),
            process_wide=tuple(
                (key, process_wide[key])
                for key in (*PROCESS_WIDE, "DISABLE_CUDNN")
                if process_wide.get(key) is not None
            ),
        ),
        warnings,
    )


def _why_no_effect(key: str, known: _Key, runtime: Runtime, has_gpu: bool) -> str:
    if known.unserved:
        return known.unserved
    if runtime not in known.runtimes:
        if key == "MODULE_METHOD_NAME":
            raise ParameterError(key, f"parameter {key}: a .pt2 file holds one function; leave the parameter out")
        return f"it belongs to {_BELONGS[known.runtimes]}{_INSTEAD.get(key, '')}"
    return "there is no GPU here" if known.gpu_only and not has_gpu else ""


def _read(key: str, text: str, known: _Key) -> Any:
    if known.kind == "bool":
        if text.lower() not in (*_TRUE, *_FALSE):
            raise ParameterError(key, f'parameter {key} has value {text[:80]!r}; it takes "true" or "false"')
        return text.lower() in _TRUE
    if known.kind == "count":
        if not (text.isascii() and text.isdecimal() and len(text) <= 6 and 1 <= int(text) <= _MAX_THREADS):
            raise ParameterError(
                key, f"parameter {key} has value {text[:80]!r}; it takes a whole number from 1 to {_MAX_THREADS}"
            )
        return int(text)
    if key == compile_options.KEY:
        try:
            return compile_options.read_compile_options(text)
        except ValueError as error:
            raise ParameterError(key, str(error)) from None
    if key.startswith("MODULE_") and not text.isidentifier():
        raise ParameterError(
            key, f"parameter {key} has value {text[:80]!r}; it takes the name of a Python method or class"
        )
    return text
