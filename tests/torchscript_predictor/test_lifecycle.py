"""The life of models: loading in threads, states with reasons, draining."""

import asyncio
import threading
import time

import numpy as np
import pytest

from oip.errors import InvalidArgument, NotFound, Unavailable
from torchscript_predictor.backends import LoadError
from torchscript_predictor.lifecycle import ModelLifecycle
from torchscript_predictor.loading import executing_threads, placements
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


def test_before_the_start_nothing_is_known_and_nothing_ready(repository, backend):
    """A caller who is quicker than the start must not be told that its model does not exist."""
    repository.path.mkdir()
    repository.add("m", b"ok")

    async def scenario():
        life = ModelLifecycle(ModelRepository([repository.path]), lambda: backend, allowance=CpuAllowance(4.0))
        assert not life.all_ready()
        for ask in (life.model, life.version):
            with pytest.raises(Unavailable, match="is starting") as caught:
                ask("m")
            assert caught.value.retry_after_seconds == 1

    asyncio.run(scenario())


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


def test_cpu_instances_share_a_copy_that_says_it_can_be_shared(repository, run, config_text):
    class Shareable(FakeModel):
        def is_shareable(self, inputs):
            return True

    class SharingBackend(FakeBackend):
        def load(self, *arguments):
            super().load(*arguments)
            return Shareable(self.executing)

    group = "instance_group { count: 3 kind: KIND_CPU } instance_group { count: 2 kind: KIND_GPU }"
    repository.add("m", b"ok", config_text(more=group))
    backend = SharingBackend(gpus=1)

    async def scenario(life):
        [status] = await life.loaded()
        assert status.instances == 5

    run(scenario, backend=backend)
    assert backend.loads == [("m", "cpu"), ("m", "cuda:0"), ("m", "cuda:0")]


@pytest.mark.parametrize(
    ("device", "gpus", "threads"), [("cpu", 0, 3), ("cpu", 2, 3), ("cuda:1", 2, 0), (None, 0, 3), (None, 1, 0)]
)
def test_executions_on_gpus_take_no_cpus(device, gpus, threads):
    assert executing_threads(device, 3, gpus) == threads


def test_the_limit_on_executing_threads_bounds_every_instance(repository, run, caplog, config_text):
    caplog.set_level("INFO")
    more = 'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "3" } }'
    repository.add("m", b"ok", config_text(more=more))

    async def scenario(life):
        [status] = await life.loaded()
        assert status.intra_op_threads == 2

    run(scenario, execution_threads=2)
    assert "all models together execute on 2 threads at most" in caplog.text


def test_what_was_asked_for_in_vain_and_the_threads_are_logged(repository, run, caplog, config_text):
    caplog.set_level("INFO")
    more = 'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "9" } }'
    repository.add("m", b"ok", config_text(more=more))

    async def scenario(life):
        [status] = await life.loaded()
        assert status.intra_op_threads == 4

    run(scenario)
    assert "model m: INTRA_OP_THREAD_COUNT is 9, more than the CPUs that this process may use: it gets 4" in caplog.text
    assert "intra-op threads each: 4; all models together execute on 4 threads at most" in caplog.text


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
    more = "metric_tags { } version_policy { specific { versions: [ 1, 2 ] } }"
    repository.add("m", b"ok", config_text(more=more))

    async def scenario(life):
        await life.loaded()

    run(scenario)
    assert "metric_tags has no effect" in caplog.text
    assert "model m: version_policy lists version 2" in caplog.text
    assert caplog.text.count("a word to the operator") == 1


# Changes while the process runs


def rewrite(repository, text, version=1, name="m"):
    """Change a model's file; a new file each time, for times are coarse."""
    place = repository.path / name / str(version)
    place.mkdir(exist_ok=True)
    (place / "fresh").write_text(text)
    (place / "fresh").rename(place / "model.pt")


def test_a_reload_serves_the_old_until_the_new_is_ready(repository, run, backend):
    repository.add("m", b"ok")

    async def scenario(life):
        await life.loaded()
        old = life.version("m")
        rewrite(repository, "ok")
        backend.gate.clear()
        loading = asyncio.create_task(life.load("m"))
        while not any(thread.name == "load_m" for thread in threading.enumerate()):
            await asyncio.sleep(0)
        assert life.version("m") is old
        assert life.all_ready()
        backend.gate.set()
        await loading
        assert life.version("m") is not old
        assert life.version("m").recorder is old.recorder  # counts go on
        while old.state is not ModelState.UNAVAILABLE:
            await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="stopped accepting"):
            old.scheduler.submit({"INPUT__0": np.ones((1, 2), np.float32)}, None)

    run(scenario)


def test_a_failing_reload_keeps_the_old_for_good(repository, run, backend):
    repository.add("m", b"ok")

    async def scenario(life):
        await life.loaded()
        old = life.version("m")
        for reason in ("broken", "crash"):
            rewrite(repository, reason)
            with pytest.raises(
                InvalidArgument, match=r"^load failed for model 'm': version 1 is at UNAVAILABLE state: "
            ):
                await life.load("m")
            assert life.version("m") is old
        (repository.path / "m" / "config.pbtxt").write_text("colour: 3")
        with pytest.raises(InvalidArgument, match="no field"):
            await life.load("m")
        assert life.version("m") is old
        assert life.all_ready()

    run(scenario)


def test_one_bad_version_of_several_keeps_all_the_old(repository, run, config_text):
    repository.add("m", b"ok", config_text(more="version_policy { all { } }"), versions=(1, 2))

    async def scenario(life):
        await life.loaded()
        old = [life.version("m", number) for number in ("1", "2")]
        rewrite(repository, "broken", version=3)
        with pytest.raises(InvalidArgument, match="version 3 is at UNAVAILABLE state: broken"):
            await life.load("m")
        assert [life.version("m", number) for number in ("1", "2")] == old
        with pytest.raises(NotFound):
            life.version("m", "3")
        rewrite(repository, "ok", version=3)
        await life.load("m")
        assert life.version("m").number == 3

    run(scenario)


def test_a_load_with_nothing_new_does_nothing_and_a_failed_one_is_tried_again(repository, run, backend):
    repository.add("m", b"ok")
    repository.add("bad", b"broken")

    async def scenario(life):
        await life.loaded()
        loads = len(backend.loads)
        before = life.version("m")
        await asyncio.gather(*(life.load("m") for _ in range(3)))
        assert life.version("m") is before
        assert len(backend.loads) == loads
        for _ in range(2):
            with pytest.raises(InvalidArgument, match="broken"):
                await life.load("bad")
        rewrite(repository, "ok", name="bad")
        await life.load("bad")
        assert life.all_ready()

    run(scenario)


def test_an_unload_finishes_what_waits_and_forgets_the_model(repository, run, backend):
    repository.add("m", b"ok")

    async def scenario(life):
        await life.loaded()
        version = life.version("m")
        assert [each.recorder for each in life.figures()] == [version.recorder]
        backend.executing.clear()
        arrays = {"INPUT__0": np.ones((1, 2), np.float32)}
        asked = [
            asyncio.create_task(version.scheduler.finish(version.scheduler.submit(arrays, None))) for _ in range(3)
        ]
        unloading = asyncio.create_task(life.unload("m"))
        while version.state is ModelState.READY:
            await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="is at UNLOADING state"):
            life.version("m")
        assert life.figures() == []
        backend.executing.set()
        assert all("OUTPUT__0" in outputs for outputs in await asyncio.gather(*asked))
        await unloading
        with pytest.raises(NotFound, match="'m' has no available versions"):
            life.version("m")
        assert [(entry.version, entry.state, entry.reason) for entry in life.index()] == [
            ("1", "UNAVAILABLE", "unloaded")
        ]
        assert life.all_ready()
        await life.unload("m")
        await life.unload("absent")
        await life.load("m")
        assert life.version("m").recorder is not version.recorder

    run(scenario)


def test_loads_of_a_new_model_at_the_same_time_are_one(repository, run, backend):
    repository.add("m", b"ok")

    async def scenario(life):
        await asyncio.gather(*(life.load("m") for _ in range(4)))
        assert backend.loads == [("m", "cpu")]

    run(scenario, names=[])


def test_what_a_client_loads_in_vain_leaves_the_server_ready(repository, run):
    repository.add("m", b"ok")
    repository.add("bad", b"broken")

    async def scenario(life):
        await life.loaded()
        assert [(entry.name, entry.state) for entry in life.index()] == [("bad", ""), ("m", "READY")]
        with pytest.raises(InvalidArgument):
            await life.load("bad")
        assert [(entry.name, entry.state, entry.reason) for entry in life.index()] == [
            ("bad", "UNAVAILABLE", "broken"),
            ("m", "READY", ""),
        ]
        assert life.all_ready()
        with pytest.raises(NotFound, match="failed to load 'absent', failed to poll from model repository"):
            await life.load("absent")
        assert life.names() == ["bad", "m"]

    run(scenario, names=["m"])


def test_overrides_are_kept_until_the_unload_and_their_files_deleted(repository, run, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    repository.add("m", b"ok")
    config = """{"max_batch_size": 2, "platform": "pytorch_libtorch",
        "input": [{"name": "INPUT__0", "data_type": "TYPE_FP32", "dims": [2]}],
        "output": [{"name": "OUTPUT__0", "data_type": "TYPE_FP32", "dims": [2]}]}"""

    def folders():
        return len([*tmp_path.glob("tandem-model-*")])

    async def scenario(life):
        await life.loaded()
        await life.load("m", config)
        assert life.version("m").config.max_batch_size == 2
        await life.load("m")
        assert life.version("m").config.max_batch_size == 2
        await life.load("m", config, {"7/model.pt": b"ok"})
        assert (life.version("m").number, folders()) == (7, 1)
        with pytest.raises(InvalidArgument, match="broken"):
            await life.load("m", config, {"8/model.pt": b"broken"})
        assert (life.version("m").number, folders()) == (7, 1)
        await life.load("new", config, {"1/model.pt": b"ok"})  # the repository has no such model
        assert folders() == 2
        await life.load("m", config, {"9/model.pt": b"ok"})
        assert (life.version("m").number, folders()) == (9, 2)
        await life.unload("m")
        await life.load("m")
        assert (life.version("m").number, life.version("m").config.max_batch_size, folders()) == (1, 4, 1)
        await life.unload("new")
        with pytest.raises(NotFound):
            await life.load("new")
        assert folders() == 0
        await life.load("m", config, {"7/model.pt": b"ok"})

    run(scenario)
    assert folders() == 0  # the end deletes them too


def test_a_label_file_that_is_missing_fails_the_load(repository, run, config_text):
    config = config_text().replace('"OUTPUT__0"', '"OUTPUT__0" label_filename: "labels.txt"')
    folder = repository.add("m", b"ok", config)

    async def scenario(life):
        [status] = await life.loaded()
        assert status.reason == "m/labels.txt does not exist; put the labels there, one a line"
        (folder / "labels.txt").write_text("a\nb \n")
        await life.load("m")
        assert life.version("m").labels == {"OUTPUT__0": ("a", "b")}
        (folder / "config.pbtxt").write_text(config.replace("labels.txt", "../../secret"))
        with pytest.raises(InvalidArgument, match="leads out of the model's folder"):
            await life.load("m")

    run(scenario)
