"""The HTTP service: routes over a `DataPlane`, one door that every request passes, one error body.

Knows aiohttp and the codec; knows no model and no picture.  The door (`_Door`) admits, names,
times and counts a request, and turns whatever was raised into the error body; the handlers below
it only translate between HTTP and the data plane.
"""

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import HttpVersion11, http_exceptions, web

from oip import http_codec, json_text
from oip.errors import (
    Cancelled,
    DeadlineExceeded,
    ErrorCode,
    InferenceError,
    Internal,
    InvalidArgument,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    TooSlow,
    Unavailable,
    UnsupportedMediaType,
    error_for_status,
)
from oip.server.data_plane import DataPlane, RequestContext
from oip.server.metrics import ServerMetrics
from oip.server.settings import ServerSettings

logger = logging.getLogger("tandem.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CONTEXT: web.RequestKey[RequestContext] = web.RequestKey("context", RequestContext)

REQUEST_ID = "x-request-id"
ENVOY_TIMEOUT = "x-envoy-expected-rq-timeout-ms"

MAX_MESSAGE = 4000
"""Characters of an error message that are sent."""

SMALL_ANSWER = 32768
"""Bytes that a socket takes at once: writing them cannot wait for the caller, so no clock is started."""

_SAFE_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""Printable, short, no line breaks: an id goes into headers and logs."""

_MILLISECONDS = re.compile(r"[0-9]{1,15}")
_VERSION = re.compile(r"[0-9]{1,18}")
_ENCODINGS = ("", "identity", "gzip", "deflate")


class Http:
    """The aiohttp application over a data plane.

    A process adds routes of its own with `add_routes`.  `draining` is set by the service once it has been
    asked to stop.
    """

    def __init__(self, plane: DataPlane, settings: ServerSettings, metrics: ServerMetrics) -> None:
        self.plane = plane
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        self.in_flight = 0
        self._idle: asyncio.Future[None] | None = None
        # The body limit is ours (`read_body`): aiohttp's own would count for request.read() alone.
        self.app = web.Application(middlewares=[self._door])
        metrics_route = web.get("/metrics", self._metrics_page)
        self.add_routes([*self._v2_routes(), metrics_route])
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

    async def idle(self) -> None:
        """Return once no request is in flight and every answer has been written."""
        if self.in_flight:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

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
        self.in_flight += 1
        try:
            response = await self._answer(request, handler)
            await self._write(request, response)
            return response
        finally:
            self.in_flight -= 1
            if not self.in_flight and self._idle is not None and not self._idle.done():
                self._idle.set_result(None)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The handler's answer or the error's, named, timed and counted."""
        context = RequestContext(request_id(request), deadline(request), headers_of(request))
        request[CONTEXT] = context
        try:
            if self.in_flight > self.settings.max_in_flight and not _is_probe(request):
                raise Unavailable(
                    f"{self.settings.max_in_flight} requests are in flight, the limit; try again", retry_after_seconds=1
                )
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
        if self.draining or not request.content.is_eof() or request.content.exception() is not None:
            # What is left of a body that nobody wanted, or that broke off, must not be taken for the next request.
            response.force_close()
        self.metrics.request(request.method, _route(request), response.status, context.stopwatch.laps)
        if self.settings.access_log:
            _log_access(request, response, context)
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse) -> None:
        """Send the answer while the request still counts as in flight, so that a drain waits for it."""
        with suppress(ConnectionError):  # the caller has gone; aiohttp notices by itself
            if (response.content_length or 0) <= SMALL_ANSWER:
                await response.prepare(request)
                await response.write_eof()
                return
            try:
                async with asyncio.timeout(self.settings.body_timeout_seconds):
                    await response.prepare(request)
                    await response.write_eof()
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()

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
        ready = self.plane.ready() and not self.draining
        return json_response({"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, request: web.Request) -> web.Response:
        name, version = _model_of(request)
        ready = self.plane.model_ready(name, version) and not self.draining
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
        inference = http_codec.decode_request(
            body, request.headers.get(http_codec.HEADER_LENGTH), model_name=name, model_version=version
        )
        context.stopwatch.lap("decode")
        timeout = _timeout_parameter(inference.parameters)
        if timeout is None:
            answer = await self.plane.infer(inference, context)
        else:
            context.deadline = sooner(context.deadline, timeout)
            async with until(timeout):
                answer = await self.plane.infer(inference, context)
        encoded = http_codec.encode_response(answer, inference)
        response = web.Response(body=encoded.body(), headers=encoded.headers)
        context.stopwatch.lap("encode")
        return response

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


def request_id(request: web.Request) -> str:
    """The caller's id where it sent a usable one, else a new one."""
    given = request.headers.get(REQUEST_ID, "")
    return given if given and _SAFE_REQUEST_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    """32 hexadecimal digits.  Unique, not secret: no call of the system's generator for each request."""
    return f"{random.getrandbits(128):032x}"


def headers_of(request: web.Request) -> dict[str, str]:
    """The headers with lower-case names; of one that repeats, the first."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers.setdefault(name.lower(), value)
    return headers


def deadline(request: web.Request) -> float | None:
    """The reading of the monotonic clock at which the caller stops waiting, from the proxy's header."""
    value = request.headers.get(ENVOY_TIMEOUT, "")
    if not _MILLISECONDS.fullmatch(value) or int(value) == 0:
        return None  # Envoy: zero is no limit
    return time.monotonic() + int(value) / 1000


def drop_if_late(deadline: float | None) -> None:
    """Spare the work that nobody waits for.

    Raises:
        DeadlineExceeded: the deadline has passed.
    """
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineExceeded("the deadline that came with the request passed before the answer was there")


@asynccontextmanager
async def until(deadline: float) -> AsyncIterator[None]:
    """Cancel what is inside once the deadline has passed.

    Raises:
        DeadlineExceeded: it had to be cancelled, or was late before it began.
    """
    drop_if_late(deadline)
    try:
        async with asyncio.timeout(deadline - time.monotonic()) as clock:
            yield
    except TimeoutError:
        if clock.expired():
            drop_if_late(deadline)
        raise


async def _not_yet(request: web.Request) -> None:
    """Leave `Expect: 100-continue` to `read_body`: a request that is refused must not be asked for its body."""


def sooner(first: float | None, second: float | None) -> float | None:
    """The earlier of two deadlines, None being none."""
    return min((moment for moment in (first, second) if moment is not None), default=None)


def _timeout_parameter(parameters: Any) -> float | None:
    """The deadline in the V2 parameter `timeout` (microseconds, 0 for none)."""
    timeout = parameters.get("timeout", 0)
    if not isinstance(timeout, int) or isinstance(timeout, bool) or timeout < 0:
        raise InvalidArgument(f"parameter 'timeout' must be a number of microseconds, got {timeout!r}")
    return time.monotonic() + timeout / 1e6 if timeout else None


def _model_of(request: web.Request) -> tuple[str, str]:
    version = request.match_info.get("version", "")
    if version and not _VERSION.fullmatch(version):
        raise InvalidArgument(f"a model version is a number, got {version[:40]!r}")
    return request.match_info["name"], version


def _is_probe(request: web.Request) -> bool:
    """Probes and metrics are answered whatever the load, or a busy process would be killed as a dead one."""
    return request.method in ("GET", "HEAD")


def _route(request: web.Request) -> str:
    """The route's pattern, never the path itself: metric labels must stay few."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


# --- answers ----------------------------------------------------------------------------------------------------------


def json_response(value: Any, status: int = 200) -> web.Response:
    """An answer of JSON; see `json_text.dumps` for what it may hold."""
    return web.Response(body=json_text.dumps(value), status=status, headers={"Content-Type": "application/json"})


def error_response(error: InferenceError, context: RequestContext, headers: Any = None) -> web.Response:
    """The one error body: what, where and what would be right; a code; the request; the instance at fault."""
    # Cut, for it may quote what was sent; encoded, for odd bytes of a path arrive as lone surrogates.
    message = error.message[:MAX_MESSAGE].encode(errors="replace").decode()
    body: dict[str, Any] = {"error": message, "code": error.code.name, "request_id": context.request_id}
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
