"""Triton's flags for gRPC, by their names, and the settings that they make.

Importing this costs no grpcio.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from oip.server.settings import GrpcSettings, ServerSettings

INT32_MAX = 2**31 - 1
"""The longest message that gRPC carries."""


class GrpcFlags(ServerSettings):
    """How the predictor serves gRPC.  Triton's durations are in milliseconds."""

    allow_grpc: bool = Field(True, description="Serve gRPC on the gRPC port.")
    grpc_port: int = Field(8001, ge=0, le=65535, description="TCP port for gRPC; 0 takes a free one and prints it.")
    grpc_address: str | None = Field(None, description="Address for gRPC; if not set, that of --http-address.")
    reuse_grpc_port: bool = Field(False, description="Let other processes listen on the gRPC port, too.")
    grpc_max_message_bytes: int = Field(
        0,
        ge=0,
        le=INT32_MAX,
        description="A longer request is refused; 0: the limit is --max-body-bytes. Triton's is 2147483647.",
    )
    grpc_infer_response_compression_level: Literal["none", "low", "medium", "high"] = Field(
        "none", description="Compress answers for callers that can read them so."
    )
    grpc_use_ssl: bool = Field(False, description="Serve gRPC over TLS alone.")
    grpc_use_ssl_mutual: bool = Field(False, description="Callers must show a certificate, too.")
    grpc_server_cert: Path | None = Field(None, description="PEM file with the server's certificate chain.")
    grpc_server_key: Path | None = Field(None, description="PEM file with the server's private key.")
    grpc_root_cert: Path | None = Field(None, description="PEM file with what callers' certificates are checked by.")
    grpc_keepalive_time: int = Field(7_200_000, ge=1, le=INT32_MAX, description="Milliseconds between pings.")
    grpc_keepalive_timeout: int = Field(
        20_000, ge=1, le=INT32_MAX, description="Milliseconds to wait for a ping's answer before the connection ends."
    )
    grpc_keepalive_permit_without_calls: bool = Field(False, description="Ping also when no call is in flight.")
    grpc_http2_max_pings_without_data: int = Field(2, ge=0, le=INT32_MAX, description="Pings in a row; 0: no limit.")
    grpc_http2_min_recv_ping_interval_without_data: int = Field(
        300_000, ge=0, le=INT32_MAX, description="A caller that pings at shorter intervals (milliseconds) is at fault."
    )
    grpc_http2_max_ping_strikes: int = Field(
        2, ge=0, le=INT32_MAX, description="So many faults end the connection; 0: any number is borne."
    )
    grpc_max_connection_age: int = Field(
        0, ge=0, le=INT32_MAX, description="Milliseconds after which a caller has to connect anew; 0: never."
    )
    grpc_max_connection_age_grace: int = Field(
        0, ge=0, le=INT32_MAX, description="Milliseconds for calls in flight after that; 0: no limit."
    )

    @model_validator(mode="after")
    def _certificates_are_there(self) -> "GrpcFlags":
        if self.grpc_use_ssl_mutual and not self.grpc_use_ssl:
            raise ValueError("--grpc-use-ssl-mutual needs --grpc-use-ssl")
        if self.grpc_use_ssl and not (self.grpc_server_cert and self.grpc_server_key):
            raise ValueError("--grpc-use-ssl needs --grpc-server-cert and --grpc-server-key")
        if self.grpc_use_ssl_mutual and not self.grpc_root_cert:
            raise ValueError("--grpc-use-ssl-mutual needs --grpc-root-cert, which callers are checked by")
        if not self.grpc_use_ssl and (self.grpc_server_cert or self.grpc_server_key or self.grpc_root_cert):
            raise ValueError("certificates for gRPC are given, but TLS is not on; add --grpc-use-ssl")
        return self

    def grpc_settings(self) -> GrpcSettings | None:
        """What the service is told; None where gRPC is not to be served."""
        if not self.allow_grpc:
            return None
        return GrpcSettings(
            port=self.grpc_port,
            address=self.grpc_address or self.http_address,
            reuse_port=self.reuse_grpc_port,
            max_message_bytes=self.grpc_max_message_bytes,
            response_compression=self.grpc_infer_response_compression_level,
            keepalive_milliseconds=self.grpc_keepalive_time,
            keepalive_timeout_milliseconds=self.grpc_keepalive_timeout,
            keepalive_without_calls=self.grpc_keepalive_permit_without_calls,
            max_pings_without_data=self.grpc_http2_max_pings_without_data,
            min_ping_interval_milliseconds=self.grpc_http2_min_recv_ping_interval_without_data,
            max_ping_strikes=self.grpc_http2_max_ping_strikes,
            max_connection_age_milliseconds=self.grpc_max_connection_age,
            max_connection_age_grace_milliseconds=self.grpc_max_connection_age_grace,
            tls_certificate=self.grpc_server_cert if self.grpc_use_ssl else None,
            tls_key=self.grpc_server_key if self.grpc_use_ssl else None,
            tls_client_roots=self.grpc_root_cert if self.grpc_use_ssl_mutual else None,
        )
