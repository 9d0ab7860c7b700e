"""The gRPC service: every RPC of `inference.GRPCInferenceService` over a `DataPlane`, health and reflection.

Knows grpcio and the codec; knows no model.  Only the first and the last step of a request differ from `http`'s: the
door here admits, names, times and counts an RPC, and turns whatever was raised into a gRPC status, by the
same table.  The code, the request's id and its times travel in the trailing metadata.

Importing this loads grpcio, so a process that serves no gRPC must not.

Sources: `grpc_service.proto`; Triton's grpc_server for streams; the gRPC health checking protocol.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, NoReturn

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its core has to say is raised as well

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from oip import grpc_codec, proto
from oip.errors import Cancelled, DeadlineExceeded, ErrorCode, InferenceError, Internal, NotFound
from oip.server.data_plane import DataPlane, RequestContext
from oip.server.door import (
    ENVOY_TIMEOUT,
    REQUEST_ID,
    Admission,
    check_version,
    envoy_deadline,
    infer_in_time,
    sooner,
    told,
    until,
    usable_request_id,
)
from oip.server.extensions import extensions_of
from oip.server.grpc_extensions import Answer, extension_answers
from oip.server.metrics import ServerMetrics
from oip.server.settings import GrpcSettings, ServerSettings
from oip.server.shared_outputs import output_places, put_outputs

logger = logging.getLogger("tandem.access")
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.INFO)  # at debug it writes a line for every call

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
NEWER_REFLECTION = "grpc.reflection.v1.ServerReflection"
"""The same messages under the name by which newer tools ask first."""

LIVENESS = "liveness"
"""The health service for a liveness probe: serving while the process lives, ready or not."""

CODE, INSTANCE, PUSHBACK = "tandem-code", "tandem-instance", "grpc-retry-pushback-ms"
STREAM_ERRORS_AS_STATUS = "triton_grpc_error"

STREAM_IN_FLIGHT = 16
"""Requests of one stream that are worked on at a time; the next is read once the first is answered."""

WATCH_SECONDS = 0.5
"""How often readiness is looked at for those who watch it."""

MAX_DETAILS, MAX_ENCODED_DETAILS = 2000, 600
"""Characters of an error message: a status travels among 8 KiB of headers, and what is not ASCII takes twelve bytes."""

STOPPING = "the server is stopping; call again, another one may answer"

_ALWAYS_ANSWERED = ("ModelStatistics", "SystemSharedMemoryStatus", "CudaSharedMemoryStatus")
"""Of the extensions; over HTTP these are GET."""

_END, _CLOSING = object(), object()


class Grpc:
    """The grpcio server over a data plane."""

    def __init__(
        self,
        plane: DataPlane,
        grpc_settings: GrpcSettings,
        settings: ServerSettings,
        metrics: ServerMetrics,
        admission: Admission,
    ) -> None:
        self.plane = plane
        self.extensions = extensions_of(plane)
        self.settings = settings
        self.metrics = metrics
        self.admission = admission
        self._grpc_settings = grpc_settings
        self._server: Any = None
        self._closing = False
        self._streams: set[asyncio.Queue[Any]] = set()

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the port or the address cannot be had, or a certificate cannot be read.
        """
        options = self._grpc_settings
        server = grpc.aio.server(options=_channel_options(options, self.settings))
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, self._inference()),
                grpc.method_handlers_generic_handler(HEALTH, self._health()),
                *(
                    grpc.method_handlers_generic_handler(name, self._reflection())
                    for name in (REFLECTION, NEWER_REFLECTION)
                ),
            )
        )
        address = f"[{options.address}]" if ":" in options.address else options.address
        place = f"{address}:{options.port}"
        try:
            credentials = _credentials(options)
            port: int = server.add_secure_port(place, credentials) if credentials else server.add_insecure_port(place)
        except RuntimeError:
            raise OSError("it is taken, or not allowed") from None
        await server.start()
        self._server = server
        return port

    async def stop(self, grace_seconds: float) -> None:
        """Refuse what is new, end the streams, and give what is in flight this long."""
        self._closing = True
        for stream in self._streams:
            stream.put_nowait(_CLOSING)
        await self._server.stop(grace_seconds)

    # --- the door -----------------------------------------------------------------------------------------------------

    def _unary(self, method: str, answer: Answer, *, probe: bool = True) -> Any:
        """The handler of a method of one request and one response.

        Probes are answered whatever the load, or a busy process would be killed as a dead one.
        """
        route = f"/{SERVICE}/{method}"

        async def handle(body: bytes, rpc: Any) -> bytes:
            self.admission.enter()
            try:
                context = _context(rpc)
                answered = await self._answer(route, answer, body, context, probe=probe)
                if isinstance(answered, bytes):
                    rpc.set_trailing_metadata(_trailer(context))
                    return answered
                return await _abort(rpc, answered, context)
            finally:
                self.admission.leave()

        return grpc.unary_unary_rpc_method_handler(handle)  # bytes in and out: the codec parses behind the door

    async def _answer(
        self, route: str, answer: Answer, body: bytes, context: RequestContext, *, probe: bool
    ) -> bytes | InferenceError:
        """The answer or the error that stands for it, timed and counted; the caller has entered the admission."""
        answered: bytes | InferenceError
        try:
            if not probe:
                self.admission.check()
            if context.deadline is None:
                answered = await answer(body, context)
            else:
                async with until(context.deadline):
                    answered = await answer(body, context)
        except InferenceError as error:
            answered = error
        except asyncio.CancelledError:  # the caller has gone, or grpcio saw its deadline first
            late = context.deadline is not None and time.monotonic() >= context.deadline
            self._count(route, (DeadlineExceeded if late else Cancelled).code.grpc_status, context)
            raise
        except Exception:
            logger.exception("request %s failed; this is a bug", context.request_id)
            answered = Internal("the server failed; its log tells more under this request id")
        context.stopwatch.lap("finish")
        self._count(route, answered.code.grpc_status if isinstance(answered, InferenceError) else "OK", context)
        return answered

    def _count(self, route: str, status: str, context: RequestContext) -> None:
        self.metrics.request("gRPC", route, status, context.stopwatch.laps)
        if self.settings.access_log:
            _log_access(route, status, context)

    # --- inference.GRPCInferenceService -------------------------------------------------------------------------------

    def _inference(self) -> dict[str, Any]:
        answers: Mapping[str, Answer] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
        }
        extensions = extension_answers(self.extensions)
        return {
            **{method: self._unary(method, answer) for method, answer in answers.items()},
            **{
                method: self._unary(method, answer, probe=method in _ALWAYS_ANSWERED)
                for method, answer in extensions.items()
            },
            "ModelInfer": self._unary("ModelInfer", self._infer, probe=False),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream_infer),
        }

    async def _server_live(self, body: bytes, context: RequestContext) -> bytes:
        return grpc_codec.encoded("ServerLiveResponse", live=self.plane.live())

    async def _server_ready(self, body: bytes, context: RequestContext) -> bytes:
        return grpc_codec.encoded("ServerReadyResponse", ready=self._ready())

    async def _model_ready(self, body: bytes, context: RequestContext) -> bytes:
        name, version = _model_of("ModelReadyRequest", body)
        try:
            ready = self.plane.model_ready(name, version) and not self.admission.draining
        except NotFound:  # an answer, as Triton's: what is not here is not ready
            ready = False
        return grpc_codec.encoded("ModelReadyResponse", ready=ready)

    async def _server_metadata(self, body: bytes, context: RequestContext) -> bytes:
        return grpc_codec.encode_server_metadata(self.plane.server_metadata())

    async def _model_metadata(self, body: bytes, context: RequestContext) -> bytes:
        return grpc_codec.encode_model_metadata(self.plane.model_metadata(*_model_of("ModelMetadataRequest", body)))

    async def _model_config(self, body: bytes, context: RequestContext) -> bytes:
        return grpc_codec.encode_model_config(self.plane.model_config(*_model_of("ModelConfigRequest", body)))

    async def _infer(self, body: bytes, context: RequestContext) -> bytes:
        return await self._inferred(body, context, grpc_codec.encode_response)

    async def _stream_response(self, body: bytes, context: RequestContext) -> bytes:
        return await self._inferred(body, context, grpc_codec.encode_stream_response)

    async def _inferred(self, body: bytes, context: RequestContext, encode: Callable[[Any], bytes]) -> bytes:
        memory = self.extensions.shared_memory
        inference = grpc_codec.decode_request(body, regions=memory.read)
        check_version(inference.model_version)
        places = output_places(inference, memory) if inference.outputs else {}
        context.stopwatch.lap("decode")
        answer = await infer_in_time(self.plane, inference, context)
        encoded = encode(put_outputs(answer, places, memory) if places else answer)
        context.stopwatch.lap("encode")
        return encoded

    def _ready(self) -> bool:
        return self.plane.ready() and not self.admission.draining

    # --- streams ------------------------------------------------------------------------------------------------------

    async def _stream_infer(self, requests: AsyncIterator[bytes], rpc: Any) -> None:
        """Answers in the order of the requests, which are worked on together.

        "ModelStreamInferResponse.error_message" tells of a request that failed, and the stream goes on; a caller
        who asks for it with `triton_grpc_error` gets a gRPC status instead, which ends the stream.
        """
        as_status = _headers(rpc).get(STREAM_ERRORS_AS_STATUS, "").lower() == "true"
        room = asyncio.Semaphore(STREAM_IN_FLIGHT)
        answers: asyncio.Queue[Any] = asyncio.Queue()
        working: set[asyncio.Task[Any]] = set()
        gone = False

        async def read() -> None:
            await room.acquire()
            async for body in requests:
                if gone:
                    break
                task = asyncio.ensure_future(self._stream_answer(body, _context(rpc)))
                working.add(task)
                answers.put_nowait(task)
                await room.acquire()

        # Never cancelled: grpcio's pending read would be left with memory that is no longer there.
        reading = asyncio.ensure_future(_until_end(read(), answers))
        self._streams.add(answers)
        if self._closing:
            answers.put_nowait(_CLOSING)
        try:
            while (item := await answers.get()) is not _END:
                if item is _CLOSING:
                    await rpc.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)
                response, error, context = await item
                working.discard(item)
                if error is not None and as_status:
                    await _abort(rpc, error, context)
                await rpc.write(response)
                room.release()
        finally:
            gone = True
            room.release()
            self._streams.discard(answers)
            for task in working:
                task.cancel()
        await reading

    async def _stream_answer(
        self, body: bytes, context: RequestContext
    ) -> tuple[bytes, InferenceError | None, RequestContext]:
        """The stream's response to one request, which passes the door as a request of its own."""
        self.admission.enter()
        try:
            route = f"/{SERVICE}/ModelStreamInfer"
            answered = await self._answer(route, self._stream_response, body, context, probe=False)
        finally:
            self.admission.leave()
        if isinstance(answered, InferenceError):
            return grpc_codec.encode_stream_error(told(answered), grpc_codec.request_id(body)), answered, context
        return answered, None, context

    # --- health -------------------------------------------------------------------------------------------------------

    def _health(self) -> dict[str, Any]:
        types = {
            "request_deserializer": health_pb2.HealthCheckRequest.FromString,
            "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
        }
        return {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, **types),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **types),
        }

    def _status(self, service: str) -> Any:
        """The status of a service; None for one that is not here."""
        if service == LIVENESS:
            serving = self.plane.live()
        elif service in ("", SERVICE):
            serving = self._ready()
        else:
            return None
        states = health_pb2.HealthCheckResponse
        return states.SERVING if serving else states.NOT_SERVING

    async def _check(self, request: Any, rpc: Any) -> Any:
        status = self._status(request.service)
        if status is None:
            await rpc.abort(
                grpc.StatusCode.NOT_FOUND, f"no health service of that name; ask for '', '{SERVICE}' or '{LIVENESS}'"
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def _watch(self, request: Any, rpc: Any) -> None:
        states = health_pb2.HealthCheckResponse
        told_last = None
        closing: asyncio.Queue[Any] = asyncio.Queue()
        self._streams.add(closing)
        try:
            while True:
                status = self._status(request.service)
                status = states.SERVICE_UNKNOWN if status is None else status
                if status != told_last:
                    await rpc.write(states(status=status))
                    told_last = status
                if self._closing:
                    await rpc.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)
                try:
                    async with asyncio.timeout(WATCH_SECONDS):
                        await closing.get()
                except TimeoutError:
                    continue
        finally:
            self._streams.discard(closing)

    # --- reflection ---------------------------------------------------------------------------------------------------

    def _reflection(self) -> dict[str, Any]:
        servicer = ReflectionServicer((SERVICE, HEALTH, REFLECTION), pool=_described())

        async def reflect(requests: AsyncIterator[Any], rpc: Any) -> None:
            async for response in servicer.ServerReflectionInfo(self._incoming(requests, rpc), rpc):
                await rpc.write(response)

        return {
            "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                reflect,
                request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
                response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
            )
        }

    async def _incoming(self, requests: AsyncIterator[Any], rpc: Any) -> AsyncIterator[Any]:
        """The messages of a stream until it ends; a server that stops ends it."""
        messages: asyncio.Queue[Any] = asyncio.Queue()
        room = asyncio.Semaphore(1)

        async def read() -> None:
            async for message in requests:
                messages.put_nowait(message)
                await room.acquire()

        self._streams.add(messages)
        reading = asyncio.ensure_future(_until_end(read(), messages))
        try:
            while (message := await messages.get()) is not _END:
                if message is _CLOSING:
                    await rpc.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)
                yield message
                room.release()
        finally:
            self._streams.discard(messages)
        await reading


async def _until_end(read: Awaitable[None], items: asyncio.Queue[Any]) -> None:
    """Read a stream; `_END` follows the last item, also when the caller has gone."""
    try:
        await read
    except Exception as error:
        logger.debug("a stream ended: %r", error)
    finally:
        items.put_nowait(_END)


# --- requests ---------------------------------------------------------------------------------------------------------


def _headers(rpc: Any) -> dict[str, str]:
    """The metadata; its names are lower-case, and of one that repeats, the first counts."""
    headers: dict[str, str] = {}
    for name, value in rpc.invocation_metadata() or ():
        if isinstance(value, str):
            headers.setdefault(name, value)
    return headers


def _context(rpc: Any) -> RequestContext:
    headers = _headers(rpc)
    remaining = rpc.time_remaining()
    deadline = None if remaining is None else time.monotonic() + remaining
    if ENVOY_TIMEOUT in headers:
        deadline = sooner(deadline, envoy_deadline(headers[ENVOY_TIMEOUT]))
    return RequestContext(usable_request_id(headers.get(REQUEST_ID, "")), deadline, headers)


def _model_of(message_name: str, body: bytes) -> tuple[str, str]:
    message = grpc_codec.parse(proto.message_class(message_name), body)
    check_version(message.version)
    return message.name, message.version


# --- answers ----------------------------------------------------------------------------------------------------------


def _trailer(context: RequestContext) -> tuple[tuple[str, str], ...]:
    return ((REQUEST_ID, context.request_id), ("server-timing", context.stopwatch.header()))


async def _abort(rpc: Any, error: InferenceError, context: RequestContext) -> NoReturn:
    """End the RPC with an error; never returns."""
    trailer = [*_trailer(context), (CODE, error.code.name)]
    if error.instance is not None:
        trailer.append((INSTANCE, str(error.instance)))
    if error.retry_after_seconds is not None or error.code is ErrorCode.UNAVAILABLE:
        trailer.append((PUSHBACK, str((error.retry_after_seconds or 1) * 1000)))
    details = told(error)
    details = details[: MAX_DETAILS if details.isascii() else MAX_ENCODED_DETAILS]
    await rpc.abort(grpc.StatusCode[error.code.grpc_status], details, tuple(trailer))
    raise AssertionError("abort raises; this is a bug")


def _log_access(route: str, status: str, context: RequestContext) -> None:
    milliseconds = (time.perf_counter() - context.stopwatch.started) * 1000
    logger.info(
        "gRPC %s %s %.1f ms",
        route,
        status,
        milliseconds,
        extra={
            "request_id": context.request_id,
            "method": "gRPC",
            "path": route,
            "status": status,
            "milliseconds": round(milliseconds, 3),
        },
    )


# --- the server's options ---------------------------------------------------------------------------------------------


def _described() -> DescriptorPool:
    """What reflection tells of: the protocol's private descriptors, and those of health and reflection itself."""
    pool = DescriptorPool()
    for file in proto.files():
        pool.Add(file)
    for described in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(described.serialized_pb)
    return pool


def _channel_options(options: GrpcSettings, settings: ServerSettings) -> Iterable[tuple[str, int]]:
    """What grpcio is told about a server's connections."""
    limit = options.max_message_bytes or settings.max_body_bytes
    arguments = {
        "grpc.so_reuseport": int(options.reuse_port),  # grpcio's default lets two servers share a port unnoticed
        "grpc.max_receive_message_length": limit,
        "grpc.max_send_message_length": 2**31 - 1,
        # A few over the limit, so that a caller with too many requests is told, and does not wait.
        "grpc.max_concurrent_streams": settings.max_in_flight + STREAM_IN_FLIGHT,
        "grpc.default_compression_level": ("none", "low", "medium", "high").index(options.response_compression),
        "grpc.keepalive_time_ms": options.keepalive_milliseconds,
        "grpc.keepalive_timeout_ms": options.keepalive_timeout_milliseconds,
        "grpc.keepalive_permit_without_calls": int(options.keepalive_without_calls),
        "grpc.http2.max_pings_without_data": options.max_pings_without_data,
        "grpc.http2.min_ping_interval_without_data_ms": options.min_ping_interval_milliseconds,
        "grpc.http2.max_ping_strikes": options.max_ping_strikes,
    }
    if options.max_connection_age_milliseconds:
        arguments["grpc.max_connection_age_ms"] = options.max_connection_age_milliseconds
    if options.max_connection_age_grace_milliseconds:
        arguments["grpc.max_connection_age_grace_ms"] = options.max_connection_age_grace_milliseconds
    return arguments.items()


def _credentials(options: GrpcSettings) -> Any:
    """The certificate's credentials; None without TLS.

    Raises:
        OSError: a file cannot be read.
    """
    if options.tls_certificate is None or options.tls_key is None:
        return None
    pair = (options.tls_key.read_bytes(), options.tls_certificate.read_bytes())
    roots = options.tls_client_roots.read_bytes() if options.tls_client_roots is not None else None
    return grpc.ssl_server_credentials([pair], roots, roots is not None)
