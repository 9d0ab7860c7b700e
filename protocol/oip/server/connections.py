"""What is said to bytes that never became a request of a route.

aiohttp answers those by itself: with its parser's words, its own and Python's version, and a traceback
in the log.  Here they get the one error body.  Knows aiohttp's connection class; knows no route.
"""

from asyncio import AbstractEventLoop, BaseTransport, Transport
from typing import Any, cast

from aiohttp import web

from oip.server.http import Http


class Runner(web.AppRunner):
    """An application's runner whose connections speak for `Http`."""

    def __init__(self, http: Http, app: web.Application, *, shutdown_timeout: float, **connection: Any) -> None:
        super().__init__(app, shutdown_timeout=shutdown_timeout)
        self._http = http
        self._connection = connection

    async def _make_server(self) -> web.Server:
        return _Server(self._http, await super()._make_server(), self._connection)


class _Server(web.Server):
    def __init__(self, http: Http, inner: web.Server, connection: dict[str, Any]) -> None:
        # A caller who has gone cancels the handler, and so whatever it waits for.
        super().__init__(inner.request_handler, request_factory=inner.request_factory, handler_cancellation=True)
        self._http = http
        self._connection = connection

    async def shutdown(self, timeout: float | None = None) -> None:
        transports = list(self._connections.values())
        await super().shutdown(timeout)
        for transport in transports:
            transport.abort()  # closing alone would wait for callers who take what is left of their answers

    def __call__(self) -> web.RequestHandler:
        return _Connection(self._http, self, self._loop, self._connection)


class _Connection(web.RequestHandler):
    __slots__ = ("_http",)

    def __init__(self, http: Http, server: _Server, loop: AbstractEventLoop, options: dict[str, Any]) -> None:
        super().__init__(server, loop=loop, access_log=None, **options)  # type: ignore[arg-type]
        self._http = http

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        # Writing waits until the kernel has every byte, so that a drain does not end before an answer does.
        cast(Transport, transport).set_write_buffer_limits(0)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._messages:
            return
        # A body still open, with something after it, can only be one that broke off into bytes that are no chunk.
        # aiohttp queues its complaint behind the handler, which would wait for the rest until its time is up.
        bodies = [payload for _, payload in self._messages]
        if self._current_request is not None:
            bodies.insert(0, self._current_request.content)
        for body in bodies[:-1]:
            if not body.is_eof():
                body.set_exception(web.RequestPayloadError("the body is no valid HTTP"))
                body.feed_eof()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status >= 500:
            self.logger.error("a request failed outside its handler; this is a bug", exc_info=exc)
        else:
            self.logger.debug("not HTTP: %r", exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        return self._http.refusal(status)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):  # raised before the door: an unknown expectation on an unknown route
            resp = self._http.refusal(resp.status)
        if not request.content.is_eof() and "Content-Encoding" in request.headers:
            # What is left of a body is read and thrown away, so that the answer gets through.  Not of a compressed
            # one: unpacking a bomb costs as much as using it.
            self._lingering_time = 0.0
        return await super().finish_response(request, resp, start_time)
