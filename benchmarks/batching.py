"""The predictor with and without dynamic batching, and the ticker of its event loop under load.

V2 over HTTP with one binary [1, 3, 32, 32] tensor, the CIFAR-10 network, one instance.  Rounds alternate between the
two, so that a noisy machine is noisy for both; medians and their ratio are printed and kept in `benchmarks/results/`.
The ticker runs in this process, over the data plane itself: how late a 1 ms timer is, at most, while a model executes
for 30 ms at a time.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import uvloop
from rich.console import Console
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from load import Load, closed_loop  # noqa: E402

from chain import Process  # noqa: E402
from oip.http_codec import encode_request  # noqa: E402
from oip.messages import InferenceRequest, RequestedOutput  # noqa: E402
from oip.server.data_plane import RequestContext  # noqa: E402
from oip.tensors import Tensor  # noqa: E402
from tandem.export import export, load_factory  # noqa: E402
from tandem.up import free_port  # noqa: E402
from torchscript_predictor.backends.torchscript import TorchScriptBackend  # noqa: E402
from torchscript_predictor.data_plane import PredictorDataPlane  # noqa: E402
from torchscript_predictor.repository import ModelRepository  # noqa: E402

MAX_BATCH_SIZE = 32
CASES = {"one by one": "", "dynamic batching": "dynamic_batching { }\n"}


def write_models(folder: Path) -> None:
    """One repository for each case."""
    for number, more in enumerate(CASES.values()):
        export(
            load_factory("cifar:create"), folder / str(number), "cifar10", [3, 32, 32], max_batch_size=MAX_BATCH_SIZE
        )
        with (folder / str(number) / "cifar10" / "config.pbtxt").open("a") as config:
            config.write("\n" + more)


def request() -> tuple[bytes, dict[str, str]]:
    """The body and headers of one inference with a binary tensor in and out."""
    tensor = Tensor.of("INPUT__0", np.random.default_rng(0).random((1, 3, 32, 32), np.float32))
    output = RequestedOutput("OUTPUT__0", parameters={"binary_data": True})
    encoded = encode_request(InferenceRequest("cifar10", (tensor,), (output,)))
    return bytes(encoded.body()), dict(encoded.headers)


def measure(console: Console, rounds: int, seconds: float, connections: int) -> dict[str, list[Load]]:
    """Start a predictor for each case, then take turns."""
    body, headers = request()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder)
        processes = []
        try:
            for number, case in enumerate(CASES):
                arguments = ["-mtorchscript_predictor", f"--model-repository={folder / str(number)}"]
                processes.append(
                    Process(case, free_port(), [*arguments, "--allow-metrics=false", "--allow-grpc=false"], folder)
                )
            loads: dict[str, list[Load]] = {case: [] for case in CASES}
            for number in range(-1, rounds):  # round -1 warms up
                for process in processes:
                    load = asyncio.run(
                        closed_loop(
                            process.port,
                            "/v2/models/cifar10/infer",
                            body,
                            headers=headers,
                            connections=connections,
                            seconds=seconds,
                        )
                    )
                    if load.failures:
                        sys.exit(f"{process.name}: {load.failures} requests failed")
                    if number >= 0:
                        loads[process.name].append(load)
            return loads
        finally:
            for process in processes:
                process.stop()


class Works(nn.Module):
    """Multiplies for about as many milliseconds as its input says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.eye(512)
        for _ in range(int(x.sum())):
            y = torch.mm(y, y)
        return x


async def ticker(console: Console, seconds: float, executions: int) -> float:
    """The latest a 1 ms tick came while `executions` forwards of 30 ms were under way, in milliseconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "works"
        (folder / "1").mkdir(parents=True)
        torch.jit.save(torch.jit.script(Works()), str(folder / "1" / "model.pt"))
        (folder / "config.pbtxt").write_text(
            'input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 1 ] } ]\n'
            'output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 1 ] } ]\n'
        )
        plane = PredictorDataPlane(ModelRepository([Path(name)]), TorchScriptBackend)
        await plane.start()
        await plane.loaded()

        async def execute(amount: float) -> float:
            started = time.perf_counter()
            tensor = Tensor.of("INPUT__0", np.array([amount], np.float32))
            await plane.infer(InferenceRequest("works", (tensor,)), RequestContext())
            return time.perf_counter() - started

        per_step = statistics.median([await execute(8) for _ in range(9)]) / 8
        amount = max(1.0, 0.030 // per_step)
        end = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                await execute(amount)

        clients = [asyncio.create_task(client()) for _ in range(executions)]
        late = []
        while not all(task.done() for task in clients):
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - before - 0.001) * 1000)
        await plane.stop()
        late.sort()
        console.print(
            f"1 ms ticker beside forwards of {amount * per_step * 1000:.0f} ms: {len(late)} ticks, p99 "
            f"{late[int(len(late) * 0.99)]:.2f} ms late, worst {late[-1]:.2f} ms"
        )
        return late[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a round")
    parser.add_argument("--connections", type=int, nargs="+", default=[8, 64])
    arguments = parser.parse_args()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    console = Console()
    results = []
    for connections in arguments.connections:
        loads = measure(console, arguments.rounds, arguments.seconds, connections)
        rates = {case: statistics.median(load.rate for load in loads[case]) for case in CASES}
        slowest = {case: statistics.median(load.percentile(0.99) * 1000 for load in loads[case]) for case in CASES}
        for case in CASES:
            console.print(f"{connections:>3} connections  {case:<18}{rates[case]:8.0f}/s  p99 {slowest[case]:.1f} ms")
        first, second = rates.values()
        console.print(f"{connections:>3} connections  ratio [bold]{second / first:.2f}[/bold]")
        results.append({"connections": connections, "ratio": round(second / first, 2)})
    worst = asyncio.run(ticker(console, 5.0, 2))
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    document = {
        "benchmark": "batching",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "results": results,
        "ticker_worst_ms": round(worst, 2),
    }
    (folder / "batching.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
