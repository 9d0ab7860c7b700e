"""The RPCs of V2's extensions: statistics, repository, shared memory, trace and log settings.

Knows the messages; translates between them and `extensions`, and decides nothing.  RPCs of what the data plane
does not serve answer UNIMPLEMENTED.  Knows no grpc: bytes in, bytes out.

Sources: `grpc_service.proto`; Triton's extension_statistics, extension_model_repository, extension_shared_memory,
extension_trace and extension_logging.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from oip.errors import InvalidArgument
from oip.grpc_codec import encoded, parse
from oip.proto import message_class
from oip.server.data_plane import RequestContext
from oip.server.door import check_version
from oip.server.extensions import (
    DURATIONS,
    FILE_PREFIX,
    Duration,
    Extensions,
    LogValue,
    ModelStatistics,
    TraceValue,
    cuda_register,
    cuda_status,
    cuda_unregister,
    served,
)

Answer = Callable[[bytes, RequestContext], Awaitable[bytes]]


def extension_answers(extensions: Extensions) -> dict[str, Answer]:
    """What answers each RPC, by its name."""
    answers = _Answers(extensions)
    return {
        "ModelStatistics": answers.statistics,
        "RepositoryIndex": answers.index,
        "RepositoryModelLoad": answers.load,
        "RepositoryModelUnload": answers.unload,
        "SystemSharedMemoryStatus": answers.system_status,
        "SystemSharedMemoryRegister": answers.system_register,
        "SystemSharedMemoryUnregister": answers.system_unregister,
        "CudaSharedMemoryStatus": answers.cuda_status,
        "CudaSharedMemoryRegister": answers.cuda_register,
        "CudaSharedMemoryUnregister": answers.cuda_unregister,
        "TraceSetting": answers.trace,
        "LogSettings": answers.log,
    }


class _Answers:
    def __init__(self, extensions: Extensions) -> None:
        self._extensions = extensions

    async def statistics(self, body: bytes, context: RequestContext) -> bytes:
        source = served(self._extensions.statistics, "the statistics extension")
        request = _parsed("ModelStatisticsRequest", body)
        check_version(request.version)
        found = source.statistics(request.name, request.version)
        return encoded("ModelStatisticsResponse", model_stats=[_statistics(each) for each in found])

    # The repository

    async def index(self, body: bytes, context: RequestContext) -> bytes:
        models = served(self._extensions.models, "the model repository extension")
        request = _parsed("RepositoryIndexRequest", body)
        entries = [
            {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
            for entry in models.index(ready_only=request.ready)
        ]
        return encoded("RepositoryIndexResponse", models=entries)

    async def load(self, body: bytes, context: RequestContext) -> bytes:
        models = served(self._extensions.models, "the model repository extension")
        request = _parsed("RepositoryModelLoadRequest", body)
        config, files = _load_parameters(request.parameters)
        await models.load(request.model_name, config=config, files=files)
        return b""

    async def unload(self, body: bytes, context: RequestContext) -> bytes:
        models = served(self._extensions.models, "the model repository extension")
        request = _parsed("RepositoryModelUnloadRequest", body)
        dependents = False
        if "unload_dependents" in request.parameters:
            dependents = _value(request.parameters, "unload_dependents", "bool_param", "true or false")
        await models.unload(request.model_name, unload_dependents=dependents)
        return b""

    # Shared memory

    async def system_status(self, body: bytes, context: RequestContext) -> bytes:
        request = _parsed("SystemSharedMemoryStatusRequest", body)
        regions = {
            region.name: {
                "name": region.name,
                "key": region.key,
                "offset": region.offset,
                "byte_size": region.byte_size,
            }
            for region in self._extensions.shared_memory.status(request.name)
        }
        return encoded("SystemSharedMemoryStatusResponse", regions=regions)

    async def system_register(self, body: bytes, context: RequestContext) -> bytes:
        memory = self._extensions.shared_memory
        memory.status()  # refused before the request is looked at
        request = _parsed("SystemSharedMemoryRegisterRequest", body)
        if not request.name:
            raise InvalidArgument("'name' must be what to call the region, a non-empty string")
        if not request.key:
            raise InvalidArgument("'key' must be the shared memory object's name, a non-empty string")
        memory.register(request.name, request.key, request.byte_size, request.offset)
        return b""

    async def system_unregister(self, body: bytes, context: RequestContext) -> bytes:
        self._extensions.shared_memory.unregister(_parsed("SystemSharedMemoryUnregisterRequest", body).name)
        return b""

    async def cuda_status(self, body: bytes, context: RequestContext) -> bytes:
        regions = {region.name: {"name": region.name} for region in cuda_status(self._extensions.shared_memory)}
        return encoded("CudaSharedMemoryStatusResponse", regions=regions)

    async def cuda_register(self, body: bytes, context: RequestContext) -> bytes:
        self._extensions.shared_memory.status()
        cuda_register()
        return b""

    async def cuda_unregister(self, body: bytes, context: RequestContext) -> bytes:
        cuda_unregister(self._extensions.shared_memory)
        return b""

    # Settings: a request without any only asks

    async def trace(self, body: bytes, context: RequestContext) -> bytes:
        trace = served(self._extensions.trace, "the trace extension")
        request = _parsed("TraceSettingRequest", body)
        changes: dict[str, TraceValue | None] = {
            name: tuple(setting.value) or None for name, setting in request.settings.items()
        }
        if changes:
            trace.update_trace_settings(changes, request.model_name)
        settings = {name: {"value": value} for name, value in trace.trace_settings(request.model_name).items()}
        return encoded("TraceSettingResponse", settings=settings)

    async def log(self, body: bytes, context: RequestContext) -> bytes:
        logging = served(self._extensions.logging, "the logging extension")
        request = _parsed("LogSettingsRequest", body)
        changes: dict[str, LogValue] = {}
        for name, setting in request.settings.items():
            choice = setting.WhichOneof("parameter_choice")
            if choice is None:
                raise InvalidArgument(f"log setting '{name[:40]}' must be a boolean, an integer or a string")
            changes[name] = getattr(setting, choice)
        if changes:
            logging.update_log_settings(changes)
        settings = {name: {_log_field(value): value} for name, value in logging.log_settings().items()}
        return encoded("LogSettingsResponse", settings=settings)


def _parsed(name: str, body: bytes) -> Any:
    return parse(message_class(name), body)


def _load_parameters(parameters: Any) -> tuple[str | None, dict[str, bytes]]:
    """The configuration and the files of a load request.

    Raises:
        InvalidArgument: a parameter is unknown, or of another type.
    """
    config: str | None = None
    files: dict[str, bytes] = {}
    for name in parameters:
        if name == "config":
            config = _value(parameters, name, "string_param", "a string")
        elif name.startswith(FILE_PREFIX):
            files[name.removeprefix(FILE_PREFIX)] = _value(parameters, name, "bytes_param", "bytes")
        else:
            raise InvalidArgument(
                f"unknown load parameter '{name[:40]}'; there are 'config' and '{FILE_PREFIX}<version>/<name>'"
            )
    return config, files


def _value(parameters: Any, name: str, field: str, what: str) -> Any:
    parameter = parameters[name]
    if parameter.WhichOneof("parameter_choice") != field:
        raise InvalidArgument(f"parameter '{name[:100]}' must be {what} ('{field}')")
    return getattr(parameter, field)


def _log_field(value: LogValue) -> str:
    if isinstance(value, bool):
        return "bool_param"
    return "uint32_param" if isinstance(value, int) else "string_param"


def _statistics(statistics: ModelStatistics) -> Mapping[str, Any]:
    return {
        "name": statistics.name,
        "version": statistics.version,
        "last_inference": statistics.last_inference_milliseconds,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": {name: _duration(getattr(statistics.inference, name)) for name in DURATIONS},
        "batch_stats": [
            {
                "batch_size": batch.batch_size,
                "compute_input": _duration(batch.compute_input),
                "compute_infer": _duration(batch.compute_infer),
                "compute_output": _duration(batch.compute_output),
            }
            for batch in statistics.batches
        ],
    }


def _duration(duration: Duration) -> Mapping[str, int]:
    return {"count": duration.count, "ns": duration.nanoseconds}
