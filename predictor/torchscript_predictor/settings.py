"""The predictor's settings: Triton's flags by their names, on top of those that both processes share.

Importing this costs no torch.  Flags of Triton's that do nothing here are in `NO_EFFECT`, each with its
reason; a flag that promises protection which is not there is refused.
"""

from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from oip.server.flags import NoEffect
from torchscript_predictor.grpc_flags import GrpcFlags

ALL_MODELS = "*"


class PredictorSettings(GrpcFlags):
    """How the predictor process finds, loads and serves models.  Read once, at the edge."""

    model_repository: list[Path] = Field(
        min_length=1,
        description="Folder of model folders, or one model; may be given several times.",
        json_schema_extra={"aliases": ["--model-store"]},
    )
    model_name: str | None = Field(None, description="What to call the model where --model-repository itself is one.")
    allow_python_models: bool = Field(
        False, description="Serve models that are Python code (model.py); it runs in this process with all its rights."
    )
    disable_auto_complete_config: bool = Field(
        False,
        description="Refuse models without input and output in config.pbtxt, instead of finding these out.",
        json_schema_extra={"aliases": ["--strict-model-config"]},
    )
    http_port: int = Field(8000, ge=0, le=65535, description="TCP port for HTTP; 0 takes a free one and prints it.")
    metrics_port: int = Field(8002, ge=0, le=65535, description="TCP port for /metrics.")
    allow_http: bool = Field(True, description="Must be true: health and metrics need it.")
    allow_metrics: bool = Field(True, description="Serve /metrics on the metrics port.")
    model_control_mode: Literal["none", "poll", "explicit"] = Field(
        "none",
        description="none: load every model at start; explicit: those of --load-model, and what clients load and "
        "unload; poll: every model, and follow changes of the repository.",
    )
    load_model: list[str] = Field(
        default_factory=list,
        description="A model to load at start, in mode explicit; may be given several times, * alone means all.",
    )
    repository_poll_secs: int = Field(
        15, ge=0, description="How often to look for changes of the repository in mode poll; 0: never."
    )
    allow_client_shm: bool = Field(
        False, description="Let clients hand tensors over in system shared memory of this machine."
    )
    exit_on_error: bool = Field(True, description="End with status 1 if a model cannot be loaded at start.")
    strict_readiness: bool = Field(
        True, description="Ready only while every model is; otherwise as soon as loading is over."
    )
    model_load_thread_count: int = Field(4, ge=1, le=64, description="Models that load at the same time.")
    max_queue_size: int = Field(1024, ge=1, description="Requests that may wait for one model version; more get 503.")
    execution_threads: int = Field(
        0,
        ge=0,
        description="Threads that may execute models at a time, all models together; 0: as many as there are CPUs.",
    )
    http_restricted_api: list[str] = Field(default_factory=list, description="Refused: access is not restricted here.")
    grpc_restricted_protocol: list[str] = Field(
        default_factory=list, description="Refused: access is not restricted here."
    )

    @field_validator("allow_http")
    @classmethod
    def _http_is_served(cls, value: bool) -> bool:
        if not value:
            raise ValueError("HTTP cannot be switched off: probes and metrics need it")
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
        ports = {"--http-port": self.http_port}
        if self.allow_grpc:
            ports["--grpc-port"] = self.grpc_port
        if self.allow_metrics:
            ports["--metrics-port"] = self.metrics_port
        for (one, port), (other, same) in combinations(ports.items(), 2):
            if port == same != 0:
                raise ValueError(f"{one} and {other} are both {port}; they must differ")
        return self

    def models_at_start(self) -> list[str] | None:
        """Names to load at start; None means all in the repository."""
        if self.model_control_mode != "explicit" or self.load_model == [ALL_MODELS]:
            return None
        return self.load_model

    def warnings(self) -> list[str]:
        """What was asked for and does not happen."""
        if "repository_poll_secs" in self.model_fields_set and self.model_control_mode != "poll":
            return ["--repository-poll-secs has no effect without --model-control-mode poll"]
        return []


_NO_POOL = "messages are not pooled"
_NO_CACHE = "there is no response cache"
_NO_TRACE = "no traces are written"
_LOGS = "logs go to standard error; set --log-level and --log-format"
_ONE_BACKEND = "the PyTorch backend is built in"
_DEFAULT_ALLOCATOR = "torch allocates memory by itself"
_FALSE = ("false", "0", "no", "off")
_TRUE = ("true", "1", "yes", "on")

NO_EFFECT = (
    NoEffect("model_config_name", "config.pbtxt is the one configuration that is read"),
    NoEffect("model_load_retry_count", "a load is tried once", harmless=("0",)),
    NoEffect("model_namespacing", "names must differ between repositories", True, _FALSE),
    NoEffect("metrics_address", "metrics are served on --http-address"),
    NoEffect("allow_gpu_metrics", "no GPU metrics are served", True, _FALSE),
    NoEffect("allow_cpu_metrics", "no CPU metrics are served", True, _FALSE),
    NoEffect("reuse_http_port", "the port is not shared", True, _FALSE),
    NoEffect("http_thread_count", "one event loop serves HTTP"),
    NoEffect("http_header_forward_pattern", "models see no headers"),
    NoEffect("grpc_header_forward_pattern", "models see no headers"),
    NoEffect("grpc_infer_thread_count", "one event loop serves gRPC"),
    NoEffect("grpc_infer_allocation_pool_size", _NO_POOL),
    NoEffect("grpc_max_response_pool_size", _NO_POOL),
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
