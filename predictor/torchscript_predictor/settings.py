"""The predictor's settings: Triton's flags by their names, on top of those that both processes share.

Importing this costs no torch.  Flags of Triton's that do nothing here are in `NO_EFFECT`, each with its
reason; a flag that promises protection which is not there is refused.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from oip.server.flags import NoEffect
from oip.server.settings import ServerSettings

ALL_MODELS = "*"


class PredictorSettings(ServerSettings):
    """How the predictor process finds, loads and serves models.  Read once, at the edge."""

    model_repository: list[Path] = Field(
        min_length=1,
        description="Folder of model folders; may be given several times.",
        json_schema_extra={"aliases": ["--model-store"]},
    )
    http_port: int = Field(8000, ge=0, le=65535, description="TCP port for HTTP; 0 takes a free one and prints it.")
    grpc_port: int = Field(8001, ge=0, le=65535, description="Accepted; gRPC is not served.")
    metrics_port: int = Field(8002, ge=0, le=65535, description="TCP port for /metrics.")
    allow_http: bool = Field(True, description="Must be true: HTTP is the one protocol served.")
    allow_metrics: bool = Field(True, description="Serve /metrics on the metrics port.")
    model_control_mode: Literal["none", "poll", "explicit"] = Field(
        "none", description="none: load every model at start; explicit: those of --load-model; poll: as none."
    )
    load_model: list[str] = Field(
        default_factory=list,
        description="A model to load at start, in mode explicit; may be given several times, * alone means all.",
    )
    repository_poll_secs: int = Field(15, ge=0, description="Accepted; the repository is not polled.")
    exit_on_error: bool = Field(True, description="End with status 1 if a model cannot be loaded at start.")
    strict_readiness: bool = Field(
        True, description="Ready only while every model is; otherwise as soon as loading is over."
    )
    model_load_thread_count: int = Field(4, ge=1, le=64, description="Models that load at the same time.")
    max_queue_size: int = Field(1024, ge=1, description="Requests that may wait for one model version; more get 503.")
    http_restricted_api: list[str] = Field(default_factory=list, description="Refused: access is not restricted here.")
    grpc_restricted_protocol: list[str] = Field(
        default_factory=list, description="Refused: access is not restricted here."
    )

    @field_validator("allow_http")
    @classmethod
    def _http_is_served(cls, value: bool) -> bool:
        if not value:
            raise ValueError("HTTP is the one protocol served, it cannot be switched off")
        return value

    @field_validator("http_restricted_api", "grpc_restricted_protocol")
    @classmethod
    def _no_false_safety(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError(
                "access is not restricted here; put a proxy that checks callers in front, and drop the flag"
            )
        return value

    @field_validator("log_format", mode="before")
    @classmethod
    def _triton_log_format(cls, value: Any) -> Any:
        return {"default": "auto", "ISO8601": "text"}.get(value, value)

    @model_validator(mode="after")
    def _fit_together(self) -> "PredictorSettings":
        if self.load_model and self.model_control_mode != "explicit":
            raise ValueError("--load-model needs --model-control-mode explicit; the other modes load every model")
        if ALL_MODELS in self.load_model and len(self.load_model) > 1:
            raise ValueError("--load-model * stands alone: it means every model")
        if self.allow_metrics and self.http_port == self.metrics_port != 0:
            raise ValueError(f"--http-port and --metrics-port are both {self.http_port}; they must differ")
        return self

    def models_at_start(self) -> list[str] | None:
        """Names to load at start; None means all in the repository."""
        if self.model_control_mode != "explicit" or self.load_model == [ALL_MODELS]:
            return None
        return self.load_model

    def warnings(self) -> list[str]:
        """What was asked for and does not happen."""
        given = self.model_fields_set
        notes = {
            "grpc_port": "--grpc-port has no effect: gRPC is not served; call the HTTP port",
            "repository_poll_secs": "--repository-poll-secs has no effect: the repository is not polled",
        }
        found = [note for field, note in notes.items() if field in given]
        if self.model_control_mode == "poll":
            found.append("--model-control-mode poll loads every model at start; later changes need a restart")
        if self.model_control_mode == "explicit":
            found.append(
                "--model-control-mode explicit loads models at start alone: there are no load and unload routes"
            )
        return found


_NO_GRPC = "gRPC is not served"
_NO_CACHE = "there is no response cache"
_NO_TRACE = "no traces are written"
_LOGS = "logs go to standard error; set --log-level and --log-format"
_ONE_BACKEND = "the TorchScript backend is built in"
_DEFAULT_ALLOCATOR = "torch allocates memory by itself"
_FALSE = ("false", "0", "no", "off")
_TRUE = ("true", "1", "yes", "on")

NO_EFFECT = (
    NoEffect("disable_auto_complete_config", "configurations are never completed", True, (*_TRUE, *_FALSE)),
    NoEffect("strict_model_config", "configurations are never completed", True, _TRUE),
    NoEffect("model_config_name", "config.pbtxt is the one configuration that is read"),
    NoEffect("model_load_retry_count", "a load is tried once", harmless=("0",)),
    NoEffect("model_namespacing", "names must differ between repositories", True, _FALSE),
    NoEffect("grpc_address", _NO_GRPC),
    NoEffect("metrics_address", "metrics are served on --http-address"),
    NoEffect("allow_grpc", _NO_GRPC, True, _FALSE),
    NoEffect("allow_gpu_metrics", "no GPU metrics are served", True, _FALSE),
    NoEffect("allow_cpu_metrics", "no CPU metrics are served", True, _FALSE),
    NoEffect("reuse_http_port", "the port is not shared", True, _FALSE),
    NoEffect("reuse_grpc_port", _NO_GRPC, True, _FALSE),
    NoEffect("http_thread_count", "one event loop serves HTTP"),
    NoEffect("http_header_forward_pattern", "models see no headers"),
    NoEffect("grpc_header_forward_pattern", _NO_GRPC),
    NoEffect("grpc_infer_thread_count", _NO_GRPC),
    NoEffect("grpc_infer_allocation_pool_size", _NO_GRPC),
    NoEffect("grpc_max_response_pool_size", _NO_GRPC),
    NoEffect("grpc_infer_response_compression_level", _NO_GRPC),
    NoEffect("grpc_use_ssl", _NO_GRPC, True, _FALSE),
    NoEffect("grpc_use_ssl_mutual", _NO_GRPC, True, _FALSE),
    NoEffect("grpc_server_cert", _NO_GRPC),
    NoEffect("grpc_server_key", _NO_GRPC),
    NoEffect("grpc_root_cert", _NO_GRPC),
    NoEffect("grpc_keepalive_time", _NO_GRPC),
    NoEffect("grpc_keepalive_timeout", _NO_GRPC),
    NoEffect("grpc_keepalive_permit_without_calls", _NO_GRPC, True, _FALSE),
    NoEffect("grpc_http2_max_pings_without_data", _NO_GRPC),
    NoEffect("grpc_http2_min_recv_ping_interval_without_data", _NO_GRPC),
    NoEffect("grpc_http2_max_ping_strikes", _NO_GRPC),
    NoEffect("grpc_max_connection_age", _NO_GRPC),
    NoEffect("grpc_max_connection_age_grace", _NO_GRPC),
    NoEffect("rate_limit", "executions are not rate limited", harmless=("off",)),
    NoEffect("rate_limit_resource", "executions are not rate limited"),
    NoEffect("cache_config", _NO_CACHE),
    NoEffect("cache_directory", _NO_CACHE),
    NoEffect("response_cache_byte_size", _NO_CACHE, harmless=("0",)),
    NoEffect("pinned_memory_pool_byte_size", _DEFAULT_ALLOCATOR),
    NoEffect("cuda_memory_pool_byte_size", _DEFAULT_ALLOCATOR),
    NoEffect("cuda_virtual_address_size", _DEFAULT_ALLOCATOR),
    NoEffect("model_load_gpu_limit", "no share of a GPU's memory is reserved"),
    NoEffect("min_supported_compute_capability", "torch decides which GPUs it can use"),
    NoEffect("enable_peer_access", "models do not share GPU memory", True, _FALSE),
    NoEffect("backend_config", _ONE_BACKEND),
    NoEffect("backend_directory", _ONE_BACKEND),
    NoEffect("repoagent_directory", "repository agents are not run"),
    NoEffect("host_policy", "threads are not bound to NUMA nodes"),
    NoEffect("buffer_manager_thread_count", "an instance's own thread copies its tensors", harmless=("0",)),
    NoEffect("allow_client_shm", "the shared memory extensions are not served", True, _FALSE),
    NoEffect("metrics_interval_ms", "metrics are read when they are asked for"),
    NoEffect("metrics_config", "metrics have no options"),
    NoEffect("trace_config", _NO_TRACE),
    NoEffect("trace_file", _NO_TRACE),
    NoEffect("trace_level", _NO_TRACE, harmless=("off",)),
    NoEffect("trace_rate", _NO_TRACE),
    NoEffect("trace_count", _NO_TRACE),
    NoEffect("log_verbose", _LOGS, harmless=("0", *_FALSE)),
    NoEffect("log_info", _LOGS, True, _TRUE),
    NoEffect("log_warning", _LOGS, True, _TRUE),
    NoEffect("log_error", _LOGS, True, _TRUE),
    NoEffect("log_file", _LOGS),
    NoEffect("id", "the server's name is fixed"),
)
