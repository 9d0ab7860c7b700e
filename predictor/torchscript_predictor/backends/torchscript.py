"""Executes TorchScript files with torch.

numpy in, numpy out; tensors share memory with arrays wherever that is safe.  Rules and messages of the
results are Triton's (PyTorch backend, `libtorch.cc`).
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oip.datatypes import BY_CONFIG_NAME
from oip.errors import InferenceError, Internal, InvalidArgument
from torchscript_predictor.backends import LoadError
from torchscript_predictor.backends.failure import reason
from torchscript_predictor.config_rules import VARIABLE
from torchscript_predictor.model_config import ModelConfig, ModelOutput, ModelTensor, reshaped
from torchscript_predictor.signature import Argument, SignatureError, plan_inputs, plan_outputs

# Every call of torch.jit warns that it is deprecated; to serve TorchScript is this module's purpose.  The
# filter is set once for the process because warnings.catch_warnings is not safe with several loading threads.
warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")

_DTYPES = {
    "TYPE_BOOL": torch.bool,
    "TYPE_UINT8": torch.uint8,
    "TYPE_UINT16": torch.uint16,
    "TYPE_UINT32": torch.uint32,
    "TYPE_UINT64": torch.uint64,
    "TYPE_INT8": torch.int8,
    "TYPE_INT16": torch.int16,
    "TYPE_INT32": torch.int32,
    "TYPE_INT64": torch.int64,
    "TYPE_FP16": torch.float16,
    "TYPE_FP32": torch.float32,
    "TYPE_FP64": torch.float64,
    "TYPE_BF16": torch.bfloat16,
}
_DATA_TYPES = {dtype: data_type for data_type, dtype in _DTYPES.items()}
_STRING = "TYPE_STRING"
_FAILURE = "PyTorch execute failure: "


class TorchScriptBackend:
    """Loads `model.pt` files."""

    def gpu_count(self) -> int:
        return torch.cuda.device_count()

    def load(self, path: Path, config: ModelConfig, device: str | None) -> "TorchScriptModel":
        """See `Backend.load`."""
        try:
            module = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
            arguments = module.forward.schema.arguments[1:]  # without self
        except Exception as error:
            raise LoadError(f"failed to load model '{config.name}': {_load_reason(error)}") from error
        signature = [Argument(argument.name, argument.type.annotation_str) for argument in arguments]
        return TorchScriptModel(module, signature, config, device)


class TorchScriptModel:
    """One loaded TorchScript module and how a configuration's tensors go through it."""

    def __init__(self, module: Any, arguments: Sequence[Argument], config: ModelConfig, device: str | None) -> None:
        """
        Raises:
            LoadError: the configuration does not fit the module's `forward`.
        """
        try:
            plan = plan_inputs(config.name, arguments, [(tensor.name, tensor.datatype) for tensor in config.inputs])
        except SignatureError as error:
            raise LoadError(str(error)) from None
        self._warnings = plan.warnings
        self._module = module
        self._as_dict = plan.as_dict
        self._inputs = [config.input(name) for name in plan.names]
        self._outputs = list(zip(config.outputs, plan_outputs([o.name for o in config.outputs]), strict=True))
        self._batching = config.max_batch_size > 0
        self._optimized = config.parameters.optimized_execution
        self._inference_mode = config.parameters.inference_mode
        self._device = torch.device(device) if device not in (None, "cpu") else None
        self._state = frozenset(
            tensor.untyped_storage().data_ptr() for tensor in chain(module.parameters(), module.buffers())
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """See `LoadedModel.warnings`."""
        return self._warnings

    def enter_thread(self, intra_op_threads: int) -> None:
        """See `LoadedModel.enter_thread`."""
        # A thread begins with the count that any thread set last; its first question or operation settles it, so
        # without this question another instance's setting would replace ours.
        torch.get_num_threads()
        torch.set_num_threads(intra_op_threads)

    def execute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `LoadedModel.execute`."""
        try:
            with self._modes():
                arguments = [self._argument(tensor, inputs[tensor.name]) for tensor in self._inputs]
                if self._as_dict:
                    keys = (tensor.name for tensor in self._inputs)
                    result = self._module(dict(zip(keys, arguments, strict=True)))
                else:
                    result = self._module(*arguments)
                results = _results(result)
                return {output.name: self._output(output, index, results) for output, index in self._outputs}
        except InferenceError:
            raise
        except Exception as error:
            raise Internal(_FAILURE + reason(error)) from error

    def _modes(self) -> AbstractContextManager[Any]:
        mode = torch.inference_mode() if self._inference_mode else torch.no_grad()
        if self._optimized:
            return mode
        stack = ExitStack()
        stack.enter_context(mode)
        stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
        return stack

    def _argument(self, tensor: ModelTensor, array: np.ndarray) -> "torch.Tensor | list[str]":
        if tensor.data_type == _STRING:
            return _strings(tensor.name, array)
        if tensor.reshape is not None:
            array = array.reshape(self._reshaped(array.shape, tensor.dims, tensor.reshape))
        if not (array.flags.writeable and array.flags.aligned and array.flags.c_contiguous):
            # torch has no read-only tensors: a model that works in place would write into the request's body
            array = np.array(array, order="C")
        if tensor.data_type == "TYPE_BF16":
            argument = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            argument = torch.from_numpy(array)
        return argument if self._device is None else argument.to(self._device)

    def _output(self, output: ModelOutput, index: int, results: Sequence[Any]) -> np.ndarray:
        if index >= len(results):
            raise InvalidArgument(
                f"The output {output.name} in the model configuration refers to an output index which doesn't exist. "
                f"This model has {len(results)} outputs"
            )
        result = results[index]
        provided = _data_type(result)
        if provided != output.data_type:
            raise InvalidArgument(
                f"configuration expects datatype {output.data_type} for output '{output.name}', "
                f"model provides {provided}"
            )
        array = _string_array(result) if provided == _STRING else self._array(output, result)
        if output.reshape is None:
            return array
        return array.reshape(self._output_shape(output, array.shape))

    def _array(self, output: ModelOutput, tensor: torch.Tensor) -> np.ndarray:
        if tensor.dim() == 0:
            raise InvalidArgument(f"output '{output.name}' is a scalar which is not supported.")
        tensor = tensor.contiguous()
        if tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in self._state:
            tensor = tensor.clone()  # the next execution may change what the model owns
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy(force=True).view(BY_CONFIG_NAME["TYPE_BF16"].dtype)
        return tensor.numpy(force=True)

    def _output_shape(self, output: ModelOutput, shape: tuple[int, ...]) -> tuple[int, ...]:
        assert output.reshape is not None
        given = (VARIABLE, *output.reshape) if self._batching else output.reshape
        if len(given) != len(shape) or any(g not in (VARIABLE, s) for g, s in zip(given, shape, strict=True)):
            raise InvalidArgument(
                f"configuration expects shape {list(given)} for output '{output.name}' (its reshape), model provides "
                f"{list(shape)}"
            )
        return self._reshaped(shape, output.reshape, output.dims)

    def _reshaped(self, shape: tuple[int, ...], given: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
        if self._batching:
            return (shape[0], *reshaped(shape[1:], given, wanted))
        return reshaped(shape, given, wanted)


def _load_reason(error: Exception) -> str:
    text = reason(error)
    if "constants.pkl" in text:
        return f"{text} The file is no TorchScript archive; write it with torch.jit.script(model).save(...)"
    return text


def _strings(name: str, array: np.ndarray) -> list[str]:
    strings = []
    for index, element in enumerate(array.reshape(-1).tolist()):
        try:
            strings.append(element.decode())
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"input '{name}': element {index} is not UTF-8 text (byte {error.start}); TorchScript strings are text"
            ) from None
    return strings


def _string_array(strings: list[str]) -> np.ndarray:
    array = np.empty(len(strings), dtype=object)
    array[:] = [string.encode() for string in strings]
    return array


def _results(result: Any) -> Sequence[Any]:
    """What `forward` gave as a sequence of tensors and lists of strings."""
    if isinstance(result, tuple):
        for index, item in enumerate(result):
            if not _is_output(item):
                raise Internal(
                    f"{_FAILURE}output at index {index} must be of type Tensor or List[str], "
                    f"received {_type_name(item)}"
                )
        return result
    if not _is_output(result):
        raise Internal(
            f"{_FAILURE}output must be of type Tensor, List[str] or Tuple containing one of these two types. It should "
            f"not be a List / Dictionary of Tensors or a Scalar; received {_type_name(result)}"
        )
    return (result,)


def _is_output(item: Any) -> bool:
    return isinstance(item, torch.Tensor) or (isinstance(item, list) and all(isinstance(part, str) for part in item))


def _type_name(item: Any) -> str:
    if isinstance(item, list):
        return f"List[{_type_name(item[0])}]" if item else "List"
    return {torch.Tensor: "Tensor", dict: "Dict"}.get(type(item), type(item).__name__)


def _data_type(result: Any) -> str:
    if isinstance(result, list):
        return _STRING
    return _DATA_TYPES.get(result.dtype, str(result.dtype))
