"""The HTTP service: routes over a `DataPlane`, one door that every request passes, one error body.

Knows aiohttp and the codec; knows no model and no picture.  The door (`_door`) admits, names,
times and counts a request, and turns whatever was raised into the error body; the handlers below
it only translate between HTTP and the data plane.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

from aiohttp import HttpVersion11, http_exceptions, web

from oip import http_codec, json_text
from oip.errors import (
    Cancelled,
    ErrorCode,
    InferenceError,
    Internal,
    InvalidArgument,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    TooSlow,
    UnsupportedMediaType,
    error_for_status,
)
from oip.messages import InferenceRequest
from oip.raw_request import raw_request
from oip.server.compression import answer_coding, compress
from oip.server.data_plane import DataPlane, RequestContext
from oip.server.door import (
    ENVOY_TIMEOUT,
    REQUEST_ID,
    Admission,
    check_version,
    drop_if_late,
    envoy_deadline,
    infer_in_time,
    new_request_id,
    told,
    until,
    usable_request_id,
)
from oip.server.extensions import extensions_of
from oip.server.http_extensions import extension_routes
from oip.server.metrics import ServerMetrics
from oip.server.settings import ServerSettings
from oip.server.shared_outputs import output_places, put_outputs

logger = logging.getLogger("tandem.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CONTEXT: web.RequestKey[RequestContext] = web.RequestKey("context", RequestContext)

_ENCODINGS = ("", "identity", "gzip", "deflate")

LONG_TO_COMPRESS = 65536
"""Bytes; more than that are compressed in a thread."""


class Http:
    """The aiohttp application over a data plane.

    A process adds routes of its own with `add_routes`.
    """

    def __init__(
        self, plane: DataPlane, settings: ServerSettings, metrics: ServerMetrics, admission: Admission | None = None
    ) -> None:
        self.plane = plane
        self.settings = settings
        self.metrics = metrics
        self.admission = admission or Admission(settings.max_in_flight)
        # The body limit is ours (`read_body`): aiohttp's own would count for request.read() alone.
        self.app = web.Application(middlewares=[self._door])
        metrics_route = web.get("/metrics", self._metrics_page)
        self.extensions = extensions_of(plane)
        self.add_routes([*self._v2_routes(), *extension_routes(self.extensions, self.read_body), metrics_route])
        self.metrics_app = web.Application(middlewares=[self._door])
        self.metrics_app.add_routes([metrics_route])

    def add_routes(self, routes: Iterable[web.RouteDef]) -> None:
        """Serve these too; their handlers read bodies with `read_body`, which answers `Expect: 100-continue`."""
        self.app.add_routes(
            [
                web.RouteDef(route.method, route.path, route.handler, {"expect_handler": _not_yet, **route.kwargs})
                for route in routes
            ]
        )

    def refusal(self, status: int) -> web.Response:
        """The answer to what never became a request of a route: bytes that are no HTTP."""
        error = error_for_status(status)(
            "this is no valid HTTP/1.1 request: its request line or a header is malformed, repeated or too long"
            if status == 400
            else "the request was refused before it reached a route"
        )
        response = error_response(error, RequestContext(new_request_id()))
        response.headers["Server"] = "tandem"
        response.force_close()
        self.metrics.request("", "unknown", response.status, [])
        return response

    # --- the door -----------------------------------------------------------------------------------------------------

    @web.middleware
    async def _door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.admission.enter()
        try:
            response = await self._answer(request, handler)
            await self._write(request, response)
            return response
        finally:
            self.admission.leave()

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The handler's answer or the error's, named, timed and counted."""
        context = RequestContext(
            usable_request_id(request.headers.get(REQUEST_ID, "")),
            envoy_deadline(request.headers.get(ENVOY_TIMEOUT, "")),
            headers_of(request),
        )
        request[CONTEXT] = context
        try:
            if not _is_probe(request):
                self.admission.check()
            if context.deadline is None:
                response = await handler(request)
            else:
                async with until(context.deadline):
                    response = await handler(request)
        except InferenceError as error:
            response = error_response(error, context)
        except web.HTTPException as error:
            response = error_response(_of_aiohttp(error, request), context, error.headers)
        except asyncio.CancelledError:  # the caller has gone
            self.metrics.request(request.method, _route(request), Cancelled.code.http_status, context.stopwatch.laps)
            raise
        except Exception:
            logger.exception("request %s failed; this is a bug", context.request_id)
            response = error_response(Internal("the server failed; its log tells more under this request id"), context)
        context.stopwatch.lap("finish")
        response.headers["Server-Timing"] = context.stopwatch.header()
        response.headers[REQUEST_ID] = context.request_id
        response.headers["Server"] = "tandem"
        if self.admission.draining or not request.content.is_eof() or request.content.exception() is not None:
            # What is left of a body that nobody wanted, or that broke off, must not be taken for the next request.
            response.force_close()
        self.metrics.request(request.method, _route(request), response.status, context.stopwatch.laps)
        if self.settings.access_log:
            _log_access(request, response, context)
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse) -> None:
        """Send the answer while the request still counts as in flight, so that a drain waits for it."""
        transport = request.transport
        if transport is None:
            return
        # A bare timer, for it starts with every answer; asyncio.timeout costs several times as much.
        clock = asyncio.get_running_loop().call_later(self.settings.body_timeout_seconds, transport.abort)
        try:
            with suppress(ConnectionError):  # the caller has gone; aiohttp notices by itself
                await response.prepare(request)
                await response.write_eof()
        finally:
            clock.cancel()

    # --- V2 -----------------------------------------------------------------------------------------------------------

    def _v2_routes(self) -> list[web.RouteDef]:
        routes = [
            web.get("/v2", self._server_metadata),
            web.get("/v2/health/live", self._live),
            web.get("/v2/health/ready", self._ready),
        ]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                web.get(model, self._model_metadata),
                web.get(f"{model}/ready", self._model_ready),
                web.get(f"{model}/config", self._model_config),
                web.post(f"{model}/infer", self._infer),
            ]
        return routes

    async def _server_metadata(self, request: web.Request) -> web.Response:
        return json_response(http_codec.encode_server_metadata(self.plane.server_metadata()))

    async def _live(self, request: web.Request) -> web.Response:
        live = self.plane.live()
        return json_response({"live": live}, 200 if live else 503)

    async def _ready(self, request: web.Request) -> web.Response:
        ready = self.plane.ready() and not self.admission.draining
        return json_response({"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, request: web.Request) -> web.Response:
        name, version = _model_of(request)
        ready = self.plane.model_ready(name, version) and not self.admission.draining
        return json_response({"name": name, "ready": ready}, 200 if ready else 503)

    async def _model_metadata(self, request: web.Request) -> web.Response:
        return json_response(http_codec.encode_model_metadata(self.plane.model_metadata(*_model_of(request))))

    async def _model_config(self, request: web.Request) -> web.Response:
        return json_response(self.plane.model_config(*_model_of(request)))

    async def _infer(self, request: web.Request) -> web.Response:
        context = request[CONTEXT]
        name, version = _model_of(request)
        body = await self.read_body(request)
        context.stopwatch.lap("read")
        header_length = request.headers.get(http_codec.HEADER_LENGTH)
        memory = self.extensions.shared_memory
        if header_length is not None and header_length.strip("0") == "" != header_length:
            inference = self._raw_request(body, name, version)
        else:
            inference = http_codec.decode_request(
                body, header_length, model_name=name, model_version=version, regions=memory.read
            )
        places = output_places(inference, memory) if inference.outputs else {}
        context.stopwatch.lap("decode")
        answer = await infer_in_time(self.plane, inference, context)
        encoded = http_codec.encode_response(put_outputs(answer, places, memory) if places else answer, inference)
        response = await _encoded(encoded, request.headers.get("Accept-Encoding", ""))
        context.stopwatch.lap("encode")
        return response

    def _raw_request(self, body: bytearray, name: str, version: str) -> InferenceRequest:
        metadata = self.plane.model_metadata(name, version)
        batches = bool(self.plane.model_config(name, version).get("max_batch_size", 0))
        return raw_request(body, metadata, batches=batches, model_version=version)

    async def _metrics_page(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.exposition(), headers={"Content-Type": self.metrics.content_type})

    # --- bodies -------------------------------------------------------------------------------------------------------

    async def read_body(self, request: web.Request) -> bytearray:
        """The whole body, decompressed; writable, so that tensors on it can be handed to torch without a copy.

        Raises:
            TooLarge, TooSlow: it passes the bounds of the settings.
            UnsupportedMediaType: its Content-Encoding is none we read.
            InvalidArgument: it cannot be decompressed, or ends before its length.
            DeadlineExceeded: it is here, but nobody waits for the answer any more.
        """
        limit = self.settings.max_body_bytes
        too_large = TooLarge(
            f"the body is longer than {limit} bytes, the limit; send fewer or smaller pictures a request"
        )
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not read here; use gzip or deflate")
        if (request.content_length or 0) > limit:
            raise too_large
        if request.content.is_eof() and request.content.exception() is None:
            body = bytearray(request.content.read_nowait())  # it came with its headers, as small ones do
            if len(body) > limit:
                raise too_large
            drop_if_late(request[CONTEXT].deadline)
            return body
        body = bytearray()
        try:
            if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # this was no part of the answer
            async with asyncio.timeout(self.settings.body_timeout_seconds) as clock:
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            if not clock.expired():
                raise
            raise TooSlow(
                f"the body did not arrive within {self.settings.body_timeout_seconds:g} s; {len(body)} bytes came"
            ) from None
        except (http_exceptions.HttpProcessingError, web.RequestPayloadError):
            raise InvalidArgument(
                "the body is damaged: it ends early or does not decompress as its Content-Encoding says"
            ) from None
        except ConnectionError:
            raise Cancelled("the caller has gone before its body had arrived") from None
        drop_if_late(request[CONTEXT].deadline)
        return body


# --- requests ---------------------------------------------------------------------------------------------------------


def headers_of(request: web.Request) -> dict[str, str]:
    """The headers with lower-case names; of one that repeats, the first."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers.setdefault(name.lower(), value)
    return headers


async def _not_yet(request: web.Request) -> None:
    """Leave `Expect: 100-continue` to `read_body`: a request that is refused must not be asked for its body."""


def _model_of(request: web.Request) -> tuple[str, str]:
    version = request.match_info.get("version", "")
    check_version(version)
    return request.match_info["name"], version


def _is_probe(request: web.Request) -> bool:
    """Probes and metrics are answered whatever the load, or a busy process would be killed as a dead one."""
    return request.method in ("GET", "HEAD")


def _route(request: web.Request) -> str:
    """The route's pattern, never the path itself: metric labels must stay few."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


# --- answers ----------------------------------------------------------------------------------------------------------


async def _encoded(encoded: http_codec.Encoded, accept: str) -> web.Response:
    """An inference answer, compressed if the caller asked for it."""
    body, headers = encoded.body(), encoded.headers
    if accept and (coding := answer_coding(accept, len(body))):
        headers |= {"Content-Encoding": coding, "Vary": "Accept-Encoding"}
        # the loop is not held up by what takes milliseconds
        long = len(body) > LONG_TO_COMPRESS
        body = await asyncio.to_thread(compress, body, coding) if long else compress(body, coding)
    return web.Response(body=body, headers=headers)


def json_response(value: Any, status: int = 200) -> web.Response:
    """An answer of JSON; see `json_text.dumps` for what it may hold."""
    return web.Response(body=json_text.dumps(value), status=status, headers={"Content-Type": "application/json"})


def error_response(error: InferenceError, context: RequestContext, headers: Any = None) -> web.Response:
    """The one error body: what, where and what would be right; a code; the request; the instance at fault."""
    body: dict[str, Any] = {"error": told(error), "code": error.code.name, "request_id": context.request_id}
    if error.instance is not None:
        body["instance"] = error.instance
    response = json_response(body, error.code.http_status)
    if error.retry_after_seconds is not None or error.code is ErrorCode.UNAVAILABLE:
        response.headers["Retry-After"] = str(error.retry_after_seconds or 1)
    if headers and "Allow" in headers:
        response.headers["Allow"] = headers["Allow"]
    return response


def _of_aiohttp(error: web.HTTPException, request: web.Request) -> InferenceError:
    """Aiohttp's own refusals (no such route, wrong method) in our words."""
    if error.status == 404:
        return NotFound(f"no route {request.path[:200]!r}; see GET /v2 and GET /v1/models for what is served")
    if error.status == 405:
        return MethodNotAllowed(
            f"{request.method} is not allowed here; use {error.headers.get('Allow', 'another method')}"
        )
    return error_for_status(error.status)(error.reason or "the request was refused")


def _log_access(request: web.Request, response: web.StreamResponse, context: RequestContext) -> None:
    milliseconds = (time.perf_counter() - context.stopwatch.started) * 1000
    path = request.rel_url.raw_path  # quoted, so that no line break of the caller's gets into the log
    logger.info(
        "%s %s %d %.1f ms",
        request.method,
        path,
        response.status,
        milliseconds,
        extra={
            "request_id": context.request_id,
            "method": request.method,
            "path": path,
            "status": response.status,
            "milliseconds": round(milliseconds, 3),
        },
    )
