"""The predictor as a process: start, tables, exit status."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest
from rich.console import Console

from torchscript_predictor.report import models_table
from torchscript_predictor.states import ModelState, ModelStatus

COMMAND = [sys.executable, "-m", "torchscript_predictor", "--http-port=0", "--grpc-port=0", "--metrics-port=0"]


@contextmanager
def process(*arguments):
    """The process, its addresses once it serves, and its output so far."""
    running = subprocess.Popen(
        [*COMMAND, "--log-format=json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in running.stderr:
            message = json.loads(line)["message"]
            found = re.search(r"serving at (http://[^\s,]+)", message)
            if found:
                yield running, found[1]
                return
        pytest.fail("the process ended before it served")
    finally:
        running.kill()
        running.communicate()


def test_help_and_settings_import_no_torch():
    script = (
        "import sys, torchscript_predictor.__main__\n"
        "assert not {'torch', 'tritonclient', 'kserve'} & sys.modules.keys(), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_it_serves_and_stops_on_sigterm(repository, nets):
    repository.add("m", nets.Double())
    with process(f"--model-repository={repository.path}") as (running, address):
        with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=5) as answer:
            assert answer.status == 200
        body = {"inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
        request = urllib.request.Request(f"{address}/v2/models/m/infer", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert json.load(answer)["outputs"][0]["data"] == [2, 4]
        running.send_signal(signal.SIGTERM)
        output, _ = running.communicate(timeout=20)
        assert running.returncode == 0
        assert re.search(r"m .* 1 .* READY", output)


def test_a_model_that_fails_at_start_ends_the_process_after_the_table(repository, nets):
    repository.add("good", nets.Double())
    repository.add("bad", b"no TorchScript")
    result = subprocess.run(
        [*COMMAND, f"--model-repository={repository.path}"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert re.search(r"bad .* UNAVAILABLE .* failed to load model 'bad'", result.stdout)
    assert "1 of 2 model versions could not be loaded" in result.stderr
    assert str(repository.path) not in result.stdout + result.stderr


def test_without_exit_on_error_the_others_are_served(repository, nets):
    repository.add("good", nets.Double())
    repository.add("bad", b"no TorchScript")
    with (
        process(f"--model-repository={repository.path}", "--exit-on-error=false", "--strict-readiness=false") as (
            _,
            address,
        ),
        urllib.request.urlopen(f"{address}/v2/models/good/ready", timeout=5) as answer,
    ):
        assert answer.status == 200


@pytest.mark.parametrize(
    ("folder", "message"),
    [("none", "does not exist"), (".", "holds no model; expected <repository>/<model>/<version>/model.pt")],
)
def test_a_repository_without_models_is_refused_at_once(tmp_path, folder, message):
    result = subprocess.run(
        [*COMMAND, "--model-repository", tmp_path / folder],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "COLUMNS": "500"},
    )
    assert result.returncode == 1
    assert message in result.stderr


def test_the_table_shows_names_in_brackets_as_they_are():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(
        models_table(
            [
                ModelStatus("a", "1", ModelState.READY, "", 0.0123, 2, 3),
                ModelStatus("b", "-", ModelState.UNAVAILABLE, "forward takes [red]"),
            ]
        )
    )
    text = console.export_text()
    assert re.search(r"a +│ +1 +│ READY +│ +12 +│ +2 x 3 │", text)
    assert re.search(r"b +│ +- +│ UNAVAILABLE +│ +│ +│ forward takes \[red\]", text)
