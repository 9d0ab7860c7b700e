"""The predictor's command line: every flag of Triton's is honoured, warned about or refused."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from oip.server.flags import settings_command
from oip.server.settings import GrpcSettings
from torchscript_predictor.settings import NO_EFFECT, PredictorSettings

TRITON_FLAGS = """
model-repository model-store model-control-mode repository-poll-secs load-model exit-on-error strict-readiness
disable-auto-complete-config strict-model-config model-config-name model-load-thread-count model-load-retry-count
model-namespacing http-port grpc-port metrics-port http-address grpc-address metrics-address allow-http allow-grpc
allow-metrics allow-gpu-metrics allow-cpu-metrics reuse-http-port reuse-grpc-port http-thread-count http-max-input-size
http-restricted-api grpc-restricted-protocol http-header-forward-pattern grpc-header-forward-pattern rate-limit
rate-limit-resource cache-config response-cache-byte-size exit-timeout-secs pinned-memory-pool-byte-size
cuda-memory-pool-byte-size backend-config host-policy model-load-gpu-limit buffer-manager-thread-count allow-client-shm
metrics-interval-ms metrics-config trace-config log-verbose log-info log-warning log-error log-format log-file id
grpc-use-ssl grpc-use-ssl-mutual grpc-server-cert grpc-server-key grpc-root-cert grpc-keepalive-time
grpc-keepalive-timeout grpc-keepalive-permit-without-calls grpc-http2-max-pings-without-data
grpc-http2-min-recv-ping-interval-without-data grpc-http2-max-ping-strikes grpc-infer-response-compression-level
"""


def parse(*arguments):
    """The settings that a command line gives, and the finished run."""
    seen = []
    command = settings_command(
        "predictor", PredictorSettings, lambda settings, _: seen.append(settings), help="", no_effect=NO_EFFECT
    )
    result = CliRunner().invoke(command, [*arguments])
    return (seen[0] if seen else None), result


def test_every_flag_of_triton_is_known():
    command = settings_command("p", PredictorSettings, lambda *_: None, help="", no_effect=NO_EFFECT)
    known = {name for parameter in command.params for name in parameter.opts}
    assert {f"--{flag}" for flag in TRITON_FLAGS.split()} <= known


def test_defaults_are_triton_s():
    settings, _ = parse("--model-repository", "models")
    assert settings.model_repository == [Path("models")]
    assert (settings.http_port, settings.grpc_port, settings.metrics_port) == (8000, 8001, 8002)
    assert settings.model_control_mode == "none"
    assert settings.strict_readiness
    assert settings.exit_on_error
    assert settings.model_load_thread_count == 4
    assert settings.models_at_start() is None
    assert settings.warnings() == []


def test_triton_s_spellings():
    settings, _ = parse(
        *("--model-store=a", "--model_repository", "b", "--strict-readiness=false", "--exit_on_error", "false"),
        *("--http-max-input-size=9", "--exit-timeout-secs=3", "--log-format=ISO8601", "--allow-metrics", "false"),
    )
    assert settings.model_repository == [Path("a"), Path("b")]
    assert not settings.strict_readiness
    assert not settings.exit_on_error
    assert settings.max_body_bytes == 9
    assert settings.exit_timeout_seconds == 3
    assert settings.log_format == "text"
    assert not settings.allow_metrics


@pytest.mark.parametrize(
    ("arguments", "name", "python", "strict"),
    [
        ([], None, False, False),
        (["--model-name=mine"], "mine", False, False),
        (["--allow-python-models"], None, True, False),
        (["--disable-auto-complete-config"], None, False, True),
        (["--strict-model-config=true"], None, False, True),
        (["--strict-model-config=false"], None, False, False),
    ],
)
def test_what_models_may_be(arguments, name, python, strict):
    settings, _ = parse("--model-repository=m", *arguments)
    found = (settings.model_name, settings.allow_python_models, settings.disable_auto_complete_config)
    assert found == (name, python, strict)


@pytest.mark.parametrize(
    ("arguments", "models"),
    [
        (["--model-control-mode=explicit"], []),
        (["--model-control-mode=explicit", "--load-model=a", "--load-model=b"], ["a", "b"]),
        (["--model-control-mode=explicit", "--load-model=*"], None),
        (["--model-control-mode=poll"], None),
    ],
)
def test_models_at_start(arguments, models):
    settings, _ = parse("--model-repository=m", *arguments)
    assert settings.models_at_start() == models


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (["--repository-poll-secs=5"], ["--repository-poll-secs has no effect without --model-control-mode poll"]),
        (["--repository-poll-secs=5", "--model-control-mode=poll"], []),
        (["--model-control-mode=explicit", "--allow-client-shm"], []),
    ],
)
def test_what_does_not_happen_is_said(arguments, warning):
    settings, _ = parse("--model-repository=m", *arguments)
    assert settings.warnings() == warning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model-repository"),
        (["--model-repository=m", "--http-restricted-api=health:key=value"], "access is not restricted here"),
        (["--model-repository=m", "--grpc-restricted-protocol=health:k=v"], "access is not restricted here"),
        (["--model-repository=m", "--allow-http=false"], "HTTP cannot be switched off"),
        (["--model-repository=m", "--load-model=a"], "--load-model needs --model-control-mode explicit"),
        (
            ["--model-repository=m", "--model-control-mode=explicit", "--load-model=*", "--load-model=a"],
            "--load-model * stands alone",
        ),
        (["--model-repository=m", "--http-port=8002"], "--http-port and --metrics-port are both 8002"),
        (["--model-repository=m", "--grpc-port=8000"], "--http-port and --grpc-port are both 8000"),
        (["--model-repository=m", "--grpc-use-ssl"], "needs --grpc-server-cert and --grpc-server-key"),
        (["--model-repository=m", "--grpc-use-ssl-mutual"], "--grpc-use-ssl-mutual needs --grpc-use-ssl"),
        (["--model-repository=m", "--grpc-server-cert=c"], "TLS is not on; add --grpc-use-ssl"),
        (["--model-repository=m", "--grpc-max-message-bytes=2147483648"], "--grpc-max-message-bytes"),
        (["--model-repository=m", "--model-control-mode=maybe"], "--model-control-mode"),
        (["--model-repositry=m"], "--model-repository"),
    ],
)
def test_refused(arguments, message):
    settings, result = parse(*arguments)
    assert settings is None
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("flag", NO_EFFECT, ids=lambda flag: flag.name)
def test_a_flag_without_effect_is_warned_about_unless_it_asks_for_what_happens_anyway(flag, caplog):
    name = "--" + flag.name.replace("_", "-")
    for value in flag.harmless:
        parse("--model-repository=m", f"{name}={value}")
    assert not caplog.records
    if set(flag.harmless) >= {"true", "false"}:
        return
    odd = "true" if "false" in flag.harmless else "false" if flag.boolean else "7"
    settings, _ = parse("--model-repository=m", f"{name}={odd}")
    assert settings is not None
    assert flag.why in caplog.text


def test_grpc_listens_where_http_does_unless_told_otherwise():
    settings, _ = parse("--model-repository=m", "--http-address=127.0.0.1")
    assert (settings.grpc_settings().address, settings.grpc_settings().port) == ("127.0.0.1", 8001)
    settings, _ = parse("--model-repository=m", "--grpc-address=::1", "--grpc-port=9", "--reuse-grpc-port")
    made = settings.grpc_settings()
    assert (made.address, made.port, made.reuse_port, made.max_message_bytes) == ("::1", 9, True, 0)
    settings, _ = parse("--model-repository=m", "--allow-grpc=false", "--http-port=8001")
    assert settings.grpc_settings() is None


def test_triton_s_grpc_flags_are_honoured():
    settings, _ = parse(
        "--model-repository=m",
        *("--grpc-use-ssl=true", "--grpc-server-cert=c", "--grpc-server-key=k"),
        *("--grpc-use-ssl-mutual=1", "--grpc-root-cert=r", "--grpc-infer-response-compression-level=high"),
        *("--grpc-keepalive-time=5", "--grpc-keepalive-timeout=6", "--grpc-keepalive-permit-without-calls=1"),
        *("--grpc-http2-max-pings-without-data=7", "--grpc-http2-max-ping-strikes=8"),
        *("--grpc-http2-min-recv-ping-interval-without-data=9", "--grpc-max-message-bytes=2147483647"),
        *("--grpc-max-connection-age=10", "--grpc-max-connection-age-grace=11"),
    )
    assert settings.grpc_settings() == GrpcSettings(
        port=8001,
        address="0.0.0.0",
        max_message_bytes=2147483647,
        response_compression="high",
        keepalive_milliseconds=5,
        keepalive_timeout_milliseconds=6,
        keepalive_without_calls=True,
        max_pings_without_data=7,
        max_ping_strikes=8,
        min_ping_interval_milliseconds=9,
        max_connection_age_milliseconds=10,
        max_connection_age_grace_milliseconds=11,
        tls_certificate="c",
        tls_key="k",
        tls_client_roots="r",
    )


def test_settings_do_not_change():
    settings, _ = parse("--model-repository=m")
    with pytest.raises(ValidationError):
        settings.http_port = 1
