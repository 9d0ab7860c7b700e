"""The queue before a model version, with a clock that is moved by hand."""

import asyncio
import gc
import threading
import weakref

import numpy as np
import pytest

from oip.errors import DeadlineExceeded, Internal, Unavailable
from torchscript_predictor.scheduling.policy import DynamicBatching, QueuePolicy, TimeoutAction
from torchscript_predictor.scheduling.scheduler import Scheduler, Seat

INPUTS = {"x": np.zeros(1)}
OUTPUTS = {"y": np.ones(1)}


class ManualClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def batching(max_queue_size=10, max_batch_size=4, clock=None, **policy):
    policies = policy.pop("queue_policies", (QueuePolicy(),))
    return Scheduler(
        "m",
        max_queue_size,
        max_batch_size=max_batch_size,
        dynamic_batching=DynamicBatching(queue_policies=policies, **policy),
        clock=clock or ManualClock(),
    )


def row(value):
    return {"x": np.array([[value]])}


def values(batch):
    """What a batch holds, by its requests' first elements; None for no batch."""
    return None if batch is None else [int(inputs["x"].flat[0]) for inputs in batch.inputs]


def take(scheduler):
    return scheduler.take(Seat())


def answer(scheduler, batch, outputs=OUTPUTS):
    scheduler.answer([(entry, outputs) for entry in batch.entries])


async def settled(scheduler, entry):
    return await asyncio.wait_for(scheduler.finish(entry), 5)


def test_entries_are_taken_in_order_and_answered():
    async def main():
        scheduler = Scheduler("m", 10)
        entries = [scheduler.submit({"x": np.array([n])}, None) for n in range(3)]
        for n in range(3):
            batch = take(scheduler)
            assert values(batch) == [n]
            answer(scheduler, batch, {"y": np.array([n * 2])})
        assert take(scheduler) is None
        assert [(await settled(scheduler, entry))["y"][0] for entry in entries] == [0, 2, 4]

    asyncio.run(main())


def test_an_error_reaches_the_caller():
    async def main():
        scheduler = Scheduler("m", 10)
        entry = scheduler.submit(INPUTS, None)
        answer(scheduler, take(scheduler), Internal("broken"))
        with pytest.raises(Internal, match="broken"):
            await settled(scheduler, entry)

    asyncio.run(main())


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    async def main():
        scheduler = Scheduler("m", 2)
        scheduler.submit(INPUTS, None)
        scheduler.submit(INPUTS, None)
        with pytest.raises(Unavailable, match=r"Exceeds maximum queue size: 2 requests wait for model 'm'$") as caught:
            scheduler.submit(INPUTS, None)
        assert caught.value.retry_after_seconds == 1
        take(scheduler)
        scheduler.submit(INPUTS, None)
        assert repr(scheduler) == "<Scheduler m: 2 queued, 0 instances idle>"
        assert scheduler.statistics().rejected == 1

    asyncio.run(main())


def test_each_priority_level_has_a_bound_of_its_own_within_the_servers():
    async def main():
        scheduler = batching(
            4, queue_policies=(QueuePolicy(max_queue_size=1), QueuePolicy(max_queue_size=2), QueuePolicy())
        )
        scheduler.submit(row(0), None, priority=1)
        with pytest.raises(Unavailable, match=r"size: 1 requests wait for model 'm' at priority 1$") as caught:
            scheduler.submit(row(0), None, priority=1)
        assert caught.value.retry_after_seconds == 1
        scheduler.submit(row(0), None, priority=2)
        scheduler.submit(row(0), None, priority=2)
        scheduler.submit(row(0), None, priority=3)
        with pytest.raises(Unavailable, match=r"size: 4 requests wait for model 'm'$"):
            scheduler.submit(row(0), None, priority=3)

    asyncio.run(main())


def test_a_caller_who_left_makes_room():
    async def main():
        scheduler = Scheduler("m", 1)
        waiting = asyncio.create_task(scheduler.finish(scheduler.submit(INPUTS, None)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert scheduler.queued == 0
        scheduler.submit(INPUTS, None)
        assert scheduler.statistics().cancelled == 1

    asyncio.run(main())


@pytest.mark.parametrize("scheduler", [Scheduler("m", 10), batching()], ids=["alone", "batching"])
def test_only_the_caller_who_has_gone_gets_no_execution(scheduler):
    async def main():
        entries = [scheduler.submit(row(n), None) for n in range(4)]
        waiting = [asyncio.create_task(scheduler.finish(entry)) for entry in entries]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.sleep(0)
        assert entries[1].inputs is None  # a dead entry holds no tensors
        taken = []
        while batch := take(scheduler):
            taken += values(batch)
            answer(scheduler, batch)
        assert taken == [0, 2, 3]
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(each, asyncio.CancelledError) for each in answers] == [False, True, False, False]
        assert scheduler.queued == 0

    asyncio.run(main())


def test_a_caller_who_has_just_gone_is_not_taken():
    async def main():
        scheduler = batching()
        entries = [scheduler.submit(row(n), None) for n in range(2)]
        entries[0].future.cancel()  # what cancelling its task does first
        assert values(take(scheduler)) == [1]
        assert scheduler.statistics().cancelled == 1

    asyncio.run(main())


def test_answering_a_caller_who_has_gone_is_a_no_op():
    async def main():
        scheduler = Scheduler("m", 10)
        entry = scheduler.submit(INPUTS, None)
        batch = take(scheduler)
        waiting = asyncio.create_task(scheduler.finish(entry))
        await asyncio.sleep(0)
        waiting.cancel()
        answer(scheduler, batch)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0)
        assert scheduler.statistics().cancelled == 0  # it was executed

    asyncio.run(main())


def test_an_entry_of_a_closed_loop_is_answered_into_nothing():
    scheduler = Scheduler("m", 10)

    async def main():
        scheduler.submit(INPUTS, None)

    asyncio.run(main())
    answer(scheduler, take(scheduler))


def test_an_expired_entry_is_never_executed():
    async def main():
        clock = ManualClock()
        scheduler = Scheduler("m", 10, clock=clock)
        expired = scheduler.submit(row(0), 101.0)
        scheduler.submit(row(1), 103.0)
        clock.now = 102.0
        batch = take(scheduler)
        assert values(batch) == [1]
        assert batch.entries[0].queue_seconds == 2.0
        assert scheduler.statistics().expired == 1
        with pytest.raises(DeadlineExceeded, match="while it was queued"):
            await settled(scheduler, expired)

    asyncio.run(main())


def test_a_deadline_that_has_passed_is_not_even_queued():
    async def main():
        scheduler = Scheduler("m", 10, clock=ManualClock())
        with pytest.raises(DeadlineExceeded, match="before it was queued"):
            scheduler.submit(INPUTS, 100.0)
        assert scheduler.queued == 0

    asyncio.run(main())


def test_the_caller_hears_at_the_deadline_in_the_queue_and_in_execution():
    async def main():
        clock = ManualClock()
        scheduler = Scheduler("m", 10, clock=clock)
        executing, queued = (scheduler.submit(INPUTS, 100.5) for _ in range(2))
        batch = take(scheduler)
        clock.now = 100.5
        with pytest.raises(DeadlineExceeded, match="before the model had answered"):
            await settled(scheduler, executing)
        answer(scheduler, batch)  # too late, and harmless
        with pytest.raises(DeadlineExceeded, match="while it was queued"):
            await settled(scheduler, queued)
        assert scheduler.queued == 0

    asyncio.run(main())


def test_an_answer_in_time_leaves_no_timer():
    async def main():
        scheduler = batching(queue_policies=(QueuePolicy(default_timeout_microseconds=10**9),))
        entry = scheduler.submit(row(0), 1100.0)
        answer(scheduler, take(scheduler))
        await settled(scheduler, entry)
        gone = weakref.ref(entry.future)
        del entry
        await asyncio.sleep(0)
        gc.collect()
        assert gone() is None  # a pending timer would hold it

    asyncio.run(main())


# Queue policies

REJECT = QueuePolicy(TimeoutAction.REJECT, default_timeout_microseconds=2_000_000)
DELAY = QueuePolicy(TimeoutAction.DELAY, default_timeout_microseconds=2_000_000)


def test_reject_answers_when_the_timeout_passes_in_the_queue():
    async def main():
        clock = ManualClock()
        scheduler = batching(clock=clock, max_batch_size=1, queue_policies=(REJECT,))
        executing, waiting, walked = (scheduler.submit(row(n), None) for n in range(3))
        batch = take(scheduler)
        clock.now = 102.0
        with pytest.raises(Unavailable, match=r"^Request timeout expired$") as caught:
            await settled(scheduler, waiting)
        assert caught.value.retry_after_seconds == 1
        assert take(scheduler) is None  # which finds the third one late
        with pytest.raises(Unavailable, match=r"^Request timeout expired$"):
            await settled(scheduler, walked)
        answer(scheduler, batch)
        await settled(scheduler, executing)  # the timeout is the queue's alone
        assert scheduler.statistics().timed_out == 2

    asyncio.run(main())


def test_delay_puts_it_behind_the_others():
    async def main():
        clock = ManualClock()
        scheduler = batching(clock=clock, max_batch_size=1, queue_policies=(DELAY,))
        entries = [scheduler.submit(row(n), None) for n in range(2)]
        clock.now = 102.0
        entries += [scheduler.submit(row(n), None) for n in range(2, 4)]
        taken = []
        while batch := take(scheduler):
            taken += values(batch)
            answer(scheduler, batch)
        assert taken == [2, 3, 0, 1]
        await asyncio.gather(*(settled(scheduler, entry) for entry in entries))
        assert scheduler.statistics().timed_out == 0

    asyncio.run(main())


def test_delayed_entries_can_be_withdrawn_and_count_as_queued():
    async def main():
        clock = ManualClock()
        scheduler = batching(2, clock=clock, max_batch_size=1, queue_policies=(DELAY,))
        scheduler.submit(row(0), None)
        scheduler.submit(row(1), None)
        clock.now = 102.0
        assert values(take(scheduler)) == [0]  # both are late, so the first comes first
        assert scheduler.queued == 1
        scheduler.submit(row(2), None)
        with pytest.raises(Unavailable):
            scheduler.submit(row(3), None)
        scheduler.abandon()
        assert scheduler.queued == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("allowed", "default", "asked", "seconds"),
    [
        (True, 2_000_000, 1_000_000, 1.0),
        (True, 2_000_000, 3_000_000, 2.0),  # only shorter
        (True, 2_000_000, 0, 2.0),
        (True, 0, 1_000_000, 1.0),
        (False, 2_000_000, 1_000_000, 2.0),
        (False, 0, 1_000_000, None),
    ],
)
def test_a_request_may_shorten_its_timeout_where_allowed(allowed, default, asked, seconds):
    async def main():
        policy = QueuePolicy(default_timeout_microseconds=default, allow_timeout_override=allowed)
        entry = batching(queue_policies=(policy,)).submit(row(0), None, timeout_microseconds=asked)
        assert entry.timeout_at == (None if seconds is None else 100.0 + seconds)

    asyncio.run(main())


def test_priorities():
    async def main():
        scheduler = batching(max_batch_size=1, default_priority_level=2, queue_policies=(QueuePolicy(),) * 3)
        for value, priority in enumerate([3, 0, 1, 2, 99]):  # 0 and what there is not: the default
            scheduler.submit(row(value), None, priority=priority)
        assert [values(take(scheduler))[0] for _ in range(5)] == [2, 1, 3, 4, 0]

    asyncio.run(main())


def test_answers_in_order_of_arrival_where_asked():
    async def main():
        scheduler = batching(max_batch_size=1, preserve_ordering=True)
        entries = [scheduler.submit(row(n), None) for n in range(4)]
        done = []
        waiting = [asyncio.create_task(settled(scheduler, entry)) for entry in entries]
        for number, task in enumerate(waiting):
            task.add_done_callback(lambda _, number=number: done.append(number))
        batches = [take(scheduler) for _ in range(4)]
        answer(scheduler, batches[2])
        answer(scheduler, batches[3], Internal("its own"))
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        assert done == []
        waiting[0].cancel()  # who has gone holds nobody up
        answer(scheduler, batches[1])
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert done == [0, 1, 2, 3]
        assert isinstance(answers[3], Internal)

    asyncio.run(main())


# Batches


def test_what_waits_is_merged_and_counted_by_rows():
    async def main():
        scheduler = batching(max_batch_size=4)
        for n, rows in enumerate([2, 1, 2]):
            scheduler.submit({"x": np.full((rows, 1), n)}, None)
        scheduler.submit({"x": np.zeros((1, 9))}, None)
        first, second = take(scheduler), take(scheduler)
        assert (values(first), first.rows) == ([0, 1], [2, 1])
        assert values(second) == [2]
        for batch in (first, second):
            scheduler.answer([(entry, OUTPUTS) for entry in batch.entries], sum(batch.rows))
        await asyncio.sleep(0)
        statistics = scheduler.statistics()
        assert (statistics.inference_count, statistics.execution_count) == (5, 2)
        assert statistics.batch_sizes == {3: 1, 2: 1}
        assert statistics.queued == 1

    asyncio.run(main())


def test_requests_are_not_merged_without_dynamic_batching():
    async def main():
        scheduler = Scheduler("m", 10, max_batch_size=4)
        for n in range(2):
            scheduler.submit(row(n), None)
        assert values(take(scheduler)) == [0]

    asyncio.run(main())


def test_a_batch_waits_for_company_until_its_time():
    async def main():
        clock = ManualClock()
        scheduler = batching(clock=clock, max_queue_delay_microseconds=1_000_000)
        seat = Seat()
        scheduler.submit(row(0), None)
        assert scheduler.take(seat) is None
        assert seat.look_again_at == 101.0
        clock.now = 100.5
        scheduler.submit(row(1), None)
        assert scheduler.take(seat) is None
        clock.now = 101.0
        assert scheduler.wait(seat)
        assert values(scheduler.take(seat)) == [0, 1]

    asyncio.run(main())


# Waiting instances


class Instance:
    """A thread that takes one batch as an instance does."""

    def __init__(self, scheduler):
        self.batch = "none yet"
        self.thread = threading.Thread(target=self.run, args=(scheduler,), daemon=True)
        self.thread.start()

    def run(self, scheduler):
        seat = Seat()
        self.batch = None
        while scheduler.wait(seat):
            self.batch = scheduler.take(seat)
            if self.batch:
                return

    def taken(self):
        self.thread.join(5)
        assert not self.thread.is_alive()
        return values(self.batch)


async def until_idle(scheduler, count=1):
    while scheduler.statistics().idle_instances < count:
        await asyncio.sleep(0)


def test_an_idle_instance_is_called_for_a_lone_request():
    async def main():
        scheduler = batching()
        instance = Instance(scheduler)
        await until_idle(scheduler)
        scheduler.submit(row(7), None)
        assert instance.taken() == [7]

    asyncio.run(main())


def test_an_instance_that_waits_for_company_is_called_once_the_batch_is_full():
    async def main():
        scheduler = batching(max_batch_size=2, max_queue_delay_microseconds=10**9)
        instance = Instance(scheduler)
        await until_idle(scheduler)
        scheduler.submit(row(0), None)
        await until_idle(scheduler)
        scheduler.submit(row(1), None)
        assert instance.taken() == [0, 1]

    asyncio.run(main())


def test_a_batch_that_fills_up_before_its_instance_sleeps_is_seen():
    async def main():
        scheduler = batching(max_batch_size=2, max_queue_delay_microseconds=10**9)
        seat = Seat()
        scheduler.submit(row(0), None)
        assert scheduler.take(seat) is None
        scheduler.submit(row(1), None)
        assert scheduler.wait(seat)  # at once
        assert values(scheduler.take(seat)) == [0, 1]

    asyncio.run(main())


def test_the_rest_of_a_queue_calls_the_next_instance():
    async def main():
        scheduler = batching(max_batch_size=4)
        instances = [Instance(scheduler) for _ in range(2)]
        await until_idle(scheduler, 2)
        scheduler.submit({"x": np.zeros((1, 1))}, None)
        scheduler.submit({"x": np.ones((1, 2))}, None)  # cannot be in one batch
        assert sorted(instance.taken() for instance in instances) == [[0], [1]]

    asyncio.run(main())


def test_close_finishes_what_waits_without_delay_and_refuses_the_rest():
    async def main():
        scheduler = batching(max_queue_delay_microseconds=10**9)
        idle = Instance(scheduler)
        await until_idle(scheduler)
        scheduler.submit(row(0), None)
        scheduler.close()
        scheduler.close()
        with pytest.raises(Unavailable, match="has stopped accepting"):
            scheduler.submit(row(1), None)
        assert idle.taken() == [0]
        assert not scheduler.wait(Seat())
        assert repr(scheduler) == "<Scheduler m: 0 queued, 0 instances idle, closed>"

    asyncio.run(main())


def test_abandon_waits_for_no_order():
    async def main():
        scheduler = batching(max_batch_size=1, preserve_ordering=True)
        scheduler.submit(row(0), None)
        entry = scheduler.submit(row(1), None)
        take(scheduler)  # and never answered
        scheduler.abandon()
        with pytest.raises(Unavailable, match="stopped before"):
            await settled(scheduler, entry)

    asyncio.run(main())


def test_abandon_refuses_what_still_waits():
    async def main():
        scheduler = Scheduler("m", 10)
        entry = scheduler.submit(INPUTS, None)
        scheduler.close()
        scheduler.abandon()
        with pytest.raises(Unavailable, match="stopped before"):
            await settled(scheduler, entry)
        assert scheduler.queued == 0

    asyncio.run(main())
