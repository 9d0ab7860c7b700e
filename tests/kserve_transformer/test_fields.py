"""Finding the picture inside an instance, and base64."""

import base64
from typing import Any

import pytest

from kserve_transformer import fields
from oip.errors import InvalidArgument

FIELDS = ("image_bytes.b64", "image.b64", "b64", "data")


@pytest.mark.parametrize(
    ("instance", "found"),
    [
        ({"image_bytes": {"b64": "x"}}, ("image_bytes.b64", "x")),
        ({"image": {"b64": "x"}, "caption": "y"}, ("image.b64", "x")),
        ({"b64": "x"}, ("b64", "x")),
        ({"data": "x"}, ("data", "x")),
        ({"data": "later", "b64": "x"}, ("b64", "x")),
        ({"image": "no object", "data": "x"}, ("data", "x")),
        ({"image": {"url": "y"}, "data": "x"}, ("data", "x")),
        ({"b64": None}, ("b64", None)),
    ],
)
def test_the_first_field_that_is_there_counts(instance: Any, found: tuple[str, Any]) -> None:
    assert fields.find(instance, FIELDS) == found


def test_fields_may_be_deep() -> None:
    assert fields.find({"a": {"b": {"c": {"d": "x"}}}}, ["a.b.c.d"]) == ("a.b.c.d", "x")


@pytest.mark.parametrize(
    ("instance", "got"),
    [
        ({}, "an object with no keys"),
        ({"image_bytes": "x", "z": 1}, "an object with 'image_bytes', 'z'"),
        ("x", "a string"),
        (None, "null"),
        (3, "a number"),
        (True, "a boolean"),
        ([1], "a list"),
        ({str(n): n for n in range(99)}, "'7'"),
        ({"k" * 999: 1}, "k'"),
    ],
)
def test_an_instance_without_a_picture(instance: Any, got: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        fields.find(instance, FIELDS)
    assert caught.value.message.startswith(
        "no picture; it must be base64 under one of image_bytes.b64, image.b64, b64,"
    )
    assert caught.value.message.endswith(got)
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("size", [1, 2, 3, 4, 57, 58, 1000])
def test_base64(size: int) -> None:
    data = bytes(range(256)) * 4
    text = base64.b64encode(data[:size]).decode()
    assert fields.decode_base64(text, "b64", size) == data[:size]
    broken = base64.encodebytes(data[:size]).decode()
    assert fields.decode_base64(broken, "b64", 2 * size + 9) == data[:size]
    if size > 1:
        with pytest.raises(
            InvalidArgument, match=f"'b64' holds a picture of about {size} bytes, more than the limit of"
        ):
            fields.decode_base64(text, "b64", size - 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "'f' must be a base64 string, got null"),
        ({"b64": "x"}, "'f' must be a base64 string, got an object"),
        (7, "'f' must be a base64 string, got a number"),
        (["eA=="], "'f' must be a base64 string, got a list"),
        ("", "'f' is empty"),
        ("   ", "'f' is empty"),
        ("eA=", "'f' is not valid base64"),
        ("eA", "'f' is not valid base64"),
        ("e", "'f' is not valid base64"),
        ("eA==eA==", "'f' is not valid base64"),
        ("e!==", "'f' is not valid base64"),
        ("ünïc", "'f' is not valid base64"),
        ("-_-_", "'f' is not valid base64"),
        ("data:image/png;base64,eA==", "'f' is not valid base64"),
    ],
)
def test_what_is_no_base64(value: Any, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        fields.decode_base64(value, "f", 1000)
    assert caught.value.message.startswith(message)


def test_the_length_is_judged_before_anything_is_decoded() -> None:
    with pytest.raises(
        InvalidArgument, match="holds a picture of about 15000000 bytes, more than the limit of 10485760"
    ):
        fields.decode_base64("!" * 20_000_000, "f", 10 * 2**20)
