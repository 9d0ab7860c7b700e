"""Many requests' tensors as one batch's, and back."""

import numpy as np
import pytest

from oip.errors import Internal
from torchscript_predictor.scheduling.batch import gather, scatter, shape_key


def test_requests_are_concatenated_and_split_again():
    requests = [{"x": np.full((rows, 2), rows), "s": np.full(rows, b"%d" % rows, object)} for rows in (1, 0, 3)]
    batch = gather(requests)
    assert batch["x"].tolist() == [[1, 1], [3, 3], [3, 3], [3, 3]]
    assert batch["s"].tolist() == [b"1", b"3", b"3", b"3"]
    parts = scatter({"y": batch["x"] * 2, "s": batch["s"]}, [1, 0, 3])
    assert [part["y"].tolist() for part in parts] == [[[2, 2]], [], [[6, 6]] * 3]
    assert [part["s"].tolist() for part in parts] == [[b"1"], [], [b"3"] * 3]


def test_one_request_is_not_copied():
    request = {"x": np.zeros((2, 2))}
    assert gather([request])["x"] is request["x"]
    outputs = {"y": np.zeros(7)}  # nothing to split, nothing to check
    assert scatter(outputs, [2]) == [outputs]


@pytest.mark.parametrize("shape", [(), (2,), (4, 3)])
def test_an_output_without_a_row_for_each_of_the_batchs_cannot_be_split(shape):
    with pytest.raises(Internal, match=r"output 'y' has shape .* for a batch of 3"):
        scatter({"y": np.zeros(shape)}, [1, 2])


def test_what_may_share_a_batch():
    one = {"a": np.zeros((1, 2), np.float32), "b": np.zeros((1, 3), np.int64)}
    assert shape_key(one) == shape_key({"b": np.ones((5, 3), np.int64), "a": np.zeros((5, 2), np.float32)})
    for other in (
        {"a": np.zeros((1, 3), np.float32), "b": one["b"]},
        {"a": np.zeros((1, 2), np.float16), "b": one["b"]},
        {"a": one["a"]},  # an optional input that is left out
    ):
        assert shape_key(one) != shape_key(other)
