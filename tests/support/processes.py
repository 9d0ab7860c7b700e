"""Real processes for tests: start one, wait until it is ready, talk to it, stop it.

Knows HTTP by the standard library alone, so that what it sees is what a stranger's client sees.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wire
from wire import Reply

READY_SECONDS = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(
    port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """One exchange on a connection of its own."""
    return wire.call(f"http://127.0.0.1:{port}", method, path, body, headers)


def wait_until(condition: Any, what: str, seconds: float = READY_SECONDS) -> None:
    """Poll a condition; fails the test with `what` if it never holds."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"did not happen within {seconds} s: {what}")
        pause.wait(0.02)


class Process:
    """A child whose output is kept; `port` is where it answers."""

    def __init__(
        self, arguments: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.port, self.log = port, log
        with log.open("wb") as output:
            self.child = subprocess.Popen(
                [sys.executable, *arguments], stdout=output, stderr=output, env={**os.environ, **(environment or {})}
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def is_ready(self) -> bool:
        if self.child.poll() is not None:
            raise AssertionError(f"ended with status {self.child.returncode}:\n{self.output()[-4000:]}")
        try:
            return call(self.port, "GET", "/v2/health/ready").status == 200
        except OSError:
            return False

    def wait_until_ready(self) -> "Process":
        wait_until(self.is_ready, f"the process is ready; its output:\n{self.output()[-4000:]}")
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(60)
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise


@contextmanager
def process(arguments: Sequence[str], port: int, log: Path, *, ready: bool = True) -> Iterator[Process]:
    """A child that is stopped at the end, whatever happens."""
    running = Process(arguments, port, log)
    try:
        yield running.wait_until_ready() if ready else running
    finally:
        if running.child.poll() is None:
            running.child.terminate()
            try:
                running.child.wait(20)
            except subprocess.TimeoutExpired:
                running.child.kill()
                running.child.wait()


@contextmanager
def predictor(repository: Path, log: Path, *flags: str, port: int = 0) -> Iterator[Process]:
    port = port or free_port()
    arguments = ["-m", "torchscript_predictor", "--model-repository", str(repository), "--http-port", str(port)]
    quiet = ["--allow-metrics=false", "--grpc-port=0", "--http-address=127.0.0.1"]
    with process([*arguments, *quiet, *flags], port, log) as running:
        yield running


@contextmanager
def transformer(config: Path | str, log: Path, *flags: str, ready: bool = True) -> Iterator[Process]:
    port = free_port()
    arguments = ["-m", "kserve_transformer", str(config), "--http-port", str(port), "--http-address=127.0.0.1", *flags]
    with process(arguments, port, log, ready=ready) as running:
        yield running


@dataclass(frozen=True)
class Chain:
    """A transformer in front of a predictor, both real processes."""

    model: str
    transformer: Process
    predictor: Process

    def predict(self, body: bytes | Any, headers: Mapping[str, str] | None = None) -> Reply:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return call(self.transformer.port, "POST", f"/v1/models/{self.model}:predict", body, headers)


@contextmanager
def chain(model: str, repository: Path, config: Path, folder: Path) -> Iterator[Chain]:
    """Both processes, ready; `folder` is for their logs."""
    with (
        predictor(repository, folder / f"{model}-predictor.log") as behind,
        transformer(
            config, folder / f"{model}-transformer.log", "--predictor-host", f"127.0.0.1:{behind.port}"
        ) as front,
    ):
        yield Chain(model, front, behind)
