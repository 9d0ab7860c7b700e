"""Checks a request against a model configuration, before anything is queued.

Names, datatypes, shapes and batch size; the codec has made sure that a tensor's array is of its
shape and datatype.  Wording follows Triton's.  Knows no transport and no torch.
"""

from collections.abc import Iterable

import numpy as np

from oip.errors import InvalidArgument
from oip.messages import InferenceRequest
from oip.tensors import Tensor
from torchscript_predictor.config_rules import dims_match
from torchscript_predictor.model_config import ModelConfig, ModelInput

_BATCH_NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero."
)


class RequestChecker:
    """The rules for requests to one model, made once from its configuration."""

    def __init__(self, config: ModelConfig) -> None:
        self._model = config.name
        self._max_batch_size = config.max_batch_size
        self._inputs = {tensor.name: tensor for tensor in config.inputs}
        self._outputs = tuple(tensor.name for tensor in config.outputs)

    def inputs(self, request: InferenceRequest) -> dict[str, np.ndarray]:
        """The request's arrays by name, exactly the configured inputs but for missing optional ones.

        Raises:
            InvalidArgument: an input is unknown, missing, given twice, or not of its datatype or shape; or the
                batch size is over the limit or differs between inputs.
        """
        arrays: dict[str, np.ndarray] = {}
        for tensor in request.inputs:
            expected = self._inputs.get(tensor.name)
            if expected is None:
                raise InvalidArgument(
                    f"unexpected inference input '{tensor.name}' for model '{self._model}', its inputs are: "
                    f"{', '.join(self._inputs)}"
                )
            if tensor.name in arrays:
                raise InvalidArgument(f"input '{tensor.name}' already exists in request")
            self._check_tensor(tensor, expected)
            arrays[tensor.name] = tensor.array
        missing = [name for name, tensor in self._inputs.items() if name not in arrays and not tensor.optional]
        if missing or not arrays:
            raise InvalidArgument(
                f"expected {len(self._inputs)} inputs but got {len(arrays)} inputs for model '{self._model}'. Got "
                f"input(s) {_quoted(arrays)}, but missing required input(s) "
                f"{_quoted(missing)}. Please provide all required input(s)."
            )
        if self._max_batch_size:
            self._check_batch_size(request.inputs)
        return arrays

    def outputs(self, request: InferenceRequest) -> tuple[str, ...]:
        """The names of the outputs to give, in the order asked for; all of them where none is asked for.

        Raises:
            InvalidArgument: an output is unknown or asked for twice.
        """
        if not request.outputs:
            return self._outputs
        names: list[str] = []
        for output in request.outputs:
            if output.name not in self._outputs:
                raise InvalidArgument(
                    f"unexpected inference output '{output.name}' for model '{self._model}', allowed outputs are: "
                    f"{', '.join(self._outputs)}"
                )
            if output.name in names:
                raise InvalidArgument(f"output '{output.name}' already exists in request")
            names.append(output.name)
        return tuple(names)

    def _check_tensor(self, tensor: Tensor, expected: ModelInput) -> None:
        if tensor.datatype != expected.datatype:
            raise InvalidArgument(
                f"inference input '{tensor.name}' data-type is '{tensor.datatype}', but model '{self._model}' expects "
                f"'{expected.datatype}'"
            )
        batching = self._max_batch_size > 0
        dims = tensor.shape[1:] if batching else tensor.shape
        if (batching and not tensor.shape) or not dims_match(expected.dims, dims):
            raise InvalidArgument(
                f"unexpected shape for input '{tensor.name}' for model '{self._model}'. Expected "
                f"{_shape(expected.shape(self._max_batch_size))}, got {_shape(tensor.shape)}."
                + (_BATCH_NOTE if batching else "")
            )

    def _check_batch_size(self, tensors: tuple[Tensor, ...]) -> None:
        batch_size = tensors[0].shape[0]
        if batch_size > self._max_batch_size:
            raise InvalidArgument(
                f"inference request batch-size must be <= {self._max_batch_size} for '{self._model}', got {batch_size}"
            )
        for tensor in tensors[1:]:
            if tensor.shape[0] != batch_size:
                raise InvalidArgument(
                    f"input '{tensor.name}' batch size does not match other inputs for '{self._model}': "
                    f"{tensor.shape[0]}, not {batch_size}"
                )


def _quoted(names: Iterable[str]) -> str:
    return f"[{','.join(repr(name) for name in names)}]"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
