"""The predictor's data plane over real TorchScript."""

import asyncio
import time

import numpy as np
import pytest
import torch
from torch import nn

from oip.errors import DeadlineExceeded, Internal, InvalidArgument, NotFound, Unavailable, Unsupported
from oip.messages import InferenceRequest, RequestedOutput, TensorMetadata
from oip.server.data_plane import RequestContext
from oip.tensors import Tensor


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


def ask(model, version="", outputs=(), id="", **arrays):
    tensors = tuple(Tensor.of(name, np.asarray(array, np.float32)) for name, array in arrays.items())
    return InferenceRequest(model, tensors, tuple(map(RequestedOutput, outputs)), version, id)


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
        assert server.extensions == ("binary_tensor_data", "model_configuration", "parameters")
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
            InferenceRequest("m", (), (RequestedOutput("OUTPUT__0", parameters={"classification": 3}),)),
            Unsupported,
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
