"""The settings that both processes share: ports, bounds, drain, logs.

Knows no flag syntax (see `flags`) and no model.  Durations and sizes carry their unit in the name.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MEBIBYTE = 1024 * 1024


class ServerSettings(BaseModel):
    """How one process listens, what it bounds and how it ends.  Read once, at the edge."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    http_port: int = Field(8080, ge=0, le=65535, description="TCP port for HTTP; 0 takes a free one and prints it.")
    http_address: str = Field("0.0.0.0", description="Address to listen on.")
    http_unix_socket: Path | None = Field(None, description="Also listen on this Unix socket.")
    max_body_bytes: int = Field(
        64 * MEBIBYTE,
        gt=0,
        description="A longer request body (after decompression) is refused with 413.",
        json_schema_extra={"aliases": ["--http-max-input-size"]},
    )
    body_timeout_seconds: float = Field(
        30.0,
        gt=0,
        description="A body that arrives more slowly is refused with 408; an answer that is taken more slowly is cut.",
    )
    max_in_flight: int = Field(1024, gt=0, description="More requests than this at once are refused with 503.")
    drain_delay_seconds: float = Field(
        0.0, ge=0, description="After SIGTERM keep answering this long, not ready, so that balancers notice."
    )
    exit_timeout_seconds: float = Field(
        30.0,
        ge=0,
        description="After that, time for requests in flight to finish.",
        json_schema_extra={"aliases": ["--exit-timeout-secs"]},
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["auto", "text", "json"] = Field("auto", description="auto: text on a terminal, JSON otherwise.")
    access_log: bool = Field(False, description="One line per request.")


class GrpcSettings(BaseModel):
    """How one process serves gRPC.  Its flags are the process's own; Triton's are in milliseconds, and so is this."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int
    address: str
    reuse_port: bool = False
    max_message_bytes: int = 0
    """Of a request; 0 for as many as an HTTP body may have."""
    response_compression: Literal["none", "low", "medium", "high"] = "none"
    keepalive_milliseconds: int = 7_200_000
    keepalive_timeout_milliseconds: int = 20_000
    keepalive_without_calls: bool = False
    max_pings_without_data: int = 2
    min_ping_interval_milliseconds: int = 300_000
    max_ping_strikes: int = 2
    max_connection_age_milliseconds: int = 0
    max_connection_age_grace_milliseconds: int = 0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_roots: Path | None = None
    """Given, callers must show a certificate that these have signed."""
