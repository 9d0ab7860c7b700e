"""The command line: which files are served, every flag of KServe's, what is refused, and what the process loads."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from processes import transformer
from serving import serving
from transforming import call, picture_plane, plain

from kserve_transformer import __main__ as main
from kserve_transformer.__main__ import build, command, find_configs
from kserve_transformer.settings import NO_EFFECT, OVERRIDES, TransformerSettings
from kserve_transformer.transformer import Transformer
from oip.server.flags import flag_of

# --- which files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mnt" / "models"
    (folder / "m").mkdir(parents=True)
    monkeypatch.setattr(main, "MODELS_FOLDER", folder)
    monkeypatch.delenv("TANDEM_CONFIG", raising=False)
    return folder


def test_the_argument_wins_then_the_environment_then_the_models_folder(models: Path) -> None:
    (models / "transformer.yaml").touch()
    (models / "m" / "transformer.yaml").touch()
    environment = {"TANDEM_CONFIG": "/environment.yaml"}
    assert find_configs(("a.yaml", "b.yaml"), environment, "m") == [Path("a.yaml"), Path("b.yaml")]
    assert find_configs((), environment, "m") == [Path("/environment.yaml")]
    assert find_configs((), {"TANDEM_CONFIG": ""}, "m") == [models / "m" / "transformer.yaml"]
    assert find_configs((), {}, "other") == [models / "transformer.yaml"]
    assert find_configs((), {}, None) == [models / "transformer.yaml"]
    (models / "transformer.yaml").unlink()
    assert find_configs((), {}, None) == []
    assert find_configs((), {}, "m") == [models / "m" / "transformer.yaml"]


def test_a_class_is_no_file(models: Path) -> None:
    assert find_configs(("module:Class",), {}, None) == []
    assert find_configs(("module:Class", "a.yaml"), {}, None) == [Path("a.yaml")]
    assert find_configs(("odd:name.yaml",), {}, None) == [Path("odd:name.yaml")]


# --- what is built ----------------------------------------------------------------------------------------------------


def write(folder: Path, text: str, name: str = "transformer.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def built(*arguments: str, **settings: Any) -> list[Transformer]:
    return build(arguments, TransformerSettings(**settings))


def test_flags_win_over_the_file(models: Path) -> None:
    path = write(models, "model_name: file\npredictor: {host: 'file:1', retries: 1, use_ssl: true}\n")
    flags = {
        "model_name": "flag",
        "predictor_host": "flag:2",
        "predictor_protocol": "v2",
        "predictor_use_ssl": False,
        "predictor_request_timeout_seconds": 1.5,
        "predictor_request_retries": 3,
        "hand_off": "json",
    }
    assert flags.keys() == OVERRIDES.keys()
    (made,) = built(path, **flags)
    section = made.config.predictor
    assert (made.name, section.host, section.use_ssl) == ("flag", "flag:2", False)
    assert (section.timeout_seconds, section.retries, section.hand_off) == (1.5, 3, "json")
    (made,) = built(path)
    assert (made.name, made.config.predictor.host, made.config.predictor.use_ssl) == ("file", "file:1", True)


OWN = """
from kserve_transformer import Transformer

class Own(Transformer):
    class Nested(Transformer):
        pass

class Other:
    pass
"""


def test_a_class_may_stand_on_the_command_line_or_in_the_file(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    write(models, OWN, "hooks_of_mine.py")
    path = write(models, "model_name: a\ntransformer: hooks_of_mine:Own\n")
    assert type(built(path)[0]).__name__ == "Own"
    assert type(built(path, "hooks_of_mine:Own.Nested")[0]).__name__ == "Nested"
    assert type(built("hooks_of_mine:Own", model_name="b")[0]).__name__ == "Own"
    assert str(models) in sys.path


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ([], {}, "no configuration: give a YAML file, set TANDEM_CONFIG, or put transformer.yaml into"),
        (["absent.yaml"], {}, "absent.yaml: cannot be read: No such file or directory"),
        (["{a}", "{b}"], {"model_name": "x"}, "--model-name names one model, but several files were given"),
        (["{a}", "{a}"], {}, "two files have the same model_name among a, a"),
        (["{a}", "os:path", "os:sep"], {}, "give one class, with at most one file"),
        (["{a}", "{b}", "os:path"], {}, "give one class, with at most one file"),
        (
            ["{a}", "no_such_module_at_all:Class"],
            {},
            "no_such_module_at_all:Class: cannot be imported: No module named",
        ),
        (["{a}", "os:NoSuchClass"], {}, "os:NoSuchClass: cannot be imported: module 'os' has no attribute"),
        (["{a}"], {"predictor_host": "http://host/path"}, "'http://host/path' is no address; use host:port,"),
        (["{a}"], {"predictor_host": "host:99999"}, "is no number between 0 and 65535"),
        (["{wrong}"], {}, "wrong.yaml:1: modelname: unknown key; did you mean 'model_name'?"),
        (["{labels}"], {}, "labels.yaml:1: output.labels: "),
    ],
)
def test_what_cannot_be_served_is_a_usage_error(
    models: Path, arguments: list[str], settings: dict[str, Any], message: str
) -> None:
    files = {
        "a": write(models, "model_name: a", "a.yaml"),
        "b": write(models, "model_name: b", "b.yaml"),
        "wrong": write(models, "modelname: b", "wrong.yaml"),
        "labels": write(models, "output: {task: classification, labels: absent.txt}", "labels.yaml"),
    }
    with pytest.raises(click.UsageError) as caught:
        built(*(argument.format(**files) for argument in arguments), **settings)
    assert message in caught.value.message


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def invoke(models: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, list[TransformerSettings]]]:
    """Run the command up to the point where it would serve."""
    seen: list[TransformerSettings] = []

    def serve(plane: Any, settings: TransformerSettings, **_: Any) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(main, "serve", serve)
    path = write(models, "model_name: a\nserver: {http_port: 1234, log_level: debug}\n")

    def run(*arguments: str, **environment: str) -> tuple[Result, list[TransformerSettings]]:
        return CliRunner().invoke(command, [path, *arguments], env=environment), seen

    return run


KSERVE = [
    *("--http_port", "8080", "--grpc_port", "8081", "--workers", "2", "--max_threads", "4"),
    *("--max_asyncio_workers", "4", "--enable_grpc", "true", "--enable_docs_url", "false"),
    *("--enable_latency_logging", "true", "--configure_logging", "true", "--log_config_file", "x.yaml"),
    *("--access_log_format", "x", "--event-loop", "auto", "--timeout-keep-alive", "65"),
    *("--model_name", "m", "--predictor_host", "p:1", "--protocol", "v2", "--predictor_protocol", "v2"),
    *("--predictor_use_ssl", "false", "--predictor_request_timeout_seconds", "600"),
    *("--predictor_request_retries", "0", "--enable_predictor_health_check"),
    *("--grpc_max_send_message_length", "8388608", "--grpc_max_receive_message_length", "8388608"),
]
"""Every flag of KServe's model server but the two for TLS, as its users and its controller spell them."""


def test_every_flag_of_kserves_is_accepted(invoke: Any, caplog: pytest.LogCaptureFixture) -> None:
    result, seen = invoke(*KSERVE)
    assert result.exit_code == 0, result.output
    (settings,) = seen
    assert (settings.http_port, settings.model_name, settings.predictor_host) == (8080, "m", "p:1")
    warned = {record.getMessage().split()[0] for record in caplog.records if record.levelno == logging.WARNING}
    asked = {word.replace("_", "-") for word in KSERVE if word.startswith("--")}
    idle = {flag_of(flag.name) for flag in NO_EFFECT}
    assert warned == (idle & asked) - {
        # what these ask for happens anyway
        "--enable-docs-url",
        "--enable-latency-logging",
        "--configure-logging",
        "--event-loop",
        "--enable-predictor-health-check",
    }


@pytest.mark.parametrize("flag", [flag_of(name) for name in TransformerSettings.model_fields])
def test_every_flag_is_in_the_help_once(invoke: Any, flag: str) -> None:
    result, _ = invoke("--help")
    assert sum(line.split()[0].rstrip(",") == flag for line in result.output.splitlines() if line.split()) == 1


def test_flags_win_over_the_environment_which_wins_over_the_file(invoke: Any) -> None:
    def port(*arguments: str, **environment: str) -> tuple[int, str]:
        result, seen = invoke(*arguments, **environment)
        assert result.exit_code == 0, result.output
        return seen[-1].http_port, seen[-1].log_level

    assert port() == (1234, "debug")
    assert port(TANDEM_HTTP_PORT="2345") == (2345, "debug")
    assert port("--http-port=3456", TANDEM_HTTP_PORT="2345") == (3456, "debug")
    assert port("--log_level", "error") == (1234, "error")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predictor-hots", "x"], "--predictor-host"),
        (["--modelname", "x"], "--model-name"),
        (["--http-port", "x"], "--http-port: "),
        (["--http-port", "70000"], "--http-port: Input should be less than or equal to 65535"),
        (["--protocol", "v1"], "--predictor-protocol: Input should be 'v2', got 'v1'"),
        (["--protocol", "grpc-v2"], "Input should be 'v2', got 'grpc-v2'"),
        (["--predictor-request-retries", "99"], "--predictor-request-retries: "),
        (["--decode-threads", "0"], "--decode-threads: "),
        (["--ssl-certfile", "absent.pem"], "--ssl-certfile, --ssl-keyfile: cannot be used: No such file"),
    ],
)
def test_what_is_refused_is_named(invoke: Any, arguments: list[str], message: str) -> None:
    result, seen = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not seen


def test_a_server_setting_in_the_file_that_is_none(models: Path, invoke: Any) -> None:
    path = write(models, "model_name: b\nserver: {http_prot: 1}\n", "b.yaml")
    result = CliRunner().invoke(command, [path])
    assert result.exit_code == 2
    assert "server.http_prot: unknown setting; did you mean 'http_port'?" in result.output


# --- the process ------------------------------------------------------------------------------------------------------

LOADED = """
import sys
from kserve_transformer.__main__ import command  # all that the process imports before it serves
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_the_default_process_loads_no_heavy_library() -> None:
    output = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True).stdout
    loaded = set(output.split())
    assert {"kserve_transformer", "oip", "aiohttp", "PIL"} <= loaded
    assert not loaded & {"kserve", "pandas", "torch", "torchvision", "grpc", "google", "fastapi", "scipy"}


def test_a_process_serves_and_still_has_loaded_nothing_heavy(tmp_path: Path) -> None:
    """The flags that KServe's controller adds, one real process, one picture."""
    config = tmp_path / "transformer.yaml"
    config.write_text("image: {center_crop: 4}\noutput: {response: outputs}\n")
    with serving(picture_plane(name="cifar10")) as predictor:
        host = predictor.url.removeprefix("http://")
        flags = ("--model_name", "cifar10", "--predictor_host", host, "--protocol", "v2", "--workers", "1")
        with transformer(config, tmp_path / "log", *flags) as process:
            url = f"http://127.0.0.1:{process.port}"
            reply = call(
                url, "POST", "/v1/models/cifar10:predict", b'{"instances": [{"b64": "%s"}]}' % plain(255).encode()
            )
            assert reply.json == {"OUTPUT__0": [[1.0] * 4]}
            if sys.platform == "linux":
                maps = Path(f"/proc/{process.child.pid}/maps").read_text()
                assert not any(name in maps for name in ("/torch/", "/pandas/", "/grpc/"))
            assert process.stop() == 0
        assert "model cifar10: predictor" in process.output()
        assert "INPUT__0 FP32 [-1, 3, 4, 4] -> OUTPUT__0 FP32 [-1, 4], 8 instances a call" in process.output()


def test_a_mismatch_ends_the_process_where_that_was_asked_for(tmp_path: Path) -> None:
    config = tmp_path / "transformer.yaml"
    config.write_text("model_name: m\nimage: {center_crop: 5}\n")
    with serving(picture_plane()) as predictor:
        arguments = [str(config), "--predictor-host", predictor.url, "--exit-on-mismatch", "--http-port", "0"]
        done = subprocess.run(
            [sys.executable, "-m", "kserve_transformer", *arguments, "--http-address", "127.0.0.1"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            env={**os.environ},
        )
    assert done.returncode == 1
    assert "the transformer makes pictures of [3, 5, 5]" in done.stderr
    assert "the predictor's input 'INPUT__0' takes [3, 4, 4]" in done.stderr
