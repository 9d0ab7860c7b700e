"""`tandem up`: two real processes as one."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from networks import CifarNet
from processes import Process, call, free_port, wait_until

from tandem.export import export
from tandem.up import Ports, plan

CONFIG = "model_name: cifar10\nimage: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}\n"


def test_the_plan_joins_both_sides_by_a_private_socket(tmp_path: Path) -> None:
    made = plan("c.yaml", ["a", "b"], tmp_path, Ports(8080, 8000, 8001, 8002), "info")
    socket = str(tmp_path / "predictor.sock")
    assert made.predictor[1:7] == ["-m", "torchscript_predictor", "--model-repository", "a", "--model-repository", "b"]
    assert made.predictor[made.predictor.index("--http-unix-socket") + 1] == socket
    assert made.transformer[made.transformer.index("--predictor-host") + 1] == f"unix:{socket}"
    assert made.url == "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("up")
    export(CifarNet, folder / "models", "cifar10", [3, 32, 32])
    (folder / "transformer.yaml").write_text(CONFIG)
    (folder / "misfit.yaml").write_text(CONFIG.replace("{mean", "{resize: {height: 64, width: 64}, mean"))
    return folder


@contextmanager
def up(repository: Path, log: Path, config: str = "transformer.yaml") -> Iterator[Process]:
    port = free_port()
    arguments = ["-m", "tandem", "up", str(repository / config), "--model-repository", str(repository / "models")]
    ports = [
        "--http-port",
        str(port),
        "--predictor-http-port",
        "0",
        "--predictor-grpc-port",
        "0",
        "--metrics-port",
        "0",
    ]
    running = Process([*arguments, *ports], port, log)
    try:
        yield running
    finally:
        running.stop(signal.SIGKILL)


def children(parent: int) -> dict[str, int]:
    """{"predictor" or "transformer": pid} of a `tandem up`."""
    found = {}
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        command = Path(f"/proc/{pid}/cmdline").read_text()
        found["predictor" if "torchscript_predictor" in command else "transformer"] = int(pid)
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
def test_one_interrupt_stops_both_in_order(repository: Path, tmp_path: Path) -> None:
    with up(repository, tmp_path / "log") as pair:
        pair.wait_until_ready()
        wait_until(lambda: "ready after" in pair.output(), "the address is printed", 20)
        answer = call(pair.port, "POST", "/v1/models/cifar10:predict", b'{"instances": [{}]}')
        assert answer.status == 400
        pids = children(pair.child.pid)
        folder = Path(re.search(r"unix:(\S+)/predictor.sock", pair.output())[1])  # type: ignore[index]
        assert folder.stat().st_mode & 0o777 == 0o700
        assert pair.stop(signal.SIGINT) == 0
        assert all(is_gone(pid) for pid in pids.values())
        assert not folder.exists()
        assert f"http://127.0.0.1:{pair.port}/v1/models/cifar10:predict" in pair.output()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["predictor", "transformer"])
def test_the_death_of_either_ends_both(repository: Path, tmp_path: Path, victim: str) -> None:
    with up(repository, tmp_path / "log") as pair:
        pair.wait_until_ready()
        pids = children(pair.child.pid)
        os.kill(pids[victim], signal.SIGKILL)
        assert pair.child.wait(30) != 0
        assert all(is_gone(pid) for pid in pids.values())
        assert f"the {victim} ended" in pair.output()


@pytest.mark.slow
def test_nothing_is_left_behind_when_it_is_killed(repository: Path, tmp_path: Path) -> None:
    with up(repository, tmp_path / "log") as pair:
        pair.wait_until_ready()
        pids = children(pair.child.pid)
        pair.stop(signal.SIGKILL)
        wait_until(lambda: all(is_gone(pid) for pid in pids.values()), "both children end", 30)


@pytest.mark.slow
def test_a_mismatch_ends_it_with_both_sides_named(repository: Path, tmp_path: Path) -> None:
    with up(repository, tmp_path / "log", "misfit.yaml") as pair:
        assert pair.child.wait(60) == 1
        assert "[3, 64, 64]" in pair.output()
        assert "[3, 32, 32]" in pair.output()


@pytest.mark.slow
def test_predict_prints_labels_and_times(repository: Path, tmp_path: Path) -> None:
    photo = Path(__file__).parents[2] / "examples" / "photos" / "coffee.png"
    (repository / "classes.yaml").write_text(
        CONFIG.replace("{mean", "{resize: {height: 32, width: 32}, mean")
        + "output: {task: classification, activation: softmax, top_k: 2}\n"
    )
    with up(repository, tmp_path / "log", "classes.yaml") as pair:
        pair.wait_until_ready()
        command = [sys.executable, "-m", "tandem", "predict", f"http://127.0.0.1:{pair.port}", str(photo)]
        printed = subprocess.run(command, capture_output=True, text=True)
        assert printed.returncode == 0, printed.stderr
        assert "coffee.png" in printed.stdout
        assert "preprocess" in printed.stdout
        as_json = subprocess.run([*command, "--json"], capture_output=True, text=True)
        (prediction,) = json.loads(as_json.stdout)["predictions"]
        assert len(prediction) == 2
        refused = subprocess.run([*command, "--model", "nope"], capture_output=True, text=True)
        assert refused.returncode == 1
        assert "404" in refused.stderr
        unreachable = subprocess.run(
            [sys.executable, "-m", "tandem", "predict", f"http://127.0.0.1:{free_port()}", str(photo)],
            capture_output=True,
            text=True,
        )
        assert unreachable.returncode == 1
        assert "Traceback" not in unreachable.stderr
