"""numpy arrays to what a model takes, and what it gives to numpy arrays.

Knows one tensor of a configuration at a time; knows no model.  Tensors share memory with arrays wherever that is
safe.  Rules and messages of the results are Triton's (PyTorch backend, `libtorch.cc`); scalars are ours.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from oip.datatypes import BY_CONFIG_NAME
from oip.errors import InvalidArgument
from torchscript_predictor.config_rules import VARIABLE
from torchscript_predictor.model_config import ModelOutput, ModelTensor, reshaped
from torchscript_predictor.signature import ArgumentKind

DTYPES = {
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
_DATA_TYPES = {dtype: data_type for data_type, dtype in DTYPES.items()}
STRING = "TYPE_STRING"


def data_type_of(result: Any) -> str:
    """The `TYPE_*` of a result as a model gives it; what it is instead, where it is no tensor of ours."""
    if isinstance(result, torch.Tensor):
        return _DATA_TYPES.get(result.dtype, str(result.dtype))
    if isinstance(result, list):
        return data_type_of(torch.tensor(result)) if result and not isinstance(result[0], str) else STRING
    names = {bool: "TYPE_BOOL", int: "TYPE_INT64", float: "TYPE_FP64", str: STRING}
    return names.get(type(result), type(result).__name__)


def shape_of(result: Any) -> tuple[int, ...]:
    """Its shape; that of a number or a single string is ()."""
    if isinstance(result, torch.Tensor):
        return tuple(result.shape)
    return (len(result),) if isinstance(result, list) else ()


class Converter:
    """The two directions for one model's configuration and device.

    Args:
        device: where tensors go, None for the CPU.
        is_state: whether a tensor's memory is the model's own, so that a later execution may change it.
    """

    def __init__(
        self, model_name: str, *, batching: bool, device: torch.device | None, is_state: Callable[[torch.Tensor], bool]
    ) -> None:
        self._model_name = model_name
        self._batching = batching
        self._device = device
        self._is_state = is_state

    def argument(self, tensor: ModelTensor, kind: ArgumentKind, array: np.ndarray) -> Any:
        """What `forward` takes for an input.

        Raises:
            InvalidArgument: an element is no text, or the rows of a scalar argument differ.
        """
        if kind not in (ArgumentKind.TENSOR, ArgumentKind.STRINGS, ArgumentKind.DICT):
            return self._scalar(tensor, kind, array)
        if tensor.data_type == STRING:
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

    def _scalar(self, tensor: ModelTensor, kind: ArgumentKind, array: np.ndarray) -> Any:
        """One number, bool or string for the whole batch."""
        values = _strings(tensor.name, array) if kind is ArgumentKind.STRING else array.reshape(-1).tolist()
        if not values or any(value != values[0] for value in values[1:]):
            raise InvalidArgument(
                f"input '{tensor.name}' of model '{self._model_name}' is one {kind.value} for the whole request, it "
                f"holds {len(values)} elements that differ; send one element, or equal ones for every row"
                if values
                else f"input '{tensor.name}' of model '{self._model_name}' is one {kind.value} and holds no element"
            )
        return values[0]

    def output(self, output: ModelOutput, result: Any, rows: int) -> np.ndarray:
        """The array for what `forward` gave.

        Raises:
            InvalidArgument: it is not of the configured datatype or shape.
        """
        result = _of_kind(output, result)
        provided = data_type_of(result)
        if provided != output.data_type:
            raise InvalidArgument(
                f"configuration expects datatype {output.data_type} for output '{output.name}', "
                f"model provides {provided}"
            )
        array = _string_array(result) if provided == STRING else self._array(result)
        if array.ndim == 0:
            return self._of_one_element(output, array, rows)
        if output.reshape is None:
            return array
        return array.reshape(self._output_shape(output, array.shape))

    def _array(self, tensor: torch.Tensor) -> np.ndarray:
        tensor = tensor.contiguous()
        if tensor.device.type == "cpu" and self._is_state(tensor):
            tensor = tensor.clone()  # the next execution may change what the model owns
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy(force=True).view(BY_CONFIG_NAME["TYPE_BF16"].dtype)
        return tensor.numpy(force=True)

    def _of_one_element(self, output: ModelOutput, array: np.ndarray, rows: int) -> np.ndarray:
        """A scalar as a tensor of one element, which the protocol can carry."""
        if not self._batching:
            return array.reshape(1)
        if rows == 1:
            return array.reshape(1, 1)
        raise InvalidArgument(
            f"output '{output.name}' of model '{self._model_name}' is a scalar, but the batch has {rows} rows; set "
            "max_batch_size: 0, or let the model give one value for every row"
        )

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


def _of_kind(output: ModelOutput, result: Any) -> Any:
    """Numbers as tensors of the configured datatype where that is of their kind: Python has one int and one float."""
    if isinstance(result, torch.Tensor | str) or result is None:
        return [result] if isinstance(result, str) else result
    natural = DTYPES.get(data_type_of(result))
    if natural is None:
        return result
    wanted = DTYPES.get(output.data_type, natural)
    same_kind = wanted == natural or (
        wanted != torch.bool and natural != torch.bool and wanted.is_floating_point == natural.is_floating_point
    )
    try:
        return torch.tensor(result, dtype=wanted if same_kind else natural)
    except (RuntimeError, OverflowError, ValueError):
        raise InvalidArgument(
            f"output '{output.name}' is a number that {output.data_type} cannot hold; configure a wider data_type"
        ) from None


def _strings(name: str, array: np.ndarray) -> list[str]:
    strings = []
    for index, element in enumerate(array.reshape(-1).tolist()):
        try:
            strings.append(element.decode())
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"input '{name}': element {index} is not UTF-8 text (byte {error.start}); models' strings are text"
            ) from None
    return strings


def _string_array(strings: list[str]) -> np.ndarray:
    array = np.empty(len(strings), dtype=object)
    array[:] = [string.encode() for string in strings]
    return array
