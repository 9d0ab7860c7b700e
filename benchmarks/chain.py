"""`make bench`: this chain beside the stock KServe chain, over the same predictor, in one run.

V1 predict with one 32x32 PNG, the CIFAR-10 network, 8 connections.  Rounds alternate between the two
transformers, so that a noisy machine is noisy for both; medians and their ratio are printed and kept in
`benchmarks/results/`.  CPU time is what the operating system accounts to each process.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from PIL import Image
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from load import Load, closed_loop  # noqa: E402

from tandem.export import export, load_factory  # noqa: E402
from tandem.up import free_port  # noqa: E402

PHOTO = HERE.parent / "examples" / "photos" / "coffee.png"
PATH = "/v1/models/cifar10:predict"
READY_SECONDS = 90
CONFIG = """\
model_name: cifar10
image: {field: image.b64, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
"""


@dataclass(frozen=True)
class Result:
    """The medians over all rounds of one transformer."""

    name: str
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    transformer_cpu_ms: float
    predictor_cpu_ms: float
    transformer_resident_mb: float
    ready_seconds: float


class Process:
    """A server in a child process and what the operating system says of it."""

    def __init__(self, name: str, port: int, arguments: Sequence[str], folder: Path) -> None:
        self.name, self.port = name, port
        self.log = folder / f"{name.replace(' ', '-')}.log"
        started = time.monotonic()
        with self.log.open("wb") as log:
            command = [sys.executable, *arguments, f"--http_port={port}"]
            self.child = subprocess.Popen(command, stdout=log, stderr=log)
        self._wait_until_ready()
        self.ready_seconds = time.monotonic() - started

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end and self.child.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        sys.exit(f"{self.name} did not start:\n{self.log.read_text()[-3000:]}")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self) -> None:
        self.child.terminate()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()


def picture_body() -> bytes:
    """A V1 request with one 32x32 PNG."""
    with Image.open(PHOTO) as photo:
        small = photo.convert("RGB").resize((32, 32))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return json.dumps({"instances": [{"image": {"b64": base64.b64encode(buffer.getvalue()).decode()}}]}).encode()


def measure(console: Console, *, rounds: int, seconds: float, connections: int) -> list[Result]:
    """Start the predictor and both transformers, then take turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sys.path.insert(0, str(HERE))
        export(load_factory("cifar:create"), folder / "models", "cifar10", [3, 32, 32], max_batch_size=1)
        (folder / "transformer.yaml").write_text(CONFIG)
        started: list[Process] = []

        def start(name: str, *arguments: str) -> Process:
            started.append(Process(name, free_port(), arguments, folder))
            return started[-1]

        try:
            predictor = start(
                "predictor",
                "-mtorchscript_predictor",
                f"--model-repository={folder / 'models'}",
                "--allow-metrics=false",
                "--allow-grpc=false",
            )
            host = f"--predictor_host=127.0.0.1:{predictor.port}"
            transformers = [
                start("tandem", "-mkserve_transformer", str(folder / "transformer.yaml"), host),
                start(
                    "stock KServe",
                    str(HERE / "stock_transformer.py"),
                    "--model_name=cifar10",
                    host,
                    "--predictor_protocol=v2",
                    "--enable_grpc=false",
                ),
            ]
            return _rounds(console, predictor, transformers, rounds, seconds, connections)
        finally:
            for process in reversed(started):
                process.stop()


def _rounds(
    console: Console, predictor: Process, transformers: list[Process], rounds: int, seconds: float, connections: int
) -> list[Result]:
    body = picture_body()
    answers = {process.name: _answer(process.port, body) for process in transformers}
    first, second = (json.loads(answer)["predictions"][0] for answer in answers.values())
    if max(abs(a - b) for a, b in zip(first, second, strict=True)) > 1e-4:
        sys.exit(f"the transformers disagree, so their speed cannot be compared: {answers}")
    figures: dict[str, list[tuple[Load, float, float]]] = {process.name: [] for process in transformers}
    for number in range(-1, rounds):  # round -1 warms up
        for process in transformers:
            before = process.cpu_seconds(), predictor.cpu_seconds()
            load = asyncio.run(closed_loop(process.port, PATH, body, connections=connections, seconds=seconds))
            used = process.cpu_seconds() - before[0], predictor.cpu_seconds() - before[1]
            if load.failures:
                sys.exit(f"{process.name}: {load.failures} requests failed")
            if number >= 0:
                count = len(load.latencies)
                figures[process.name].append((load, used[0] / count, used[1] / count))
                console.print(f"round {number + 1}/{rounds}  {process.name:<14} {load.rate:8.0f} requests/s")
    return [
        Result(
            process.name,
            statistics.median(load.rate for load, _, _ in figures[process.name]),
            statistics.median(load.percentile(0.50) for load, _, _ in figures[process.name]) * 1000,
            statistics.median(load.percentile(0.99) for load, _, _ in figures[process.name]) * 1000,
            statistics.median(own for _, own, _ in figures[process.name]) * 1000,
            statistics.median(other for _, _, other in figures[process.name]) * 1000,
            process.resident_mb(),
            process.ready_seconds,
        )
        for process in transformers
    ]


def _answer(port: int, body: bytes) -> bytes:
    headers = {"Content-Type": "application/json"}  # stock KServe reads nothing else as JSON
    request = urllib.request.Request(f"http://127.0.0.1:{port}{PATH}", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
        return content


def report(console: Console, results: list[Result], connections: int) -> None:
    """Print the table and keep the figures."""
    table = Table(title=f"V1 predict, one 32x32 PNG, CIFAR-10 net, {connections} connections, {os.cpu_count()} cores")
    for column in (
        "",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "transformer CPU ms",
        "predictor CPU ms",
        "resident MB",
        "ready s",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for r in results:
        table.add_row(
            r.name,
            f"{r.requests_per_second:.0f}",
            *(f"{value:.2f}" for value in (r.p50_ms, r.p99_ms, r.transformer_cpu_ms, r.predictor_cpu_ms)),
            f"{r.transformer_resident_mb:.0f}",
            f"{r.ready_seconds:.2f}",
        )
    console.print(table)
    ratio = results[0].requests_per_second / results[1].requests_per_second
    console.print(f"{results[0].name} / {results[1].name}: [bold]{ratio:.1f}[/bold] times the requests a second")
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    document = {
        "benchmark": "chain",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "connections": connections,
        "ratio": round(ratio, 2),
        "results": [{key: v if isinstance(v, str) else round(v, 3) for key, v in asdict(r).items()} for r in results],
    }
    (folder / "chain.json").write_text(json.dumps(document, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round")
    parser.add_argument("--connections", type=int, default=8)
    arguments = parser.parse_args()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    console = Console()
    results = measure(console, rounds=arguments.rounds, seconds=arguments.seconds, connections=arguments.connections)
    report(console, results, arguments.connections)


if __name__ == "__main__":
    main()
