"""The parts of the door that no transport is needed for."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from oip.errors import DeadlineExceeded, InvalidArgument, Unavailable
from oip.server import door
from oip.server.door import Admission, check_version, envoy_deadline, timeout_parameter, until, usable_request_id


def test_a_timer_that_is_a_little_early_still_is_the_deadline(monkeypatch):
    # The module's own clock alone: the event loop's timers need one that moves.
    monkeypatch.setattr(door, "time", SimpleNamespace(monotonic=lambda: 100.0))

    async def wait() -> None:
        async with until(100.001):
            await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded):
        asyncio.run(wait())


def test_a_timeout_of_the_work_s_own_is_not_taken_for_the_deadline():
    async def fail() -> None:
        async with until(time.monotonic() + 60):
            raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(fail())


def test_admission_counts_refuses_and_tells_when_it_is_empty():
    async def life() -> None:
        admission = Admission(1)
        await admission.idle()
        admission.enter()
        admission.check()
        admission.enter()
        with pytest.raises(Unavailable) as refused:
            admission.check()
        assert refused.value.retry_after_seconds == 1
        empty = asyncio.ensure_future(admission.idle())
        await asyncio.sleep(0)
        admission.leave()
        assert not empty.done()
        admission.leave()
        await empty

    asyncio.run(life())


@pytest.mark.parametrize("given", ["", "a b", "a\n", "\u00e9", "a" * 129])
def test_an_id_that_cannot_be_used_is_replaced(given):
    assert usable_request_id(given) != usable_request_id(given)
    assert usable_request_id("a-1") == "a-1"


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "x", "1" * 16])
def test_an_odd_header_of_the_proxy_is_no_deadline(value):
    assert envoy_deadline(value) is None


@pytest.mark.parametrize("value", [-1, True, "1", 1.5, None])
def test_an_odd_timeout_is_refused(value):
    with pytest.raises(InvalidArgument, match="parameter 'timeout'"):
        timeout_parameter({"timeout": value})
    assert timeout_parameter({}) is timeout_parameter({"timeout": 0}) is None


def test_a_version_is_a_number_or_nothing():
    check_version("")
    check_version("12")
    for version in ("x", "-1", "1.0", "1" * 19):
        with pytest.raises(InvalidArgument, match="a model version is a number"):
            check_version(version)
