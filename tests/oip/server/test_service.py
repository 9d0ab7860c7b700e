"""The life of a service: listening, starting, draining, ending; in a thread, and once as a real process."""

import asyncio
import json
import logging
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from serving import FunctionPlane, Running, serving
from wire import Wire, exchange

from oip.server.service import Service, _reachable
from oip.server.settings import ServerSettings

INFER = "/v2/models/model/infer"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
GOOD = json.dumps(BODY).encode()
BINARY = json.dumps({**BODY, "parameters": {"binary_data_output": True}}).encode()
SUPPORT = Path(__file__).parents[2] / "support"


class Plane(FunctionPlane):
    """Writes down its life in `events`; `infer` waits for `go` where `held`."""

    def __init__(self, *, held: bool = False, start: Callable | None = None) -> None:
        super().__init__(self._compute)
        self.events: list[str] = []
        self.begun = threading.Event()
        self.held = held
        self._start = start

    def release(self) -> None:
        self.held = False
        self.loop.call_soon_threadsafe(self.go.set)

    async def _compute(self, arrays):
        if self.held:
            self.loop, self.go = asyncio.get_running_loop(), asyncio.Event()
            self.begun.set()
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.events.append("cancelled")
                raise
        self.events.append("answered")
        return {"y": arrays["x"]}

    async def start(self) -> None:
        self.events.append("start")
        if self._start is not None:
            await self._start()

    async def stop(self) -> None:
        self.events.append("stop")


def settings(**values) -> ServerSettings:
    return ServerSettings(**{"http_port": 0, "http_address": "127.0.0.1", **values})


def ask_to_stop(running: Running) -> None:
    running.loop.call_soon_threadsafe(running.service.stop)


def ended(running: Running) -> int | None:
    """The status with which a service ends that is about to."""
    running._thread.join(20)
    return running.status


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end


def refused(url: str) -> bool:
    try:
        exchange(url, "GET", "/v2/health/live")
    except OSError:
        return True
    return False


# --- drain ------------------------------------------------------------------------------------------------------------


def test_a_drain_finishes_what_is_in_flight_and_is_not_ready_meanwhile():
    plane = Plane(held=True)
    with serving(plane, settings()) as running, Wire(running.url) as request, Wire(running.url) as probe:
        request.request("POST", INFER, GOOD)
        assert plane.begun.wait(20)
        assert probe.request("GET", "/v2/health/ready").reply().json == {"ready": True}
        ask_to_stop(running)
        while (ready := probe.request("GET", "/v2/health/ready").reply()).status == 200:
            pass
        assert (ready.status, ready.json, ready.headers["connection"]) == (503, {"ready": False}, "close")
        assert probe.closed()
        plane.release()
        reply = request.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert ended(running) == 0
        assert refused(running.url)
    assert plane.events == ["start", "answered", "stop"]


def test_during_the_delay_of_a_drain_new_connections_are_answered():
    plane = Plane()
    with serving(plane, settings(drain_delay_seconds=1)) as running:
        ask_to_stop(running)
        until(lambda: exchange(running.url, "GET", "/v2/models/model/ready").status == 503)
        assert exchange(running.url, "GET", "/v2/health/live").status == 200
        assert exchange(running.url, "POST", INFER, GOOD).status == 200
        assert ended(running) == 0
    assert plane.events == ["start", "answered", "stop"]


def test_a_failed_start_does_not_wait_for_a_balancer():
    async def failed(service: Service) -> int:
        return 3

    with serving(Plane(), settings(drain_delay_seconds=1000), started=failed) as running:
        assert ended(running) == 3


def test_a_drain_is_bounded_and_says_so(caplog):
    plane = Plane(held=True)
    with serving(plane, settings(exit_timeout_seconds=0.1)) as running, Wire(running.url) as request:
        request.request("POST", INFER, GOOD)
        assert plane.begun.wait(20)
        assert running.stop() == 1
        with pytest.raises(ConnectionError):
            request.reply()
    assert plane.events == ["start", "cancelled", "stop"]
    assert "1 requests are still in flight after 0.1 s" in caplog.text


def test_an_answer_that_is_not_sent_yet_is_in_flight(caplog):
    """The handler is done, but the caller has not taken its 64 MiB: a drain must wait for that, too."""
    plane = Plane()
    plane.compute = lambda arrays: {"y": np.zeros(16 << 20, np.float32)}
    with serving(plane, settings(exit_timeout_seconds=0.1)) as running, Wire(running.url) as request:
        request.request("POST", INFER, BINARY)
        assert request.socket.recv(1) == b"H"  # it is being sent
        assert running.stop() == 1
    assert "1 requests are still in flight" in caplog.text


def test_an_answer_that_is_taken_slowly_is_sent_to_its_end():
    plane = Plane()
    plane.compute = lambda arrays: {"y": np.zeros(4 << 20, np.float32)}
    with serving(plane, settings()) as running, Wire(running.url) as request:
        request.request("POST", INFER, BINARY)
        request._receive()
        ask_to_stop(running)
        until(lambda: refused(running.url))
        assert len(request.reply().body) > 16 << 20
        assert ended(running) == 0


def test_stopping_twice_changes_nothing():
    def stop_twice() -> None:
        running.service.stop(5)
        running.service.stop(0)

    with serving(Plane(), settings()) as running:
        running.loop.call_soon_threadsafe(stop_twice)
        assert ended(running) == 5


# --- start ------------------------------------------------------------------------------------------------------------


def test_the_port_is_open_while_the_plane_starts_and_a_stop_ends_its_start():
    started = threading.Event()

    async def start() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            plane.events.append("start cancelled")
            raise

    plane = Plane(start=start)
    plane.is_ready = False
    with serving(plane, settings()) as running:
        assert started.wait(20)
        assert exchange(running.url, "GET", "/v2/health/live").status == 200
        assert exchange(running.url, "GET", "/v2/health/ready").status == 503
        assert running.stop() == 0
    assert plane.events == ["start", "start cancelled", "stop"]


@pytest.mark.parametrize("place", ["start", "started"])
def test_a_start_that_fails_ends_the_process(caplog, place):
    async def fail(*_: object) -> None:
        raise RuntimeError("broken")

    plane = Plane(start=fail) if place == "start" else Plane()
    with serving(plane, settings(), started=fail if place == "started" else None) as running:
        assert ended(running) == 1
    assert plane.events == ["start", "stop"]
    assert "starting failed; this is a bug" in caplog.text


def test_started_is_told_where_the_service_is():
    told = []

    async def started(service: Service) -> None:
        told.extend(service.addresses)
        service.stop(4)

    with serving(Plane(), settings(), started=started) as running:
        assert ended(running) == 4
        assert told == [running.url]


# --- sockets ----------------------------------------------------------------------------------------------------------


def test_a_unix_socket_is_served_to_this_user_alone_and_removed(tmp_path):
    path = tmp_path / "s.sock"
    with serving(Plane(), settings(http_unix_socket=path)) as running:
        assert running.service.addresses[0] == f"unix:{path}"
        assert stat.filemode(path.stat().st_mode) == "srw-------"
        assert exchange(f"unix:{path}", "POST", INFER, GOOD).status == 200
        assert exchange(running.url, "POST", INFER, GOOD).status == 200
        assert running.stop() == 0
    assert not path.exists()


def test_a_socket_that_a_killed_process_left_is_replaced(tmp_path):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(Plane(), settings(http_unix_socket=path)):
        assert exchange(f"unix:{path}", "GET", "/v2/health/live").status == 200


def run(service: Service) -> int:
    return asyncio.run(service.run())


def test_a_file_that_is_no_socket_is_left_alone(tmp_path, caplog):
    path = tmp_path / "precious"
    path.write_text("data")
    plane = Plane()
    assert run(Service(plane, settings(http_unix_socket=path))) == 1
    assert path.read_text() == "data"
    assert plane.events == []
    assert "cannot listen" in caplog.text


def test_a_port_that_is_taken_ends_the_process_before_anything_starts(tmp_path, caplog):
    path = tmp_path / "s.sock"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        for values, options in (({"http_port": taken}, {}), ({}, {"metrics_port": taken})):
            plane = Plane()
            assert run(Service(plane, settings(http_unix_socket=path, **values), **options)) == 1
            assert plane.events == []
            assert not path.exists()
            assert f"cannot listen: port {taken} of 127.0.0.1: address already in use" in caplog.text.lower()
            caplog.clear()


def test_metrics_have_a_port_of_their_own_and_nothing_else_there():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(Plane(), settings(), metrics_port=port) as running:
        assert exchange(running.url, "POST", INFER, GOOD).status == 200
        url = f"http://127.0.0.1:{port}"
        reply = exchange(url, "GET", "/metrics")
        assert b'tandem_requests_total{method="POST",route="/v2/models/{name}/infer",status="200"} 1.0' in reply.body
        reply = exchange(url, "GET", "/v2")
        assert (reply.status, reply.json["code"], reply.headers["server"]) == (404, "NOT_FOUND", "tandem")


@pytest.mark.parametrize(
    ("address", "host"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.0.0.1", "10.0.0.1"), ("localhost", "localhost")],
)
def test_the_address_that_is_told_can_be_called(address, host):
    assert _reachable(address) == host


# --- a real process ---------------------------------------------------------------------------------------------------

SCRIPT = """
    import asyncio, sys
    from serving import FunctionPlane
    from oip.server.service import serve
    from oip.server.settings import ServerSettings

    async def compute(arrays):
        print("computing", flush=True)
        while not go.is_set():
            await asyncio.sleep(0.005)
        return {"y": arrays["x"]}

    async def started(service):
        print(service.addresses[0], flush=True)

    import threading
    go = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), go.set()), daemon=True).start()
    settings = ServerSettings(http_port=int(sys.argv[1]), http_address="127.0.0.1")
    sys.exit(serve(lambda: FunctionPlane(compute), settings, started=started))
"""


@pytest.fixture
def process():
    """Starts the script as a process; whatever is left of it is killed."""
    processes = []

    def start(port: int = 0) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(SUPPORT)},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_a_process(process, number):
    child = process()
    url = child.stdout.readline().strip()
    with Wire(url) as wire:
        wire.request("POST", INFER, GOOD)
        assert child.stdout.readline() == "computing\n"
        child.send_signal(number)
        until(lambda: refused(url))  # it no longer accepts, but still works
        child.stdin.write("go\n")
        child.stdin.flush()
        assert wire.reply().status == 200
    assert child.wait(20) == 0
    assert child.stderr.read() == ""


def test_a_second_signal_ends_a_process_at_once(process):
    child = process()
    url = child.stdout.readline().strip()
    with Wire(url) as wire:
        wire.request("POST", INFER, GOOD)
        assert child.stdout.readline() == "computing\n"
        child.send_signal(signal.SIGTERM)
        until(lambda: refused(url))
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 1


def test_a_process_whose_port_is_taken_says_so_in_one_line(process):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        child = process(other.getsockname()[1])
        assert child.wait(20) == 1
    (line,) = child.stderr.read().splitlines()
    record = json.loads(line)
    assert record["level"] == "error"
    assert record["message"].startswith("cannot listen: port ")


def test_nothing_of_a_whole_life_is_logged_as_an_error(caplog):
    with serving(Plane(), settings()) as running:
        assert exchange(running.url, "POST", INFER, GOOD).status == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
