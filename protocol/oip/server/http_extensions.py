"""The HTTP routes of V2's extensions: statistics, repository, shared memory, trace and log settings.

Knows aiohttp and JSON; translates between them and `extensions`, and decides nothing.  Routes of what the data
plane does not serve answer 501.

Sources: Triton's extension_statistics, extension_model_repository, extension_shared_memory, extension_trace and
extension_logging.
"""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from oip import json_text
from oip.errors import InvalidArgument
from oip.server.door import check_version
from oip.server.extensions import (
    DURATIONS,
    FILE_PREFIX,
    BatchStatistics,
    Duration,
    Extensions,
    ModelStatistics,
    SharedMemoryRegion,
    TraceValue,
    cuda_register,
    cuda_status,
    cuda_unregister,
    served,
)

ReadBody = Callable[[web.Request], Awaitable[bytearray]]


def extension_routes(extensions: Extensions, read_body: ReadBody) -> list[web.RouteDef]:
    """The routes; `read_body` reads a request's body within the bounds."""
    handlers = _Handlers(extensions, read_body)
    routes = [
        web.get("/v2/models/stats", handlers.statistics),
        web.get("/v2/models/{name}/stats", handlers.statistics),
        web.get("/v2/models/{name}/versions/{version}/stats", handlers.statistics),
        web.post("/v2/repository/index", handlers.index),
        web.post("/v2/repository/models/{name}/load", handlers.load),
        web.post("/v2/repository/models/{name}/unload", handlers.unload),
        web.get("/v2/logging", handlers.log_settings),
        web.post("/v2/logging", handlers.update_log_settings),
    ]
    for place in ("/v2/trace/setting", "/v2/models/{name}/trace/setting"):
        routes += [web.get(place, handlers.trace_settings), web.post(place, handlers.update_trace_settings)]
    for kind in ("system", "cuda"):
        memory = f"/v2/{kind}sharedmemory"
        for place in (memory, f"{memory}/region/{{region}}"):
            routes += [
                web.get(f"{place}/status", getattr(handlers, f"{kind}_status")),
                web.post(f"{place}/unregister", getattr(handlers, f"{kind}_unregister")),
            ]
        routes.append(web.post(f"{memory}/region/{{region}}/register", getattr(handlers, f"{kind}_register")))
    return routes


class _Handlers:
    def __init__(self, extensions: Extensions, read_body: ReadBody) -> None:
        self._extensions = extensions
        self._read_body = read_body

    # Statistics

    async def statistics(self, request: web.Request) -> web.Response:
        source = served(self._extensions.statistics, "the statistics extension")
        version = request.match_info.get("version", "")
        check_version(version)
        found = source.statistics(request.match_info.get("name", ""), version)
        return _json({"model_stats": [encode_statistics(each) for each in found]})

    # The repository

    async def index(self, request: web.Request) -> web.Response:
        models = served(self._extensions.models, "the model repository extension")
        ready = (await self._document(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidArgument(f"'ready' must be true or false, got {str(ready)[:40]!r}")
        return _json(
            [
                {"name": entry.name}
                if not entry.state
                else {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
                for entry in models.index(ready_only=ready)
            ]
        )

    async def load(self, request: web.Request) -> web.Response:
        models = served(self._extensions.models, "the model repository extension")
        body = await self._read_body(request)
        # in a thread, for files come as base64 and may be long
        config, files = await asyncio.to_thread(decode_load_parameters, body)
        await models.load(request.match_info["name"], config=config, files=files)
        return web.Response()

    async def unload(self, request: web.Request) -> web.Response:
        models = served(self._extensions.models, "the model repository extension")
        parameters = _parameters(await self._document(request))
        dependents = parameters.get("unload_dependents", False)
        if not isinstance(dependents, bool):
            raise InvalidArgument(f"parameter 'unload_dependents' must be true or false, got {str(dependents)[:40]!r}")
        await models.unload(request.match_info["name"], unload_dependents=dependents)
        return web.Response()

    # Shared memory

    async def system_status(self, request: web.Request) -> web.Response:
        return _json(_regions(self._extensions.shared_memory.status(request.match_info.get("region", ""))))

    async def system_register(self, request: web.Request) -> web.Response:
        memory = self._extensions.shared_memory
        memory.status()  # refused before the body is looked at
        document = await self._document(request)
        key = document.get("key")
        if not isinstance(key, str) or not key:
            raise InvalidArgument("'key' must be the shared memory object's name, a non-empty string")
        byte_size, offset = _count(document, "byte_size"), _count(document, "offset", 0)
        memory.register(request.match_info["region"], key, byte_size, offset)
        return web.Response()

    async def system_unregister(self, request: web.Request) -> web.Response:
        self._extensions.shared_memory.unregister(request.match_info.get("region", ""))
        return web.Response()

    async def cuda_status(self, request: web.Request) -> web.Response:
        return _json(_regions(cuda_status(self._extensions.shared_memory)))

    async def cuda_register(self, request: web.Request) -> web.Response:
        self._extensions.shared_memory.status()
        cuda_register()
        return web.Response()

    async def cuda_unregister(self, request: web.Request) -> web.Response:
        cuda_unregister(self._extensions.shared_memory)
        return web.Response()

    # Settings

    async def trace_settings(self, request: web.Request) -> web.Response:
        trace = served(self._extensions.trace, "the trace extension")
        return _json(_trace_document(trace.trace_settings(request.match_info.get("name", ""))))

    async def update_trace_settings(self, request: web.Request) -> web.Response:
        trace = served(self._extensions.trace, "the trace extension")
        name = request.match_info.get("name", "")
        trace.update_trace_settings(_trace_changes(await self._document(request)), name)
        return _json(_trace_document(trace.trace_settings(name)))

    async def log_settings(self, request: web.Request) -> web.Response:
        return _json(dict(served(self._extensions.logging, "the logging extension").log_settings()))

    async def update_log_settings(self, request: web.Request) -> web.Response:
        logging = served(self._extensions.logging, "the logging extension")
        changes = await self._document(request)
        for name, value in changes.items():
            if not isinstance(value, bool | int | str):
                raise InvalidArgument(f"log setting '{name[:40]}' must be a boolean, an integer or a string")
        logging.update_log_settings(changes)
        return _json(dict(logging.log_settings()))

    async def _document(self, request: web.Request) -> Mapping[str, Any]:
        return _object(await self._read_body(request))


# --- reading ----------------------------------------------------------------------------------------------------------


def decode_load_parameters(body: bytearray) -> tuple[str | None, dict[str, bytes]]:
    """The configuration and the files of a load request's body.

    Raises:
        InvalidArgument: the body is no such thing; the message names the parameter.
    """
    config: str | None = None
    files: dict[str, bytes] = {}
    for name, value in _parameters(_object(body)).items():
        if name != "config" and not name.startswith(FILE_PREFIX):
            raise InvalidArgument(
                f"unknown load parameter '{name[:40]}'; there are 'config' and '{FILE_PREFIX}<version>/<name>'"
            )
        if not isinstance(value, str):
            raise InvalidArgument(f"load parameter '{name[:100]}' must be a string")
        if name == "config":
            config = value
            continue
        try:
            files[name.removeprefix(FILE_PREFIX)] = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidArgument(f"load parameter '{name[:100]}' must hold the file's content in base64") from None
    return config, files


def _object(body: bytearray) -> Mapping[str, Any]:
    if not body:
        return {}
    document = json_text.loads(body)
    if not isinstance(document, dict):
        raise InvalidArgument("the body must be a JSON object, or empty")
    return document


def _parameters(document: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidArgument("'parameters' must be an object")
    return parameters


def _count(document: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = document.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidArgument(f"'{key}' must be a number of bytes, got {str(value)[:40]!r}")
    return value


def _trace_changes(document: Mapping[str, Any]) -> dict[str, TraceValue | None]:
    changes: dict[str, TraceValue | None] = {}
    for name, value in document.items():
        if value is None:
            changes[name] = None
            continue
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str | int) for each in values):
            raise InvalidArgument(f"trace setting '{name[:40]}' must be a string, a list of strings, or null")
        changes[name] = tuple(str(each) for each in values)
    return changes


# --- writing ----------------------------------------------------------------------------------------------------------


def encode_statistics(statistics: ModelStatistics) -> dict[str, Any]:
    """One entry of `model_stats`."""
    return {
        "name": statistics.name,
        "version": statistics.version,
        "last_inference": statistics.last_inference_milliseconds,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": {name: _duration(getattr(statistics.inference, name)) for name in DURATIONS},
        "response_stats": {},
        "batch_stats": [_batch(each) for each in statistics.batches],
        "memory_usage": [],
    }


def _batch(batch: BatchStatistics) -> dict[str, Any]:
    return {
        "batch_size": batch.batch_size,
        "compute_input": _duration(batch.compute_input),
        "compute_infer": _duration(batch.compute_infer),
        "compute_output": _duration(batch.compute_output),
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.nanoseconds}


def _regions(regions: list[SharedMemoryRegion]) -> list[dict[str, Any]]:
    return [
        {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}
        for region in regions
    ]


def _trace_document(settings: Mapping[str, TraceValue]) -> dict[str, Any]:
    return {name: list(values) if name == "trace_level" else "".join(values[:1]) for name, values in settings.items()}


def _json(value: Any) -> web.Response:
    return web.Response(body=json_text.dumps(value), headers={"Content-Type": "application/json"})
