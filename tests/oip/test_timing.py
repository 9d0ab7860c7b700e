"""Stopwatch and Server-Timing: what is written adds up, and is read back as it was."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oip.timing import Stopwatch, parse_header

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))
NAMES = st.from_regex(r"[a-z_][a-z0-9_-]{0,20}", fullmatch=True).filter(lambda name: name != "total")
LAPS = st.lists(st.tuples(NAMES, st.floats(0, 1e5), PRINTABLE), unique_by=lambda lap: lap[0])


@given(LAPS)
def test_a_header_is_read_back_and_adds_up_to_its_total(laps):
    stopwatch = Stopwatch()
    stopwatch.laps = laps
    stages = parse_header(stopwatch.header())
    total, _ = stages.pop("total")
    assert stages == {name: (float(f"{seconds * 1000:.3f}"), text) for name, seconds, text in laps}
    assert total == pytest.approx(sum(milliseconds for milliseconds, _ in stages.values()), abs=0.00051)


@given(st.text())
def test_a_description_cannot_break_out_of_its_header(text):
    stopwatch = Stopwatch()
    stopwatch.lap("a")
    stopwatch.describe(text)
    header = stopwatch.header()
    assert header.isascii()
    assert header.isprintable()
    assert set(parse_header(header)) == {"a", "total"}


@pytest.mark.parametrize(
    ("header", "stages"),
    [
        ("", {}),
        ("a;dur=1", {"a": (1.0, "")}),
        ("a;dur=1.5, b;dur=2", {"a": (1.5, ""), "b": (2.0, "")}),
        ("a;dur=1,b;dur=2", {"a": (1.0, ""), "b": (2.0, "")}),
        (" a ; dur = 1 ; desc = x ", {"a": (1.0, "x")}),
        ('a;desc="b;dur=9, c";dur=1', {"a": (1.0, "b;dur=9, c")}),
        (r'a;desc="say \"hi\" \\";dur=1', {"a": (1.0, r'say "hi" \ '.strip())}),
        ("A;DUR=1;DESC=x", {"A": (1.0, "x")}),
        ("cache;miss;dur=2", {"cache": (2.0, "")}),
        # oddities
        ("a", {}),
        ("a;dur=", {}),
        ("a;dur=x, b;dur=2", {"b": (2.0, "")}),
        ("a;dur=nan, b;dur=inf, c;dur=1e999", {}),
        (";dur=1, ;;;, ,", {}),
        ('a;desc="unclosed, b;dur=2', {}),
    ],
)
def test_parse_header(header, stages):
    assert parse_header(header) == stages


@given(st.text())
def test_parse_header_takes_anything(header):
    parse_header(header)


def test_parse_header_takes_no_time_for_a_hostile_header():
    begun = time.perf_counter()
    for header in ('"' * 8000, '\\"' * 4000, 'a;"' * 3000, ";=" * 4000, "a" * 8000):
        parse_header(header)
    assert time.perf_counter() - begun < 1


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


def test_laps_are_consecutive(clock):
    stopwatch = Stopwatch()
    clock.now += 1
    assert stopwatch.lap("first") == 1
    clock.now += 2
    stopwatch.lap("second")
    stopwatch.describe("in words")
    assert stopwatch.laps == [("first", 1, ""), ("second", 2, "in words")]
    assert stopwatch.header() == 'first;dur=1000.000, second;dur=2000.000;desc="in words", total;dur=3000.000'


@pytest.mark.parametrize(
    ("passed", "given_stages", "laps"),
    [
        (5, [("queue", 1), ("compute", 3)], [1, 4]),
        (5, [("queue", 2), ("compute", 9), ("rest", 0)], [2, 3, 0]),
        (5, [("only", 1)], [5]),
        (5, [("queue", -1), ("compute", 2)], [0, 5]),
        (0, [("queue", 1), ("compute", 1)], [0, 0]),
    ],
)
def test_recorded_stages_never_take_more_than_the_time_that_passed(clock, passed, given_stages, laps):
    stopwatch = Stopwatch()
    clock.now += passed
    stopwatch.record(given_stages)
    assert [seconds for _, seconds, _ in stopwatch.laps] == laps
    assert sum(laps) == passed
    clock.now += 1
    assert stopwatch.lap("next") == 1
