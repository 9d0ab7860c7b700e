"""The tensors of several requests as one batch's, and the batch's outputs as each request's.

Requests are concatenated along dimension 0 and split there again.  Knows no queue and no torch.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from oip.errors import Internal

Inputs = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]


def shape_key(inputs: Inputs) -> tuple[tuple[object, ...], ...]:
    """Equal for requests that can be in one batch: the same inputs, of the same datatypes and shapes but for rows."""
    return tuple([(name, array.dtype, array.shape[1:]) for name, array in sorted(inputs.items())])


def gather(requests: Sequence[Inputs]) -> Inputs:
    """One batch of requests of one `shape_key`.  A single request's arrays are given as they are, not copied."""
    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}


def scatter(outputs: Outputs, rows: Sequence[int]) -> list[Outputs]:
    """Each request's part of a batch's outputs, as views on them; `rows` are the requests' batch sizes.

    Raises:
        Internal: an output has not one row for each row of the batch, so it cannot be told whose is whose.
    """
    if len(rows) == 1:
        return [outputs]
    total = sum(rows)
    for name, array in outputs.items():
        if not array.shape or array.shape[0] != total:
            raise Internal(
                f"output '{name}' has shape {list(array.shape)} for a batch of {total}; its first dimension must be "
                "the batch's, or the model cannot batch: set max_batch_size: 0"
            )
    parts = []
    start = 0
    for count in rows:
        parts.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return parts
