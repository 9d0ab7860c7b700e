"""Instances into calls and answers back into instances: stack, split, merge.

Pure: arrays in, arrays out; knows no predictor, only what its contract allows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oip.errors import BadAnswer

Rows = Sequence[Mapping[str, np.ndarray]]
"""For each instance its tensors by input name, without a batch dimension."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of one call and which instances they are: `first` up to `first + count`.

    `stacked` says that the tensors got a leading dimension which the instances do not have.
    """

    first: int
    count: int
    tensors: Mapping[str, np.ndarray]
    stacked: bool = True


def split(rows: Rows, max_rows: int | None) -> list[Batch]:
    """The calls for these instances, in order, for a model that batches.

    Neighbours of equal shapes and dtypes share a call, up to `max_rows` of them (None: no limit).
    """
    batches = []
    first = 0
    while first < len(rows):
        signature = _signature(rows[first])
        end = first + 1
        while end < len(rows) and (max_rows is None or end - first < max_rows) and _signature(rows[end]) == signature:
            end += 1
        tensors = {name: _stack([row[name] for row in rows[first:end]]) for name in rows[first]}
        batches.append(Batch(first, end - first, tensors))
        first = end
    return batches


def one_by_one(rows: Rows, ranks: Mapping[str, int]) -> list[Batch]:
    """A call for each instance, for a model that does not batch; `ranks` are the inputs' declared ranks.

    A tensor that lacks one dimension gets a leading one: such a model was declared with a batch of one.
    """
    batches = []
    for index, row in enumerate(rows):
        lacking = all(array.ndim + 1 == ranks.get(name, array.ndim) for name, array in row.items())
        tensors = {name: array[np.newaxis] for name, array in row.items()} if lacking else row
        batches.append(Batch(index, 1, tensors, stacked=lacking))
    return batches


def merge(batches: Sequence[Batch], answers: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """For each instance its outputs, without the batch dimension, in the order of the instances.

    Raises:
        BadAnswer: an output does not have one row for each instance of its call.
    """
    merged: list[dict[str, np.ndarray]] = []
    for batch, outputs in zip(batches, answers, strict=True):
        if not batch.stacked:
            merged.append(dict(outputs))
            continue
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != batch.count:
                raise BadAnswer(
                    f"the predictor's output '{name}' has shape {list(array.shape)}; "
                    f"its first dimension must be {batch.count}, the instances sent"
                )
        merged += ({name: array[row] for name, array in outputs.items()} for row in range(batch.count))
    return merged


def _signature(row: Mapping[str, np.ndarray]) -> list[tuple[str, tuple[int, ...], np.dtype]]:
    return [(name, array.shape, array.dtype) for name, array in row.items()]


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """[N, ...]; a view where the arrays are consecutive rows of one buffer, as the picture path leaves them."""
    first = arrays[0]
    if len(arrays) == 1:
        return first[np.newaxis]
    buffer = first.base
    if (
        isinstance(buffer, np.ndarray)
        and first.nbytes
        and buffer.shape[1:] == first.shape
        and buffer.dtype == first.dtype
        and buffer.flags.c_contiguous
    ):
        address = first.ctypes.data
        start, remainder = divmod(address - buffer.ctypes.data, first.nbytes)
        rows = all(
            array.base is buffer and array.flags.c_contiguous and array.ctypes.data == address + index * first.nbytes
            for index, array in enumerate(arrays)
        )
        if rows and remainder == 0:
            return buffer[start : start + len(arrays)]
    return np.stack(arrays)
