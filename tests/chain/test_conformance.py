"""The predictor against recorded answers of Triton 2.51, where the recordings are present."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Process, call, predictor

CONFORMANCE = Path(__file__).parents[3] / "shared" / "conformance"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CONFORMANCE.exists(), reason="the recorded answers are not here"),
]

GROUPS = [
    "health",
    "meta",
    "config",
    "route",
    "json",
    "bin",
    "dtype",
    "dict",
    "reshape",
    "fail",
    "version",
    "model",
    "gzip",
    "class",
    "load",
    "after",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Explicit control over a folder that holds the good and the bad models; the good ones loaded."""
    folder = tmp_path_factory.mktemp("conformance")
    export = [sys.executable, str(CONFORMANCE / "export_models.py"), str(folder / "models")]
    subprocess.run(export, check=True, capture_output=True)
    flags = [f"--load-model={model.name}" for model in sorted((folder / "models").iterdir())]
    shutil.copytree(folder / "models_bad", folder / "models", dirs_exist_ok=True)
    with predictor(folder / "models", folder / "log", "--model-control-mode=explicit", *flags) as running:
        yield running


@pytest.mark.parametrize("group", GROUPS)
def test_every_recorded_case_agrees(server: Process, group: str) -> None:
    replay = [sys.executable, str(CONFORMANCE / "replay.py"), f"http://127.0.0.1:{server.port}"]
    done = subprocess.run(
        [*replay, str(CONFORMANCE / "golden.jsonl"), "--only", f"{group}/"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("unknown_field", ["config.pbtxt:3", "colour"]),
        ("wrong_name", ["other", "wrong_name"]),
        ("no_input", ["input"]),
        ("zero_dim", ["dim", "0"]),
        ("too_many_inputs", ["expects 2 inputs, model provides 1"]),
        ("gpu_only", ["KIND_GPU"]),
        ("bad_parameter", ["INFERENCE_MODE", "perhaps"]),
        ("corrupt", ["corrupt"]),
        ("no_version", ["version"]),
    ],
)
def test_a_bad_model_is_refused_with_its_reason_and_the_others_serve(
    bad_repository: Process, model: str, words: list[str]
) -> None:
    answer = call(bad_repository.port, "POST", f"/v2/models/{model}/infer", b'{"inputs": []}')
    text = answer.json["error"]
    assert answer.status in (400, 404, 503)
    for word in words:
        assert word in text, text
    assert "/tmp" not in text
    assert call(bad_repository.port, "GET", "/v2/models/add_sub/ready").status == 200


@pytest.fixture(scope="module")
def bad_repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("bad")
    export = [sys.executable, str(CONFORMANCE / "export_models.py"), str(folder / "models")]
    subprocess.run(export, check=True, capture_output=True)
    flags = ["--exit-on-error=false", "--strict-readiness=false", "--model-repository", str(folder / "models_bad")]
    with predictor(folder / "models", folder / "log", *flags) as running:
        yield running
