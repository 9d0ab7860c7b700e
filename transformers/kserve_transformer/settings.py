"""The transformer process's settings: KServe's flags, which its controller injects, and our own.

Knows names and defaults only.  A flag left out does not touch what the YAML file says.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from oip.server.flags import NoEffect
from oip.server.settings import ServerSettings


class TransformerSettings(ServerSettings):
    """See `ServerSettings` for what both processes share."""

    model_name: str | None = Field(None, description="Name to serve under; overrides the file's model_name.")
    predictor_host: str | None = Field(
        None, description="Where the predictor is: host:port, http(s)://host:port or unix:PATH."
    )
    predictor_protocol: Literal["v2"] | None = Field(
        None, description="Protocol spoken to the predictor.", json_schema_extra={"aliases": ["--protocol"]}
    )
    predictor_use_ssl: bool | None = Field(None, description="Call the predictor over TLS.")
    predictor_request_timeout_seconds: float | None = Field(
        None, gt=0, description="Longest wait for the predictor's answer."
    )
    predictor_request_retries: int | None = Field(
        None, ge=0, le=10, description="How often a call that got no answer is repeated."
    )
    hand_off: Literal["auto", "binary", "json"] | None = Field(
        None, description="How tensors travel: the binary extension or JSON."
    )
    decode_threads: int | None = Field(None, gt=0, description="Threads that read pictures; default: one a core.")
    exit_on_mismatch: bool = Field(
        False,
        description="End with status 1 if the predictor's model does not fit, instead of waiting for a better one.",
    )
    ssl_certfile: Path | None = Field(None, description="Serve HTTPS with this certificate chain (PEM).")
    ssl_keyfile: Path | None = Field(None, description="The certificate's private key (PEM).")


OVERRIDES = {
    "model_name": "model_name",
    "predictor_host": "predictor.host",
    "predictor_protocol": "predictor.protocol",
    "predictor_use_ssl": "predictor.use_ssl",
    "predictor_request_timeout_seconds": "predictor.timeout_seconds",
    "predictor_request_retries": "predictor.retries",
    "hand_off": "predictor.hand_off",
}
"""Flags that win over a key of the file."""

_GRPC = "gRPC is not served; call the HTTP port"
_LOGS = "logs are set with --log-level, --log-format and --access-log"

NO_EFFECT = (
    NoEffect("grpc_port", _GRPC),
    NoEffect("enable_grpc", _GRPC, boolean=True, harmless=("false",)),
    NoEffect("grpc_max_send_message_length", _GRPC),
    NoEffect("grpc_max_receive_message_length", _GRPC),
    NoEffect("workers", "one process serves; its picture work runs on --decode-threads threads", harmless=("1",)),
    NoEffect("max_threads", "threads are set with --decode-threads"),
    NoEffect("max_asyncio_workers", "threads are set with --decode-threads"),
    NoEffect(
        "enable_docs_url",
        "there is no Swagger page; the README describes the routes",
        boolean=True,
        harmless=("false",),
    ),
    NoEffect(
        "enable_latency_logging", "every answer carries its times in Server-Timing", boolean=True, harmless=("true",)
    ),
    NoEffect("configure_logging", _LOGS, boolean=True, harmless=("true",)),
    NoEffect("log_config_file", _LOGS),
    NoEffect("access_log_format", _LOGS),
    NoEffect("event_loop", "the event loop is uvloop", harmless=("auto", "uvloop")),
    NoEffect("timeout_keep_alive", "idle connections are kept for 75 s"),
    NoEffect(
        "enable_predictor_health_check",
        "readiness always waits for the predictor's model",
        boolean=True,
        harmless=("true",),
    ),
)
"""KServe's other flags."""
