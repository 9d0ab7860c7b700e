"""`tandem up CONFIG.yaml --model-repository DIR`: both processes on this machine, as one.

Starts, watches and stops two child processes; knows nothing of what they do.  They talk over a Unix
socket in a private folder.  The death of either ends both, with a status other than zero; one Ctrl-C
stops the transformer first, then the predictor.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import click

PREFIX_COLOURS = {"predictor": "35", "transformer": "36", "tandem": "32"}
STOP_SECONDS = 40.0
"""Longer than the children's own exit timeout of 30 s, after which they end by themselves."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The two command lines, and where clients will find the service."""

    predictor: Sequence[str]
    transformer: Sequence[str]
    url: str


def plan(config: str, repositories: Sequence[str], folder: Path, ports: "Ports", log_level: str) -> Plan:
    """How to start the pair.  Pure; `folder` is private to it."""
    predictor_socket = folder / "predictor.sock"
    logs = ["--log-format", "text", "--log-level", log_level]
    return Plan(
        predictor=[
            *(sys.executable, "-m", "torchscript_predictor"),
            *(part for repository in repositories for part in ("--model-repository", repository)),
            *("--http-port", str(ports.predictor), "--grpc-port", str(ports.grpc)),
            *("--metrics-port", str(ports.metrics)),
            *("--http-unix-socket", str(predictor_socket)),
            *logs,
        ],
        transformer=[
            *(sys.executable, "-m", "kserve_transformer", config),
            *("--http-port", str(ports.http), "--predictor-host", f"unix:{predictor_socket}", "--exit-on-mismatch"),
            *logs,
        ],
        url=f"http://127.0.0.1:{ports.http}",
    )


@dataclass(frozen=True, slots=True)
class Ports:
    http: int
    predictor: int
    grpc: int
    metrics: int


class Pair:
    """Two children: their log lines prefixed, their deaths noticed, their end in order."""

    def __init__(self) -> None:
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._readers: list[asyncio.Task[None]] = []

    async def start(self, name: str, command: Sequence[str]) -> None:
        # A session of its own keeps the terminal's Ctrl-C away from the child: the order of stopping is ours.
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            limit=2**20,
        )
        self._children[name] = child
        if child.stdout is not None:
            self._readers.append(asyncio.ensure_future(_copy_lines(name, child.stdout)))

    async def first_death(self) -> tuple[str, int]:
        """The name and status of the child that ends first."""

        async def wait(name: str, child: asyncio.subprocess.Process) -> tuple[str, int]:
            return name, await child.wait()

        tasks = [asyncio.ensure_future(wait(name, child)) for name, child in self._children.items()]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return next(iter(done)).result()

    async def stop(self) -> None:
        """End the transformer, then the predictor; each is killed if it does not end in time."""
        for name in ("transformer", "predictor"):
            child = self._children.get(name)
            if child is None or child.returncode is not None:
                continue
            child.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()
        await asyncio.gather(*self._readers, return_exceptions=True)

    def kill(self) -> None:
        for child in self._children.values():
            if child.returncode is None:
                child.kill()


async def run(config: str, repositories: Sequence[str], ports: Ports, log_level: str) -> int:
    """Run the pair until a signal or a death; returns the exit status."""
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    pair = Pair()

    def on_signal() -> None:
        if interrupted.is_set():
            pair.kill()  # asked twice: at once
        interrupted.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)

    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:  # mode 0700
        planned = plan(config, repositories, Path(folder), ports, log_level)
        started = time.monotonic()
        await pair.start("predictor", planned.predictor)
        await pair.start("transformer", planned.transformer)
        announcing = asyncio.ensure_future(_announce(planned.url, config, started))
        death = asyncio.ensure_future(pair.first_death())
        stop = asyncio.ensure_future(interrupted.wait())
        await asyncio.wait([death, stop], return_when=asyncio.FIRST_COMPLETED)
        announcing.cancel()
        died = death.result() if death.done() and not interrupted.is_set() else None
        death.cancel()
        stop.cancel()
        if died:
            say("tandem", f"the {died[0]} ended with status {died[1]}; stopping the other")
        await pair.stop()
    return (died[1] or 1) if died else 0


async def _announce(url: str, config: str, started: float) -> None:
    """Say so once the service is ready."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                async with session.get(f"{url}/v2/health/ready") as response:
                    if response.status == 200:
                        break
            await asyncio.sleep(0.05)
        async with session.get(f"{url}/v1/models") as response:
            names = (await response.json())["models"]
    seconds = time.monotonic() - started
    say("tandem", f"ready after {seconds:.1f} s: " + ", ".join(f"{url}/v1/models/{name}:predict" for name in names))


async def _copy_lines(name: str, stream: asyncio.StreamReader) -> None:
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # a line longer than the buffer: drop what is there of it
            continue
        if not line:
            return
        say(name, line.decode("utf-8", "replace").rstrip())


def say(name: str, line: str) -> None:
    """One line on standard error, prefixed with who says it."""
    prefix = f"{name:<11} |"
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        prefix = f"\033[{PREFIX_COLOURS[name]}m{prefix}\033[0m"
    print(prefix, line, file=sys.stderr, flush=True)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    """In the child, before exec: if the parent is killed, be terminated too, so that no server is left behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@click.command(
    "up",
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-"), "max_content_width": 110},
)
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--model-repository",
    "--model-store",
    "repositories",
    multiple=True,
    required=True,
    envvar="TANDEM_MODEL_REPOSITORY",
    type=click.Path(exists=True, file_okay=False),
    help="Folder of models; may be given several times.",
)
@click.option(
    "--http-port", default=8080, envvar="TANDEM_HTTP_PORT", show_default=True, help="The transformer's; 0: a free one."
)
@click.option("--predictor-http-port", default=8000, show_default=True, help="The predictor's; 0: a free one.")
@click.option("--predictor-grpc-port", default=8001, show_default=True, help="The predictor's gRPC; 0: a free one.")
@click.option("--metrics-port", default=8002, show_default=True, help="The predictor's metrics; 0: a free one.")
@click.option(
    "--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"])
)
def command(
    config: str,
    repositories: tuple[str, ...],
    http_port: int,
    predictor_http_port: int,
    predictor_grpc_port: int,
    metrics_port: int,
    log_level: str,
) -> None:
    """Run transformer and predictor together, joined by a private Unix socket."""
    wanted = (http_port, predictor_http_port, predictor_grpc_port, metrics_port)
    ports = Ports(*(port or free_port() for port in wanted))
    sys.exit(asyncio.run(run(config, repositories, ports, log_level)))
