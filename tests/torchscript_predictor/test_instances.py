"""Instance threads, over a model that is plain Python."""

import asyncio
import threading

import numpy as np
import pytest

from oip.errors import InferenceError, Internal, InvalidArgument
from torchscript_predictor.instances import ModelInstance
from torchscript_predictor.scheduler import Scheduler


class FakeModel:
    """Doubles "x", or raises what "x" holds."""

    warnings = ()

    def __init__(self):
        self.entered = []

    def enter_thread(self, intra_op_threads):
        self.entered.append((threading.current_thread().name, intra_op_threads))

    def execute(self, inputs):
        value = inputs["x"]
        if isinstance(value, BaseException):
            raise value
        return {"y": value * 2}


def run(scenario, *, count=1, warm_up=lambda model: None):
    async def main():
        scheduler, model = Scheduler("m", 100), FakeModel()
        instances = [
            ModelInstance(f"m_0_{n}", model, scheduler, intra_op_threads=3, warm_up=warm_up) for n in range(count)
        ]
        for instance in instances:
            instance.start().result(5)
        try:
            await asyncio.wait_for(scenario(scheduler, model), 10)
        finally:
            scheduler.close(count)
            assert all(instance.join(5) for instance in instances)

    asyncio.run(main())


async def ask(scheduler, value):
    entry = scheduler.submit({"x": value}, None)
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

    run(scenario, count=3)


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

    instance = ModelInstance("m", FakeModel(), Scheduler("m", 1), intra_op_threads=1, warm_up=warm_up)
    with pytest.raises(ValueError, match="cold"):
        instance.start().result(5)
    assert instance.join(5)
