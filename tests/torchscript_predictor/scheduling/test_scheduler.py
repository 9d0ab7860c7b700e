"""The queue before a model version, with a clock that is moved by hand."""

import asyncio
import gc
import weakref

import numpy as np
import pytest

from oip.errors import DeadlineExceeded, Internal, Unavailable
from torchscript_predictor.scheduler import Scheduler

INPUTS = {"x": np.zeros(1)}
OUTPUTS = {"y": np.ones(1)}


class ManualClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


async def settled(scheduler, entry):
    return await asyncio.wait_for(scheduler.finish(entry), 5)


def test_entries_are_taken_in_order_and_answered():
    async def main():
        scheduler = Scheduler("m", 10)
        entries = [scheduler.submit({"x": np.array([n])}, None) for n in range(3)]
        for n in range(3):
            entry, inputs = scheduler.take()
            assert inputs["x"] == [n]
            entry.resolve({"y": np.array([n * 2])})
        assert [(await settled(scheduler, entry))["y"][0] for entry in entries] == [0, 2, 4]

    asyncio.run(main())


def test_an_error_reaches_the_caller():
    async def main():
        scheduler = Scheduler("m", 10)
        entry = scheduler.submit(INPUTS, None)
        scheduler.take()[0].resolve(Internal("broken"))
        with pytest.raises(Internal, match="broken"):
            await settled(scheduler, entry)

    asyncio.run(main())


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    async def main():
        scheduler = Scheduler("m", 2)
        scheduler.submit(INPUTS, None)
        scheduler.submit(INPUTS, None)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size: 2") as caught:
            scheduler.submit(INPUTS, None)
        assert caught.value.retry_after_seconds == 1
        scheduler.take()
        scheduler.submit(INPUTS, None)
        assert repr(scheduler) == "<Scheduler m: 2 queued>"

    asyncio.run(main())


def test_only_the_caller_who_has_gone_gets_no_execution():
    async def main():
        scheduler = Scheduler("m", 10)
        entries = [scheduler.submit({"x": np.array([n])}, None) for n in range(4)]
        waiting = [asyncio.create_task(scheduler.finish(entry)) for entry in entries]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.sleep(0)
        assert entries[1].inputs is None  # a dead entry holds no tensors while it waits
        for n in (0, 2, 3):
            entry, inputs = scheduler.take()
            assert inputs["x"] == [n]
            entry.resolve(OUTPUTS)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [False, True, False, False]
        assert scheduler.queued == 0

    asyncio.run(main())


def test_an_entry_that_is_answered_already_is_not_taken():
    async def main():
        scheduler = Scheduler("m", 10)
        answered, waiting = scheduler.submit(INPUTS, None), scheduler.submit(INPUTS, None)
        answered.settle(OUTPUTS)
        assert scheduler.take()[0] is waiting

    asyncio.run(main())


def test_resolving_a_caller_who_has_gone_is_a_no_op():
    async def main():
        scheduler = Scheduler("m", 10)
        entry = scheduler.submit(INPUTS, None)
        taken, _ = scheduler.take()
        waiting = asyncio.create_task(scheduler.finish(entry))
        await asyncio.sleep(0)
        waiting.cancel()
        taken.resolve(OUTPUTS)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0)

    asyncio.run(main())


def test_an_entry_of_a_closed_loop_is_resolved_into_nothing():
    async def main():
        return Scheduler("m", 10).submit(INPUTS, None)

    entry = asyncio.run(main())
    entry.resolve(OUTPUTS)


def test_an_expired_entry_is_never_executed():
    async def main():
        clock = ManualClock()
        scheduler = Scheduler("m", 10, clock)
        expired = scheduler.submit(INPUTS, 101.0)
        alive = scheduler.submit(INPUTS, 103.0)
        clock.now = 102.0
        taken, _ = scheduler.take()
        assert taken is alive
        assert taken.queue_seconds == 2.0
        with pytest.raises(DeadlineExceeded):
            await settled(scheduler, expired)

    asyncio.run(main())


def test_a_deadline_that_has_passed_is_not_even_queued():
    async def main():
        scheduler = Scheduler("m", 10, ManualClock())
        with pytest.raises(DeadlineExceeded, match="before it was queued"):
            scheduler.submit(INPUTS, 100.0)
        assert scheduler.queued == 0

    asyncio.run(main())


def test_the_caller_hears_at_the_deadline_while_the_model_still_works():
    async def main():
        clock = ManualClock()
        scheduler = Scheduler("m", 10, clock)
        entry = scheduler.submit(INPUTS, 100.5)
        taken, _ = scheduler.take()
        clock.now = 100.5
        with pytest.raises(DeadlineExceeded, match="before the model had answered"):
            await settled(scheduler, entry)
        taken.settle(OUTPUTS)  # too late, and harmless

    asyncio.run(main())


def test_an_answer_in_time_leaves_no_timer():
    async def main():
        scheduler = Scheduler("m", 10, clock := ManualClock())
        entry = scheduler.submit(INPUTS, clock.now + 1000)
        scheduler.take()[0].resolve(OUTPUTS)
        await settled(scheduler, entry)
        gone = weakref.ref(entry.future)
        del entry
        await asyncio.sleep(0)
        gc.collect()
        assert gone() is None  # a pending timer would hold it

    asyncio.run(main())


def test_close_finishes_what_waits_and_refuses_the_rest():
    async def main():
        scheduler = Scheduler("m", 10)
        scheduler.submit(INPUTS, None)
        scheduler.close(instances=2)
        scheduler.close(instances=2)
        with pytest.raises(Unavailable, match="has stopped accepting"):
            scheduler.submit(INPUTS, None)
        assert [scheduler.take() is None for _ in range(3)] == [False, True, True]
        assert scheduler.queued == 0

    asyncio.run(main())


def test_abandon_refuses_what_still_waits():
    async def main():
        scheduler = Scheduler("m", 10)
        entry = scheduler.submit(INPUTS, None)
        scheduler.close(instances=1)
        scheduler.abandon()
        with pytest.raises(Unavailable, match="stopped before"):
            await settled(scheduler, entry)
        assert scheduler.queued == 0

    asyncio.run(main())
