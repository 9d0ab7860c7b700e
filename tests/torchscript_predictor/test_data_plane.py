"""The predictor's data plane over real TorchScript."""

import asyncio
import threading
import time
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from oip.errors import DeadlineExceeded, Internal, InvalidArgument, NotFound, Unavailable
from oip.messages import InferenceRequest, RequestedOutput, TensorMetadata
from oip.server.data_plane import RequestContext
from oip.tensors import Tensor
from torchscript_predictor.backends.torchscript import TorchScriptBackend
from torchscript_predictor.threads import CpuAllowance


class Slow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(64, 64)
        for _ in range(int(x.sum())):
            y = torch.sin(y) + 1
        return x


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def ask(model, version="", outputs=(), id="", parameters=None, **arrays):
    tensors = tuple(Tensor.of(name, np.asarray(array, np.float32)) for name, array in arrays.items())
    return InferenceRequest(
        model, tensors, tuple(map(RequestedOutput, outputs)), version, id, parameters=parameters or {}
    )


def test_an_inference(repository, serve, nets, config_text):
    config = config_text(("INPUT0", "INPUT1"), ("OUTPUT__0", "OUTPUT__1"))
    repository.add("add_sub", nets.AddSub(), config)

    async def scenario(plane):
        assert plane.live()
        assert plane.ready()
        context = RequestContext()
        request = ask("add_sub", id="7", outputs=("OUTPUT__1", "OUTPUT__0"), INPUT0=[[5, 5]], INPUT1=[[1, 2]])
        response = await plane.infer(request, context)
        assert (response.model_name, response.model_version, response.id) == ("add_sub", "1", "7")
        assert response.outputs == (
            Tensor.of("OUTPUT__1", np.float32([[4, 3]])),
            Tensor.of("OUTPUT__0", np.float32([[6, 7]])),
        )
        assert [stage for stage, _, _ in context.stopwatch.laps] == ["queue", "compute"]
        response = await plane.infer(ask("add_sub", INPUT0=[[5, 5]], INPUT1=[[1, 2]]), RequestContext())
        assert [output.name for output in response.outputs] == ["OUTPUT__0", "OUTPUT__1"]

    serve(scenario)


def test_metadata_and_configuration(repository, serve, nets, config_text):
    repository.add("m", nets.Identity(), config_text(more="version_policy { all { } }"), versions=(1, 2))

    async def scenario(plane):
        server = plane.server_metadata()
        assert server.name == "tandem"
        assert server.extensions == (
            *("binary_tensor_data", "classification", "logging", "model_configuration", "model_repository"),
            *("parameters", "schedule_policy", "statistics", "trace"),
        )
        assert plane.model_names() == ["m"]
        metadata = plane.model_metadata("m")
        assert metadata.versions == ("1", "2")
        assert metadata.platform == "pytorch_libtorch"
        assert metadata.inputs == (TensorMetadata("INPUT__0", "FP32", (-1, 2)),)
        assert metadata.outputs == (TensorMetadata("OUTPUT__0", "FP32", (-1, 2)),)
        assert plane.model_metadata("m", "1").versions == ("1",)
        assert plane.model_config("m")["instance_group"][0]["name"] == "m_0"
        for method in (plane.model_metadata, plane.model_config, plane.model_ready):
            with pytest.raises(NotFound, match="Request for unknown model: 'nope' is not found"):
                method("nope")
            with pytest.raises(NotFound, match="'m' version 9 is not found"):
                method("m", "9")

    serve(scenario)


def test_versions(repository, serve, config_text):
    folder = repository.add("m", Scale(1.0), config_text(more="version_policy { latest { num_versions: 2 } }"))
    for number in (2, 3):
        (folder / str(number)).mkdir()
        torch.jit.script(Scale(float(number))).save(str(folder / str(number) / "model.pt"))

    async def scenario(plane):
        for version, served, factor in (("", "3", 3), ("2", "2", 2), ("3", "3", 3)):
            response = await plane.infer(ask("m", version, INPUT__0=[[1, 1]]), RequestContext())
            assert response.model_version == served
            assert response.outputs[0].array.tolist() == [[factor, factor]]
        with pytest.raises(NotFound):
            await plane.infer(ask("m", "1", INPUT__0=[[1, 1]]), RequestContext())

    serve(scenario)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ask("nope", INPUT__0=[[1, 1]]), NotFound),
        (ask("m", INPUT__0=[[1, 1, 1]]), InvalidArgument),
        (ask("m", INPUT__0=[[1, 1]] * 5), InvalidArgument),
        (ask("m", outputs=("x",), INPUT__0=[[1, 1]]), InvalidArgument),
        (
            InferenceRequest("m", (), (RequestedOutput("OUTPUT__0", parameters={"classification": -3}),)),
            InvalidArgument,
        ),
        (ask("m", INPUT__0=[[1, -1]]), Internal),
        (ask("broken", INPUT__0=[[1, 1]]), Unavailable),
    ],
)
def test_errors(repository, serve, nets, request_, error):
    repository.add("m", nets.Picky())
    repository.add("broken", b"no TorchScript")

    async def scenario(plane):
        with pytest.raises(error) as caught:
            await plane.infer(request_, RequestContext())
        assert type(caught.value) is error
        answer = await plane.infer(ask("m", INPUT__0=[[4, 9]]), RequestContext())  # and it still serves
        assert answer.outputs[0].array.tolist() == [[2, 3]]

    serve(scenario)


@pytest.mark.parametrize(("strict", "ready"), [(True, False), (False, True)])
def test_readiness_with_a_model_that_failed(repository, serve, nets, strict, ready):
    repository.add("m", nets.Identity())
    repository.add("broken", b"no TorchScript")

    async def scenario(plane):
        assert plane.live()
        assert plane.ready() is ready
        assert plane.model_ready("m")
        assert not plane.model_ready("broken")
        assert [status.name for status in plane.statuses()] == ["broken", "m"]

    serve(scenario, strict_readiness=strict)


def test_a_full_queue_is_refused_and_the_rest_is_answered(repository, serve):
    repository.add("m", Slow())

    async def scenario(plane):
        asked = [asyncio.create_task(plane.infer(ask("m", INPUT__0=[[1000, 0]]), RequestContext())) for _ in range(20)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, Unavailable)]
        assert 0 < len(refused) <= 18
        assert all(answer.retry_after_seconds == 1 for answer in refused)
        assert all(answer.outputs for answer in answers if answer not in refused)

    serve(scenario, max_queue_size=2)


def test_the_stopwatch_tells_waiting_from_computing(repository, serve):
    repository.add("m", Slow())

    async def scenario(plane):
        contexts = [RequestContext() for _ in range(2)]
        await asyncio.gather(*(plane.infer(ask("m", INPUT__0=[[2000, 0]]), context) for context in contexts))
        (_, first_compute, _), (_, second_queue, _) = contexts[0].stopwatch.laps[1], contexts[1].stopwatch.laps[0]
        assert second_queue > first_compute / 2  # it waited for the first

    serve(scenario)


def test_the_deadline_is_kept_while_the_model_works(repository, serve):
    repository.add("m", Slow())

    async def scenario(plane):
        began = time.monotonic()
        context = RequestContext(deadline=began + 0.02)
        with pytest.raises(DeadlineExceeded):
            await plane.infer(ask("m", INPUT__0=[[100_000, 0]]), context)  # about a second
        assert time.monotonic() - began < 0.5
        assert [stage for stage, _, _ in context.stopwatch.laps] == ["queue", "compute"]

    serve(scenario)


def test_the_loop_runs_on_while_a_model_executes(repository, serve):
    repository.add("m", Slow())

    async def scenario(plane):
        inference = asyncio.create_task(plane.infer(ask("m", INPUT__0=[[20_000, 0]]), RequestContext()))
        ticks = 0
        while not inference.done():
            await asyncio.sleep(0.001)
            ticks += 1
        assert ticks > 20  # a forward that held the interpreter would leave one

    serve(scenario)


def test_many_instances_answer_many_callers_right(repository, serve, nets, config_text):
    repository.add("m", nets.Double(), config_text(more="instance_group { count: 3 kind: KIND_CPU }"))

    async def scenario(plane):
        async def caller(number):
            for step in range(20):
                value = number * 100 + step
                response = await plane.infer(ask("m", INPUT__0=[[value, -value]]), RequestContext())
                assert response.outputs[0].array.tolist() == [[value * 2, -value * 2]]

        await asyncio.gather(*(caller(number) for number in range(16)))

    serve(scenario)


@pytest.mark.slow
@pytest.mark.parametrize("instances", [1, 2])
def test_64_clients_with_500_inputs_each_get_their_own_answers_from_batches(
    repository, serve, nets, config_text, instances
):
    more = f"dynamic_batching {{ }} instance_group {{ count: {instances} kind: KIND_CPU }}"
    repository.add("m", nets.Double(), config_text(max_batch_size=16, more=more))

    async def scenario(plane):
        async def client(number):
            for step in range(500):
                value = number * 500 + step
                rows = 1 + value % 3
                response = await plane.infer(ask("m", INPUT__0=[[value, -value]] * rows), RequestContext())
                assert response.outputs[0].array.tolist() == [[value * 2, -value * 2]] * rows

        await asyncio.gather(*(client(number) for number in range(64)))

    serve(scenario)


def test_what_fails_in_a_batch_fails_alone(repository, serve, nets, config_text):
    repository.add("m", nets.Picky(), config_text(max_batch_size=16, more="dynamic_batching { }"))

    async def scenario(plane):
        requests = [ask("m", INPUT__0=[[4, -1 if number % 5 == 3 else 9]]) for number in range(20)]
        answers = await asyncio.gather(
            *(plane.infer(request, RequestContext()) for request in requests), return_exceptions=True
        )
        for number, answer in enumerate(answers):
            if number % 5 == 3:
                assert isinstance(answer, Internal)
                assert "negative input" in answer.message
            else:
                assert answer.outputs[0].array.tolist() == [[2, 3]]

    serve(scenario)


class Backed:
    """Loads TorchScript models that note, at every execution, their thread's settings and who else executes."""

    def __init__(self):
        self.lock = threading.Lock()
        self.executing = 0
        self.most = 0
        self.settings = defaultdict(set)

    def __call__(self):
        self.backend = TorchScriptBackend()
        return self

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def load(self, path, config, *arguments):
        model = self.backend.load(path, config, *arguments)
        plain = model.execute

        def execute(inputs):
            threads = torch.get_num_threads()
            with self.lock:
                self.settings[config.name].add((threading.current_thread().name, threads))
                self.executing += threads
                self.most = max(self.most, self.executing)
            try:
                return plain(inputs)
            finally:
                with self.lock:
                    self.executing -= threads

        model.execute = execute
        return model


def test_each_models_threads_are_set_and_together_they_stay_within_the_cpus(repository, serve, config_text):
    def threads(count):
        return f'parameters {{ key: "INTRA_OP_THREAD_COUNT" value {{ string_value: "{count}" }} }}'

    repository.add("one", Slow(), config_text(more=threads(1)))
    repository.add("two", Slow(), config_text(more=threads(2)))
    repository.add("many", Slow(), config_text(more="instance_group { count: 4 kind: KIND_CPU }"))
    backed = Backed()

    async def scenario(plane):
        requests = [ask(name, INPUT__0=[[50, 0]]) for name in ("one", "two", "many", "many", "many", "many") * 10]
        await asyncio.gather(*(plane.infer(request, RequestContext()) for request in requests))

    serve(scenario, backed, allowance=CpuAllowance(2.0), load_threads=1)
    served = {
        name: {(thread, count) for thread, count in found if not thread.startswith("load_")}
        for name, found in backed.settings.items()
    }
    assert served == {
        "one": {("one_0_0", 1)},
        "two": {("two_0_0", 2)},
        "many": {(f"many_0_{number}", 1) for number in range(4)},
    }
    assert backed.most == 2


def test_priority_is_a_parameter_of_the_request(repository, serve, config_text):
    more = "dynamic_batching { priority_levels: 2 default_priority_level: 2 }"
    repository.add("m", Slow(), config_text(max_batch_size=1, more=more))

    async def scenario(plane):
        done = []

        async def caller(name, work=1, **parameters):
            await plane.infer(ask("m", parameters=parameters, INPUT__0=[[work, 0]]), RequestContext())
            done.append(name)

        await asyncio.gather(caller("first", 20_000), caller("low"), caller("late", priority=1))
        assert done.index("late") < done.index("low")
        with pytest.raises(InvalidArgument, match="parameter 'priority' must be"):
            await caller("wrong", priority="high")

    serve(scenario)


def test_a_queue_policys_timeout(repository, serve, config_text):
    more = "dynamic_batching { default_queue_policy { default_timeout_microseconds: 100000 } }"
    repository.add("m", Slow(), config_text(max_batch_size=1, more=more))

    async def scenario(plane):
        asked = [plane.infer(ask("m", INPUT__0=[[40_000, 0]]), RequestContext()) for _ in range(2)]  # 0.3 s each
        answers = await asyncio.gather(*asked, return_exceptions=True)
        late = [answer for answer in answers if isinstance(answer, Unavailable)]
        assert [error.message for error in late] == ["Request timeout expired"]

    serve(scenario)
