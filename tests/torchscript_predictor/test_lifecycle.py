"""The life of models: loading in threads, states with reasons, draining."""

import asyncio
import threading
import time

import numpy as np
import pytest

from oip.errors import NotFound, Unavailable
from torchscript_predictor.backends import LoadError
from torchscript_predictor.lifecycle import ModelLifecycle, placements
from torchscript_predictor.model_config import InstanceGroup
from torchscript_predictor.repository import ModelRepository
from torchscript_predictor.states import ModelState
from torchscript_predictor.threads import CpuAllowance


class FakeModel:
    """Gives "INPUT__0" back, after `gate` has opened."""

    def __init__(self, gate):
        self.warnings = ("a word to the operator",)
        self.gate = gate

    def enter_thread(self, intra_op_threads):
        pass

    def execute(self, inputs):
        assert self.gate.wait(5)
        return {"OUTPUT__0": inputs["INPUT__0"]}


class FakeBackend:
    """Loads what the file says: its text is "ok", or the error's words.  `gate` holds loads up while closed."""

    def __init__(self, gpus=0):
        self.gate = threading.Event()
        self.gate.set()
        self.executing = threading.Event()
        self.executing.set()
        self.loads = []
        self._gpus = gpus

    def gpu_count(self):
        return self._gpus

    def load(self, path, config, device):
        assert self.gate.wait(5)
        text = path.read_text()
        if text == "crash":
            raise MemoryError
        if text != "ok":
            raise LoadError(text)
        self.loads.append((config.name, device))
        return FakeModel(self.executing)


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def run(repository, backend):
    """Run a scenario against the life of what the repository holds."""
    repository.path.mkdir()

    def go(scenario, *, backend=backend, names=None, **options):
        async def main():
            life = ModelLifecycle(
                ModelRepository([repository.path]), lambda: backend, allowance=CpuAllowance(4.0), **options
            )
            life.start(names)
            try:
                await asyncio.wait_for(scenario(life), 10)
            finally:
                backend.gate.set()
                backend.executing.set()
                await life.drain(5)

        asyncio.run(main())

    return go


def test_models_load_while_the_loop_answers(repository, run, backend):
    repository.add("m", b"ok")
    backend.gate.clear()

    async def scenario(life):
        assert life.names() == ["m"]
        assert not life.loading_is_over()
        with pytest.raises(Unavailable, match=r"^model 'm'.* is at LOADING state$") as caught:
            life.version("m")
        assert caught.value.retry_after_seconds == 1
        backend.gate.set()
        [status] = await life.loaded()
        assert (status.name, status.version, status.state, status.instances) == ("m", "1", ModelState.READY, 1)
        assert status.intra_op_threads == 1  # of the four offered: the fake is as fast with one
        assert status.load_seconds > 0
        assert life.all_ready()
        assert life.version("m").number == 1

    run(scenario)


def test_the_newest_ready_version_is_the_default(repository, run, config_text):
    folder = repository.add("m", b"ok", config_text(more="version_policy { all { } }"), versions=(1, 2, 10))
    (folder / "10" / "model.pt").write_text("no good")

    async def scenario(life):
        await life.loaded()
        assert life.version("m").number == 2
        assert life.version("m", "1").number == 1
        with pytest.raises(Unavailable, match="model 'm' version 10 is at UNAVAILABLE state: no good"):
            life.version("m", "10")
        for absent in ("3", "01", "x"):
            with pytest.raises(NotFound) as caught:
                life.version("m", absent)
            assert caught.value.message == f"Request for unknown model: 'm' version {absent} is not found"
        assert not life.all_ready()

    run(scenario)


def test_an_unknown_model(run):
    async def scenario(life):
        assert await life.loaded() == []
        assert life.all_ready()
        with pytest.raises(NotFound) as caught:
            life.version("nope")
        assert caught.value.message == "Request for unknown model: 'nope' is not found"

    run(scenario)


@pytest.mark.parametrize(
    ("file", "config", "versions", "reason"),
    [
        ("broken", "", (1,), "broken"),
        ("crash", "", (1,), "loading failed with MemoryError"),
        ("ok", "colour: 3", (1,), 'm/config.pbtxt:1:1: Message type "inference.ModelConfig" has no field'),
        (
            "ok",
            "",
            (),
            "no version of model 'm' is to be served: there is no numbered folder; expected m/<version>/mod",
        ),
        (
            "ok",
            'input { name: "a" data_type: TYPE_FP32 dims: 1 } output { name: "b" data_type: TYPE_FP32 dims: 1 } '
            "version_policy { specific { versions: 7 } }",
            (1,),
            "no version of model 'm' is to be served: there is 1; expected",
        ),
    ],
)
def test_a_model_that_cannot_load_says_why_and_the_others_load(repository, run, caplog, file, config, versions, reason):
    repository.add("m", file.encode(), config, versions)
    repository.add("other", b"ok")

    async def scenario(life):
        failed, ready = await life.loaded()
        assert failed.state is ModelState.UNAVAILABLE
        assert failed.reason.startswith(reason)
        assert ready.state is ModelState.READY
        with pytest.raises(Unavailable) as caught:
            life.version("m")
        assert reason in caught.value.message
        assert caught.value.retry_after_seconds is None

    run(scenario)
    assert reason in caplog.text


def test_only_the_models_asked_for_are_loaded(repository, run, backend):
    repository.add("a", b"ok")
    repository.add("b", b"ok")

    async def scenario(life):
        statuses = await life.loaded()
        assert [(status.name, status.state) for status in statuses] == [
            ("b", ModelState.READY),
            ("c", ModelState.UNAVAILABLE),
        ]
        assert statuses[1].reason == "model 'c' is not in the model repository"

    run(scenario, names=["c", "b", "b"])
    assert backend.loads == [("b", "cpu")]


def test_a_name_in_two_repositories_is_refused(repository, tmp_path, backend):
    repository.add("m", b"ok")

    async def main():
        life = ModelLifecycle(ModelRepository([repository.path, repository.path]), lambda: backend)
        life.start()
        [status] = await life.loaded()
        assert status.reason == "model 'm' is in 2 model repositories; names must differ"

    asyncio.run(main())


def test_a_backend_that_cannot_be_made_fails_every_model(repository):
    repository.add("a", b"ok")
    repository.add("b", b"ok")

    def make():
        raise LoadError("torch is not installed")

    async def main():
        life = ModelLifecycle(ModelRepository([repository.path]), make)
        life.start()
        assert [status.reason for status in await life.loaded()] == ["torch is not installed"] * 2

    asyncio.run(main())


def test_each_instance_has_a_copy_of_its_own_unless_weights_are_shared(repository, run, backend, config_text):
    group = "instance_group { count: 3 kind: KIND_CPU }\n"
    share = 'parameters { key: "ENABLE_WEIGHT_SHARING" value { string_value: "true" } }'
    repository.add("apart", b"ok", config_text(more=group))
    repository.add("together", b"ok", config_text(more=group + share))

    async def scenario(life):
        statuses = await life.loaded()
        assert [status.instances for status in statuses] == [3, 3]
        assert [status.intra_op_threads for status in statuses] == [1, 1]

    run(scenario)
    assert backend.loads.count(("apart", "cpu")) == 3
    assert backend.loads.count(("together", "cpu")) == 1


def test_gpu_groups_are_placed_on_their_devices(repository, run, config_text):
    repository.add("m", b"ok", config_text(more="instance_group { kind: KIND_GPU }"))
    backend = FakeBackend(gpus=2)

    async def scenario(life):
        [status] = await life.loaded()
        assert status.instances == 2

    run(scenario, backend=backend)
    assert backend.loads == [("m", "cuda:0"), ("m", "cuda:1")]


def test_placements():
    groups = [
        InstanceGroup("a", "KIND_CPU", 2),
        InstanceGroup("b", "KIND_GPU", 2, (0, 3)),
        InstanceGroup("c", "KIND_MODEL", 1),
    ]
    assert placements(groups) == [
        ("a_0", "cpu"),
        ("a_1", "cpu"),
        ("b_0", "cuda:0"),
        ("b_1", "cuda:0"),
        ("b_2", "cuda:3"),
        ("b_3", "cuda:3"),
        ("c_0", None),
    ]


def test_a_failing_warm_up_sample_fails_the_load_and_ends_the_other_instances(repository, run, config_text):
    more = """instance_group { count: 2 kind: KIND_CPU }
    model_warmup { name: "w" batch_size: 1
                   inputs { key: "INPUT__0" value { data_type: TYPE_FP32 dims: 2 zero_data: true } } }"""
    repository.add("m", b"ok", config_text(more=more))

    class SecondFails(FakeBackend):
        def load(self, path, config, device):
            model = super().load(path, config, device)
            if len(self.loads) == 2:
                model.execute = lambda inputs: 1 / 0
            return model

    async def scenario(life):
        [status] = await life.loaded()
        assert status.reason == "loading failed with ZeroDivisionError"
        assert status.instances == 0

    run(scenario, backend=SecondFails())
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("m_0_") for thread in threading.enumerate()):
        assert time.monotonic() < deadline


def test_drain_finishes_what_waits_and_refuses_what_comes(repository, run, backend):
    repository.add("m", b"ok")

    async def scenario(life):
        await life.loaded()
        version = life.version("m")
        backend.executing.clear()
        arrays = {"INPUT__0": np.ones((1, 2), np.float32)}
        asked = [
            asyncio.create_task(version.scheduler.finish(version.scheduler.submit(arrays, None))) for _ in range(3)
        ]
        draining = asyncio.create_task(life.drain(5))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="UNLOADING"):
            life.version("m")
        backend.executing.set()
        assert await draining
        assert all("OUTPUT__0" in outputs for outputs in await asyncio.gather(*asked))
        [status] = life.statuses()
        assert (status.state, status.reason) == (ModelState.UNAVAILABLE, "unloaded")

    run(scenario)


def test_drain_is_bounded(repository, run, backend):
    repository.add("m", b"ok")

    async def scenario(life):
        await life.loaded()
        scheduler = life.version("m").scheduler
        backend.executing.clear()
        arrays = {"INPUT__0": np.ones((1, 2), np.float32)}
        running, waiting = (asyncio.create_task(scheduler.finish(scheduler.submit(arrays, None))) for _ in range(2))
        while scheduler.queued > 1:
            await asyncio.sleep(0)
        assert not await life.drain(0.01)
        with pytest.raises(Unavailable, match="stopped before"):
            await waiting
        backend.executing.set()
        await running

    run(scenario)


def test_warnings_of_the_configuration_are_logged(repository, run, caplog, config_text):
    more = "dynamic_batching { } version_policy { specific { versions: [ 1, 2 ] } }"
    repository.add("m", b"ok", config_text(more=more))

    async def scenario(life):
        await life.loaded()

    run(scenario)
    assert "dynamic_batching has no effect" in caplog.text
    assert "model m: version_policy lists version 2" in caplog.text
    assert caplog.text.count("a word to the operator") == 1
