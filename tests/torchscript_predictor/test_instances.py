"""Instance threads, over a model that is plain Python."""

import asyncio
import threading
import time

import numpy as np
import pytest

from oip.errors import DeadlineExceeded, InferenceError, Internal, InvalidArgument
from torchscript_predictor.instances import ModelInstance
from torchscript_predictor.scheduling.policy import DynamicBatching
from torchscript_predictor.scheduling.scheduler import Scheduler
from torchscript_predictor.threads import ExecutionLimit


class FakeModel:
    """Doubles "x", or raises what "x" holds.  `executed` has the batch sizes."""

    warnings = ()

    def __init__(self):
        self.entered = []
        self.executed = []

    def enter_thread(self, intra_op_threads):
        self.entered.append((threading.current_thread().name, intra_op_threads))

    def execute(self, inputs):
        value = inputs["x"]
        if isinstance(value, BaseException):
            raise value
        self.executed.append(len(value) if isinstance(value, np.ndarray) else 1)
        return {"y": value * 2}


def run(scenario, *, count=1, warm_up=lambda model: None, model=None, limit=8, **options):
    async def main():
        scheduler, executed = Scheduler("m", 100, **options), model or FakeModel()
        shared = ExecutionLimit(limit)
        instances = [
            ModelInstance(f"m_0_{n}", executed, scheduler, intra_op_threads=3, warm_up=warm_up, limit=shared)
            for n in range(count)
        ]
        for instance in instances:
            instance.start().result(5)
        try:
            await asyncio.wait_for(scenario(scheduler, executed), 10)
        finally:
            scheduler.close()
            assert all(instance.join(5) for instance in instances)

    asyncio.run(main())


async def ask(scheduler, value, deadline=None):
    entry = scheduler.submit({"x": value}, deadline)
    return await scheduler.finish(entry), entry


def test_an_instance_executes_on_its_own_thread_and_measures():
    async def scenario(scheduler, model):
        outputs, entry = await ask(scheduler, np.array([2.0]))
        assert outputs["y"] == [4.0]
        assert entry.compute_seconds > 0
        assert model.entered == [("m_0_0", 3)]

    run(scenario)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (Internal("PyTorch execute failure: no"), Internal, "PyTorch execute failure: no"),
        (InvalidArgument("bad"), InvalidArgument, "bad"),
        (MemoryError("/secret/path"), Internal, "the model failed with MemoryError"),
        (SystemExit(3), Internal, "the model failed with SystemExit"),
        (KeyboardInterrupt(), Internal, "the model failed with KeyboardInterrupt"),
    ],
)
def test_whatever_a_model_raises_is_the_answer_and_the_thread_lives_on(raised, expected, message):
    async def scenario(scheduler, model):
        with pytest.raises(InferenceError) as caught:
            await ask(scheduler, raised)
        assert type(caught.value) is expected
        assert caught.value.message == message
        assert (await ask(scheduler, np.array([1.0])))[0]["y"] == [2.0]

    run(scenario)


def test_instances_share_the_queue():
    barrier = threading.Barrier(3, timeout=5)

    class Together(np.ndarray):
        def __mul__(self, other):
            barrier.wait()  # passes only if three executions are under way at once
            return super().__mul__(other)

    async def scenario(scheduler, model):
        await asyncio.gather(*(ask(scheduler, np.array([1.0]).view(Together)) for _ in range(3)))

    run(scenario, count=3, limit=9)


def test_an_instance_keeps_no_tensors_while_it_waits():
    async def scenario(scheduler, model):
        freed = threading.Event()

        class Watched:
            def __mul__(self, other):
                return np.zeros(1)

            def __del__(self):
                freed.set()

        await ask(scheduler, Watched())
        assert await asyncio.to_thread(freed.wait, 5)

    run(scenario)


def test_a_failing_warm_up_is_what_start_raises_and_ends_the_thread():
    def warm_up(model):
        raise ValueError("cold")

    limit = ExecutionLimit(1)
    instance = ModelInstance("m", FakeModel(), Scheduler("m", 1), intra_op_threads=1, warm_up=warm_up, limit=limit)
    with pytest.raises(ValueError, match="cold"):
        instance.start().result(5)
    assert instance.join(5)
    assert repr(limit) == "<ExecutionLimit: 0 of 1 threads execute, 0 executions wait>"


# Batches


class Gated(FakeModel):
    """Fails on NaN and on more than `most` rows; `begun` tells that an execution waits for `gate`."""

    def __init__(self, most=100):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.most = most

    def execute(self, inputs):
        self.begun.set()
        assert self.gate.wait(5)
        if np.isnan(inputs["x"]).any():
            raise Internal("not a number")
        if len(inputs["x"]) > self.most:
            raise MemoryError
        return super().execute(inputs)


BATCHING = {"max_batch_size": 8, "dynamic_batching": DynamicBatching()}


async def behind(scheduler, model, arrays, deadlines=None):
    """Ask for all of them while the instance is kept busy, so that they are one batch; that first task and theirs."""
    model.gate.clear()
    first = asyncio.create_task(ask(scheduler, np.zeros((1, 1))))
    await asyncio.to_thread(model.begun.wait, 5)
    asked = [
        asyncio.create_task(ask(scheduler, array, deadline))
        for array, deadline in zip(arrays, deadlines or [None] * len(arrays), strict=True)
    ]
    await asyncio.sleep(0)
    return first, asked


def test_what_waited_is_executed_at_once_and_each_gets_its_own():
    async def scenario(scheduler, model):
        arrays = [np.full((rows, 1), rows) for rows in (1, 3, 2)]
        first, asked = await behind(scheduler, model, arrays)
        model.gate.set()
        await first
        for rows, (outputs, entry) in zip((1, 3, 2), await asyncio.gather(*asked), strict=True):
            assert outputs["y"].tolist() == [[rows * 2]] * rows
            assert entry.queue_seconds > 0
            assert entry.compute_seconds > 0
        assert model.executed == [1, 6]
        assert scheduler.statistics().batch_sizes == {1: 1, 6: 1}

    run(scenario, model=Gated(), **BATCHING)


def test_only_the_culprit_of_a_failing_batch_fails(caplog):
    async def scenario(scheduler, model):
        arrays = [np.array([[1.0]]), np.array([[np.nan]]), np.array([[3.0]])]
        first, asked = await behind(scheduler, model, arrays)
        model.gate.set()
        await first
        good, bad, other = await asyncio.gather(*asked, return_exceptions=True)
        assert good[0]["y"].tolist() == [[2.0]]
        assert other[0]["y"].tolist() == [[6.0]]
        assert isinstance(bad, Internal)
        assert bad.message == "not a number"
        assert model.executed == [1, 1, 1]

    run(scenario, model=Gated(), **BATCHING)
    assert "m_0_0: a batch of 3 requests failed (not a number); each is executed alone" in caplog.text


def test_a_batch_that_is_too_large_for_the_model_is_executed_one_by_one():
    async def scenario(scheduler, model):
        first, asked = await behind(scheduler, model, [np.array([[float(n)]]) for n in range(4)])
        model.gate.set()
        await first
        answers = await asyncio.gather(*asked)
        assert [outputs["y"].item() for outputs, _ in answers] == [0.0, 2.0, 4.0, 6.0]

    run(scenario, model=Gated(most=2), **BATCHING)


def test_outputs_that_cannot_be_split_are_made_one_by_one():
    class Mean(Gated):
        def execute(self, inputs):
            return {"y": super().execute(inputs)["y"].mean(axis=0, keepdims=True)}

    async def scenario(scheduler, model):
        first, asked = await behind(scheduler, model, [np.array([[1.0], [3.0]]), np.array([[5.0]])])
        model.gate.set()
        await first
        answers = await asyncio.gather(*asked)
        assert [outputs["y"].item() for outputs, _ in answers] == [4.0, 10.0]

    run(scenario, model=Mean(), **BATCHING)


def test_nobody_who_left_or_is_late_is_tried_again():
    class Leaving(Gated):
        """The batch fails when two of its callers have no use for an answer any more."""

        def execute(self, inputs):
            if len(inputs["x"]) == 3:
                self.loop.call_soon_threadsafe(self.meanwhile)
                assert self.left.wait(5)
                raise MemoryError
            return super().execute(inputs)

    now = [100.0]

    async def scenario(scheduler, model):
        model.loop, model.left = asyncio.get_running_loop(), threading.Event()
        arrays = [np.array([[float(n)]]) for n in range(3)]
        first, asked = await behind(scheduler, model, arrays, [None, 150.0, None])

        def meanwhile():
            asked[0].cancel()
            now[0] = 150.0
            model.left.set()

        model.meanwhile = meanwhile
        model.gate.set()
        await first
        gone, late, served = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(gone, asyncio.CancelledError)
        assert isinstance(late, DeadlineExceeded)
        assert served[0]["y"].item() == 4.0
        assert model.executed == [1, 1]

    run(scenario, model=Leaving(), clock=lambda: now[0], **BATCHING)


def test_of_four_callers_one_leaves_and_three_are_answered():
    async def scenario(scheduler, model):
        first, asked = await behind(scheduler, model, [np.array([[float(n)]]) for n in range(4)])
        asked[2].cancel()
        await asyncio.sleep(0)
        model.gate.set()
        await first
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(answers.pop(2), asyncio.CancelledError)
        assert [outputs["y"].item() for outputs, _ in answers] == [0.0, 2.0, 6.0]
        assert model.executed == [1, 3]

    run(scenario, model=Gated(), **BATCHING)


@pytest.mark.parametrize("policy", [DynamicBatching(), DynamicBatching(preserve_ordering=True)])
def test_callers_that_come_and_go_leave_nothing_behind(policy):
    async def scenario(scheduler, model):
        async def caller(number):
            for step in range(50):
                value = float(number * 50 + step)
                asking = asyncio.create_task(ask(scheduler, np.full((1 + step % 3, 1 + number % 2), value)))
                if step % 4 == number % 4:
                    for _ in range(step % 5):
                        await asyncio.sleep(0)
                    asking.cancel()
                [answer] = await asyncio.gather(asking, return_exceptions=True)
                if not isinstance(answer, asyncio.CancelledError):
                    assert answer[0]["y"].tolist() == [[value * 2] * (1 + number % 2)] * (1 + step % 3)

        await asyncio.gather(*(caller(number) for number in range(24)))
        assert scheduler.queued == 0

    run(scenario, count=3, limit=6, max_batch_size=8, dynamic_batching=policy)


# The limit over all models


def test_executing_threads_of_all_models_stay_within_the_limit():
    limit, lock = ExecutionLimit(4), threading.Lock()
    now, peaks = [0], []

    class Counting(FakeModel):
        def __init__(self, threads):
            super().__init__()
            self.threads = threads

        def execute(self, inputs):
            with lock:
                now[0] += self.threads
                peaks.append(now[0])
            time.sleep(0)  # let others in
            with lock:
                now[0] -= self.threads
            return super().execute(inputs)

    async def main():
        schedulers, instances = [], []
        for threads, count in ((1, 4), (3, 2), (9, 1)):
            schedulers.append(Scheduler("m", 1000))
            instances += [
                ModelInstance(
                    "m",
                    Counting(min(threads, 4)),
                    schedulers[-1],
                    intra_op_threads=threads,
                    warm_up=lambda model: model.execute({"x": np.zeros((1, 1))}),
                    limit=limit,
                )
                for _ in range(count)
            ]
        for started in [instance.start() for instance in instances]:
            started.result(5)
        await asyncio.gather(*(ask(scheduler, np.zeros((1, 1))) for scheduler in schedulers * 50))
        for scheduler in schedulers:
            scheduler.close()
        assert all(instance.join(5) for instance in instances)

    asyncio.run(main())
    assert max(peaks) == 4


def test_an_execution_elsewhere_than_on_cpus_waits_for_nobody():
    limit = ExecutionLimit(1)

    async def main():
        scheduler = Scheduler("m", 10)
        instance = ModelInstance(
            "m", FakeModel(), scheduler, intra_op_threads=1, warm_up=lambda _: None, limit=limit, executing_threads=0
        )
        with limit.held(1):
            instance.start().result(5)
            await asyncio.wait_for(ask(scheduler, np.zeros((1, 1))), 5)
        scheduler.close()
        assert instance.join(5)

    asyncio.run(main())
