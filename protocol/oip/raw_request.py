"""Raw binary requests: the body is the one input, nothing is described (the binary extension's header length 0).

Knows no transport.  Name, datatype and shape come from the model's metadata; a model that batches gets a batch
of one.

Source: Triton's extension_binary_data, "Raw Binary Request".
"""

from math import prod

from oip.datatypes import DATATYPES
from oip.errors import InvalidArgument
from oip.messages import InferenceRequest, ModelMetadata
from oip.raw_tensors import array_from_raw
from oip.tensors import Tensor

_LENGTH_PREFIX = 4


def raw_request(
    body: bytearray, metadata: ModelMetadata, *, batches: bool, model_version: str = ""
) -> InferenceRequest:
    """The request that a raw body stands for; all outputs are asked for in binary.

    Args:
        batches: whether the model's shapes begin with a batch dimension.

    Raises:
        InvalidArgument: the model has several inputs or several variable dimensions, or the body does not fit.
    """
    name = metadata.name
    if len(metadata.inputs) != 1:
        raise InvalidArgument(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(metadata.inputs)} inputs in "
            f"model '{name}'; describe the tensors in JSON"
        )
    declared = metadata.inputs[0]
    shape = (1, *declared.shape[1:]) if batches else declared.shape
    if declared.datatype == "BYTES":
        if any(dimension not in (1, -1) for dimension in shape):
            raise InvalidArgument(
                f"For BYTE datatype raw input '{declared.name}', the model must have input shape [1], got {list(shape)}"
            )
        content = memoryview(len(body).to_bytes(_LENGTH_PREFIX, "little") + body)
        shape = tuple(1 for _ in shape)
    else:
        content = memoryview(body)
        shape = _deduced(shape, declared.name, len(body), DATATYPES[declared.datatype].itemsize)
    array = array_from_raw(content, declared.name, DATATYPES[declared.datatype], shape)
    return InferenceRequest(
        model_name=name,
        model_version=model_version,
        inputs=(Tensor(declared.name, declared.datatype, shape, array),),
        binary_output=True,
    )


def _deduced(shape: tuple[int, ...], name: str, size: int, itemsize: int) -> tuple[int, ...]:
    """The shape with its one variable dimension put in."""
    if shape.count(-1) > 1:
        raise InvalidArgument(
            f"The shape of the raw input '{name}' can not be deduced because there are more than one variable-sized "
            f"dimension: {list(shape)}; describe the tensor in JSON"
        )
    fixed = prod(dimension for dimension in shape if dimension != -1) * itemsize
    if -1 in shape and size % fixed:
        raise InvalidArgument(
            f"The shape of the raw input '{name}' can not be deduced: {size} bytes are no multiple of {fixed}, the "
            f"size of one step of the variable dimension of {list(shape)}"
        )
    return tuple(size // fixed if dimension == -1 else dimension for dimension in shape)
