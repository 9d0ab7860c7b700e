"""Instances into calls and answers back: nothing lost, nothing swapped, nothing copied without need."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_transformer.batches import Batch, merge, one_by_one, split
from oip.errors import BadAnswer


@given(
    kinds=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["f4", "f8"])), min_size=1, max_size=60),
    max_rows=st.none() | st.integers(1, 20),
)
def test_splitting_and_merging_gives_every_instance_its_own(kinds: list[tuple[int, str]], max_rows: int | None) -> None:
    rows = [
        {"x": np.full((width, 2), index, dtype), "y": np.array(index)} for index, (width, dtype) in enumerate(kinds)
    ]
    batches = split(rows, max_rows)
    assert [index for batch in batches for index in range(batch.first, batch.first + batch.count)] == [
        *range(len(rows))
    ]
    assert all(batch.count <= (max_rows or len(rows)) for batch in batches)
    for batch in batches:
        assert batch.tensors["x"].shape == (batch.count, *rows[batch.first]["x"].shape)
    merged = merge(batches, [batch.tensors for batch in batches])
    for ours, row in zip(merged, rows, strict=True):
        assert ours.keys() == row.keys()
        for name in row:
            np.testing.assert_array_equal(ours[name], row[name])
            assert ours[name].dtype == row[name].dtype


@pytest.mark.parametrize(
    ("count", "max_rows", "counts"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (5, None, [5]), (1, 9, [1])]
)
def test_calls_are_as_full_as_they_may_be(count: int, max_rows: int | None, counts: list[int]) -> None:
    assert [batch.count for batch in split([{"x": np.zeros(2)}] * count, max_rows)] == counts


def test_consecutive_rows_of_one_buffer_are_a_view() -> None:
    buffer = np.arange(7 * 3 * 4, dtype=np.float32).reshape(7, 3, 4).copy()
    batches = split([{"x": buffer[index]} for index in range(7)], 3)
    assert all(np.shares_memory(batch.tensors["x"], buffer) for batch in batches)
    np.testing.assert_array_equal(np.concatenate([batch.tensors["x"] for batch in batches]), buffer)


def rows_of(kind: str) -> list[np.ndarray]:
    square = np.arange(4 * 3 * 3, dtype=np.float32).reshape(4, 3, 3).copy()
    packed = np.arange(4 * 9, dtype=np.float32).tobytes()
    return {
        "backwards": [square[index] for index in (3, 2, 1, 0)],
        "with a gap": [square[index] for index in (0, 2, 3)],
        "the same one": [square[1]] * 3,
        "turned": [row.T for row in square],
        "turned together": [*square.transpose(0, 2, 1)],
        "mirrored": [row[:, ::-1] for row in square],
        "of another shape": [*square.reshape(4, 9)],
        "of another dtype": [*square.view(np.int32)],
        "on bytes": [np.frombuffer(packed, np.float32, 9, 36 * index) for index in range(4)],
        "halves of rows": [square.reshape(-1)[start : start + 9] for start in (3, 12)],
        "empty": [*np.zeros((4, 0, 3), np.float32)],
        "read-only": [*np.broadcast_to(np.float32(3), (4, 3, 3))],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "backwards",
        "with a gap",
        "the same one",
        "turned",
        "turned together",
        "mirrored",
        "of another shape",
        "of another dtype",
        "on bytes",
        "halves of rows",
        "empty",
        "read-only",
    ],
)
def test_any_other_arrays_give_the_same_numbers(kind: str) -> None:
    rows = rows_of(kind)
    (batch,) = split([{"x": row} for row in rows], None)
    np.testing.assert_array_equal(batch.tensors["x"], np.stack(rows))


def test_different_shapes_and_tensors_do_not_share_a_call() -> None:
    rows = [{"x": np.zeros(2)}, {"x": np.zeros(2)}, {"x": np.zeros(3)}, {"x": np.zeros(2)}, {"y": np.zeros(2)}]
    assert [(batch.first, batch.count) for batch in split(rows, None)] == [(0, 2), (2, 1), (3, 1), (4, 1)]


def test_one_by_one_adds_a_dimension_only_where_one_is_lacking() -> None:
    rows = [{"x": np.zeros((3, 4, 4))}, {"x": np.ones((3, 4, 4))}]
    lacking = one_by_one(rows, {"x": 4})
    assert [(batch.first, batch.stacked, batch.tensors["x"].shape) for batch in lacking] == [
        (0, True, (1, 3, 4, 4)),
        (1, True, (1, 3, 4, 4)),
    ]
    whole = one_by_one(rows, {"x": 3})
    assert [(batch.stacked, batch.tensors["x"].shape) for batch in whole] == [(False, (3, 4, 4))] * 2
    answers = [{"y": np.array([[index, 1]])} for index in range(2)]
    assert [row["y"].tolist() for row in merge(lacking, answers)] == [[0, 1], [1, 1]]
    assert [row["y"].tolist() for row in merge(whole, answers)] == [[[0, 1]], [[1, 1]]]


@pytest.mark.parametrize("shape", [(), (2,), (4, 3), (0, 3)])
def test_an_output_with_the_wrong_number_of_rows_is_the_predictors_fault(shape: tuple[int, ...]) -> None:
    batches = [Batch(0, 3, {})]
    with pytest.raises(BadAnswer, match=r"the predictor's output 'y' has shape .*; its first dimension must be 3"):
        merge(batches, [{"y": np.zeros(shape)}])
