"""JSON in and out: bounded depth, honest numbers."""

import json
import math
import time
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oip import json_text
from oip.errors import Internal, InvalidArgument
from oip.json_text import MAX_DEPTH, deeper_than, dumps, loads

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def depth_of(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_loads_reads_every_kind_of_buffer(kind):
    assert loads(kind(b'{"a": [1, 2.5, "x", null, true]}')) == {"a": [1, 2.5, "x", None, True]}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"{'a': 1}",
        b"nul",
        b"NaN",
        b"[Infinity]",
        b"1 2",
        b'{"a": 1} trailing',
        b"\xff\xfe[\x00]\x00",
        b"\xef\xbb\xbf[]",
        b'"\xff"',
        b'"\\ud800"',
        b'"\x00"',
        b"\x00",
        b"01",
        b"]" * 500,
        b"[}" * 500,
    ],
)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(InvalidArgument, match=r"not valid JSON|deeper"):
        loads(text)


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (b"[" * 100 + b"]" * 100, False),
        (b"[" * 101 + b"]" * 101, True),
        (b'{"a":' * 100 + b"1" + b"}" * 100, False),
        (b'{"a":' * 101 + b"1" + b"}" * 101, True),
        (b'[{"a":' * 51 + b"1" + b"}]" * 51, True),
        (b"[" + b"[]," * 5000 + b"[]]", False),
        (b'["' + b"[" * 500 + b'"]', False),
        (b'["' + b'\\"[' * 500 + b'"]', False),
        (b'["\\\\",' + b"[" * 100 + b"]" * 100 + b"]", True),
        (b'["\\\\\\"' + b"[" * 200 + b'"]', False),
        (b'{"' + b"{" * 300 + b'": "' + b"}" * 300 + b'"}', False),
        (b"[" * 100_000, True),
        (b"[]" * 70_000 + b"[" * 101, True),
    ],
)
def test_depth(text, deep):
    assert deeper_than(text, MAX_DEPTH) is deep
    if deep:
        with pytest.raises(InvalidArgument, match="nested deeper than 100 levels"):
            loads(text)


@given(DOCUMENTS, st.integers(0, 6))
def test_depth_is_the_depth_of_the_value(value, limit):
    text = json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")
    assert deeper_than(text, limit) is (depth_of(value) > limit)


@given(st.lists(st.sampled_from(['"', "\\", "[", "]", "{", "}", "a", ",", "\n"]), max_size=60).map("".join))
def test_no_valid_json_that_is_too_deep_gets_through(text):
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        deeper_than(text.encode(), 2)  # whatever it says, the parser refuses the text
    else:
        assert deeper_than(text.encode(), 2) is (depth_of(value) > 2)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * (4 << 20),
        b"[" * (2 << 20) + b"]" * (2 << 20),
        b'["' + b'\\"[' * (1 << 20),
        b'["' + b'"[' * (1 << 20),
        b"[" * 101 + b'"' + b"\\" * (1 << 20),
        b"[1," * 101 + b'"' + b"[" * (4 << 20) + b'"',
    ],
    ids=range(6),
)
def test_hostile_nesting_is_refused_in_linear_time(text):
    begun = time.perf_counter()
    with pytest.raises(InvalidArgument):
        loads(text)
    assert time.perf_counter() - begun < 2


@given(DOCUMENTS)
def test_dumps_and_loads_are_inverse(value):
    finite = json.loads(json.dumps(value), parse_constant=lambda _: 0.0)
    assert loads(dumps(finite)) == finite


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.arange(4).reshape(2, 2), b"[[0,1],[2,3]]"),
        (np.arange(6).reshape(2, 3).T, b"[[0,3],[1,4],[2,5]]"),
        (np.array([1, 2], ">i4"), b"[1,2]"),
        (np.array([0.1], np.float32), b"[0.1]"),
        (np.array([1.5], np.float16), b"[1.5]"),
        (np.array([True]), b"[true]"),
        (np.array([b"a", "b", 1], object), b'["a","b",1]'),
        (np.array(["a"]), b'["a"]'),
        (np.float32(0.1), b"0.1"),
        (np.int64(7), b"7"),
        (np.bool_(True), b"true"),
        (b"bytes", b'"bytes"'),
        (MappingProxyType({"a": (1, None)}), b'{"a":[1,null]}'),
        ({"max": 2**64 - 1, "min": -(2**63)}, b'{"max":18446744073709551615,"min":-9223372036854775808}'),
    ],
)
def test_dumps_knows_numpy(value, text):
    assert dumps(value) == text


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float16("inf")])
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda bad: bad, "its top"),
        (lambda bad: np.array([1, bad]), "its top"),
        (lambda bad: {"predictions": [{"score": 1.0}, {"score": bad}]}, r"\.predictions\[1\]\.score"),
        (lambda bad: {"a": None, "b": np.array([bad], np.float32)}, r"\.b"),
        (lambda bad: {"a": (1, (bad,))}, r"\.a\[1\]\[0\]"),
        (lambda bad: {"a": np.array([None, bad], object)}, r"\.a\[1\]"),
        (lambda bad: MappingProxyType({"a": MappingProxyType({"b": bad})}), r"\.a\.b"),
    ],
)
def test_dumps_says_where_a_number_is_none(wrap, path, bad):
    with pytest.raises(Internal, match=f"NaN or infinity at {path}, which JSON cannot carry"):
        dumps(wrap(bad))


def test_null_itself_is_fine():
    assert dumps({"a": None, "b": "null", "c": np.array([None, "null"], object)}) == (
        b'{"a":null,"b":"null","c":[null,"null"]}'
    )


@pytest.mark.parametrize("value", [object(), {1: "a"}, {"a": {1, 2}}, 2**64, "\ud800", b"\xff", np.array([1j])])
def test_what_json_cannot_carry_is_an_error_of_ours(value):
    with pytest.raises(Internal, match="cannot be written as JSON"):
        dumps({"a": value})


def test_an_answer_that_nests_without_end_is_an_error_of_ours():
    value = []
    value.append(value)
    with pytest.raises(Internal):
        dumps(value)


def test_the_limit_is_below_what_the_parser_itself_refuses():
    assert MAX_DEPTH == 100
    assert json_text.loads(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
