"""The schedule policy extension's request parameters."""

import pytest

from oip.errors import InvalidArgument
from torchscript_predictor.scheduling.parameters import schedule_parameters


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, (0, 0)),
        ({"priority": 2, "other": "x"}, (2, 0)),
        ({"timeout": 5}, (0, 5)),
        ({"priority": 2**64 - 1}, (2**64 - 1, 0)),
    ],
)
def test_they_are_read(parameters, expected):
    assert schedule_parameters(parameters) == expected


@pytest.mark.parametrize("value", [-1, 2**64, 1.0, "1", True, None, [1]])
@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_others_than_whole_numbers_are_refused(name, value):
    with pytest.raises(InvalidArgument, match=f"parameter '{name}' must be"):
        schedule_parameters({name: value})
