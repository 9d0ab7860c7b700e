"""What becomes of one instance's outputs."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kserve_transformer import tasks


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50))
def test_softmax_is_torchs(scores: list[float]) -> None:
    ours = tasks.softmax(np.array(scores, dtype=np.float32))
    reference = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0).numpy()
    np.testing.assert_allclose(ours, reference, rtol=1e-9, atol=1e-300)
    assert ours.sum() == pytest.approx(1)


def test_softmax_overflows_nowhere() -> None:
    scores = np.array([[3e38, -3e38, 3e38]], dtype=np.float32)
    assert tasks.softmax(scores).tolist() == [[0.5, 0.0, 0.5]]


def ranked(scores: Any, top_k: int = 5, labels: list[str] | None = None, activation: Any = "none") -> list[Any]:
    answer = tasks.classification(np.asarray(scores), activation=activation, top_k=top_k, labels=labels)
    return [tuple(entry.values()) for entry in answer]


def test_the_best_come_first_with_their_labels() -> None:
    assert ranked([0.5, -1, 2, 0], top_k=2, labels=["a", "b", "c", "d"]) == [("c", 2, 2.0), ("a", 0, 0.5)]


def test_keys() -> None:
    (entry,) = tasks.classification(np.array([1.0]), activation="none", top_k=1, labels=None)
    assert entry == {"label": "0", "index": 0, "score": 1.0}
    assert [type(value) for value in entry.values()] == [str, int, float]


def test_equal_scores_stay_in_order() -> None:
    assert [index for _, index, _ in ranked([1, 2, 1, 2, 1])] == [1, 3, 0, 2, 4]
    assert [index for _, index, _ in ranked([7] * 9, top_k=9)] == [*range(9)]


def test_there_are_no_more_than_there_are() -> None:
    assert len(ranked([1, 2, 3], top_k=50)) == 3


def test_a_class_without_a_label_is_its_index() -> None:
    assert ranked([1, 2, 3], labels=["a"])[0][0] == "2"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int8, np.int64, np.float16, np.float32, np.float64, bool])
def test_any_kind_of_number_is_ranked(dtype: Any) -> None:
    scores = np.array([0, 1, 0], dtype=dtype) if dtype is bool else np.array([0, 3, 5], dtype=dtype)
    assert ranked(scores)[0][1] == (1 if dtype is bool else 2)
    assert ranked(np.array([0, 200, 100], dtype=np.uint8))[0] == ("1", 1, 200.0)


def test_scores_of_one_image_with_a_dimension_of_one() -> None:
    assert ranked([[1, 2, 3]], top_k=1) == [("2", 2, 3.0)]


def test_softmax_on_the_way() -> None:
    scores = ranked([1.0, 2.0, 3.0], activation="softmax")
    assert [index for _, index, _ in scores] == [2, 1, 0]
    assert sum(score for *_, score in scores) == pytest.approx(1)


def test_raw() -> None:
    assert tasks.raw({"y": np.array([1.5, 2])}) == [1.5, 2.0]
    assert tasks.raw({"y": np.array([1]), "z": np.array(2)}) == {"y": [1], "z": 2}
    words = np.empty(2, dtype=object)
    words[:] = [b"caf\xc3\xa9", b"\xff"]
    assert tasks.raw({"y": words}) == ["café", "\ufffd"]
