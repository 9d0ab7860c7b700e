"""The classification extension: an output as its largest elements, each with its index and label.

An element is written "<value>:<index>" or "<value>:<index>:<label>", as Triton writes it.  Knows no transport and no
file: labels come as lists.

Source: Triton's extension_classification.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oip.errors import InvalidArgument
from oip.tensors import Tensor, bytes_array

PARAMETER = "classification"


def requested_classes(parameters: Mapping[str, Any], name: str) -> int:
    """How many classes a requested output wants; 0 for the tensor itself.

    Raises:
        InvalidArgument: the parameter is no count.
    """
    count = parameters.get(PARAMETER, 0)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InvalidArgument(
            f"parameter '{PARAMETER}' of output '{name}' must be the number of classes wanted, got {str(count)[:40]!r}"
        )
    return count


def classes(tensor: Tensor, count: int, labels: Sequence[str], *, batches: bool) -> Tensor:
    """The `count` largest elements of each row, largest first, of equals the first; a row is the whole tensor where
    the model does not batch.

    Raises:
        InvalidArgument: the tensor holds strings or BF16, which have no order here.
    """
    if tensor.datatype in ("BYTES", "BF16"):
        raise InvalidArgument(
            f"class result not available for output '{tensor.name}' due to unsupported type {tensor.datatype}; ask for "
            "the tensor"
        )
    rows = tensor.array.reshape(tensor.shape[0] if batches else 1, -1)
    largest = min(count, rows.shape[1])
    elements = [text for row in rows for text in _largest(row, largest, labels)]
    shape = (rows.shape[0], largest) if batches else (largest,)
    return Tensor(tensor.name, "BYTES", shape, bytes_array(elements, shape))


def _largest(row: np.ndarray, count: int, labels: Sequence[str]) -> list[str]:
    if row.dtype.kind == "f":
        order = np.argsort(-row, kind="stable")[:count]  # NaN comes last
        values = [f"{value:f}" for value in row[order].tolist()]
    else:
        last = row.size - 1
        order = (last - np.argsort(row[::-1], kind="stable")[::-1])[:count]  # integers that cannot be negated
        values = [str(int(value)) for value in row[order].tolist()]
    return [
        f"{value}:{index}:{labels[index]}" if index < len(labels) else f"{value}:{index}"
        for value, index in zip(values, order.tolist(), strict=True)
    ]
