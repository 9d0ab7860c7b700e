"""The life of one process: listen, load, answer, drain, stop.

Knows signals and sockets; knows no route and no model.  Start goes from inner to outer except that
the port opens first, so that a probe finds the process live while models load.  Stop goes from outer
to inner: not ready, keep answering while the balancer notices, stop accepting, finish what is in
flight (bounded), stop the data plane.
"""

import asyncio
import logging
import os
import signal
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

import uvloop
from aiohttp import web

from oip.server import logs
from oip.server.connections import Runner
from oip.server.data_plane import DataPlane
from oip.server.door import Admission
from oip.server.http import Http
from oip.server.metrics import ServerMetrics
from oip.server.settings import GrpcSettings, ServerSettings

if TYPE_CHECKING:
    from oip.server.grpc import Grpc

logger = logging.getLogger("tandem.service")


class CannotListen(Exception):
    """A port or path is taken or not allowed; says which and why."""


class Service:
    """One process over one data plane.

    `started` is awaited once the data plane has been started, while requests are already being
    answered; a status other than None ends the process with it.
    """

    def __init__(
        self,
        plane: DataPlane,
        settings: ServerSettings,
        *,
        metrics: ServerMetrics | None = None,
        routes: Callable[[Http], Sequence[web.RouteDef]] = lambda http: (),
        started: Callable[["Service"], Awaitable[int | None]] | None = None,
        metrics_port: int | None = None,
        tls: ssl.SSLContext | None = None,
        grpc: GrpcSettings | None = None,
    ) -> None:
        self.plane = plane
        self.settings = settings
        self.metrics = metrics or ServerMetrics()
        self.admission = Admission(settings.max_in_flight)
        self.http = Http(plane, settings, self.metrics, self.admission)
        self.http.add_routes(routes(self.http))
        self.addresses: list[str] = []
        self._started = started
        self._metrics_port = metrics_port
        self._tls = tls
        self._grpc_settings = grpc
        self._grpc: Grpc | None = None
        self._stop = asyncio.Event()
        self._status = 0

    def stop(self, status: int = 0) -> None:
        """Ask the process to drain and end with a status; asking again changes nothing."""
        if not self._stop.is_set():
            self._status = status
            self._stop.set()

    async def run(self) -> int:
        """Serve until asked to stop; returns the exit status."""
        async with AsyncExitStack() as plane, AsyncExitStack() as sockets:  # sockets close before the plane stops
            runner = Runner(self.http, self.http.app, shutdown_timeout=1, keepalive_timeout=75)
            try:
                await self._listen(runner, sockets)
            except CannotListen as error:
                logger.error("cannot listen: %s", error)
                return 1
            plane.push_async_callback(self.plane.stop)
            starting = asyncio.ensure_future(self._start())
            await self._stop.wait()
            starting.cancel()
            await asyncio.wait([starting])
            await self._drain(runner)
        return self._status

    async def _listen(self, runner: Runner, sockets: AsyncExitStack) -> None:
        """Open every socket; `sockets` closes them again, whichever were opened.

        Raises:
            CannotListen: a port or path is taken or not allowed.
        """
        settings = self.settings
        await runner.setup()
        sockets.push_async_callback(runner.cleanup)
        if self._metrics_port is not None:
            # Also `/metrics` on a port of its own, for servers whose users expect it there (Triton's 8002).
            metrics_runner = Runner(self.http, self.http.metrics_app, shutdown_timeout=1)
            await metrics_runner.setup()
            sockets.push_async_callback(metrics_runner.cleanup)
            with _listening_on(f"port {self._metrics_port} of {settings.http_address}"):
                await web.TCPSite(metrics_runner, settings.http_address, self._metrics_port).start()
        # The slow one first and the Unix socket last: between them and the start of the data plane, which makes models
        # known, nothing may take time, or a transformer that rides along would be told that its model does not exist.
        grpc_port = await self._listen_for_grpc(self._grpc_settings, sockets) if self._grpc_settings else None
        with _listening_on(f"port {settings.http_port} of {settings.http_address}"):
            await web.TCPSite(runner, settings.http_address, settings.http_port, ssl_context=self._tls).start()
        port = next(address[1] for address in runner.addresses if isinstance(address, tuple))
        http = f"{'https' if self._tls else 'http'}://{_reachable(settings.http_address)}:{port}"
        if settings.http_unix_socket:
            # A socket that a killed process left at the path is replaced, any other file is not.
            with _listening_on(f"Unix socket {settings.http_unix_socket}"), _private():
                await web.UnixSite(runner, settings.http_unix_socket).start()
            sockets.callback(settings.http_unix_socket.unlink, missing_ok=True)
            self.addresses.append(f"unix:{settings.http_unix_socket}")
        self.addresses.append(http)
        if self._grpc_settings:
            self.addresses.append(f"grpc://{_reachable(self._grpc_settings.address)}:{grpc_port}")

    async def _listen_for_grpc(self, settings: GrpcSettings, sockets: AsyncExitStack) -> int:
        """The port that was opened; grpcio is loaded by a process that serves it alone."""
        try:
            from oip.server.grpc import Grpc
        except ModuleNotFoundError as error:
            raise CannotListen(f"gRPC: {error.name} is not installed; install tandem-serving[grpc]") from None
        self._grpc = Grpc(self.plane, settings, self.settings, self.metrics, self.admission)
        with _listening_on(f"port {settings.port} of {settings.address} for gRPC"):
            port = await self._grpc.start()
        sockets.push_async_callback(self._grpc.stop, 0)
        return port

    async def _start(self) -> None:
        """Start the data plane while requests are answered already, then say so to whoever asked."""
        status: int | None = None
        try:
            await self.plane.start()
            if self._started is not None:
                status = await self._started(self)
        except Exception:
            logger.exception("starting failed; this is a bug")
            status = 1
        if status is not None:
            self.stop(status)

    async def _drain(self, runner: web.AppRunner) -> None:
        settings = self.settings
        self.admission.draining = True
        if settings.drain_delay_seconds and self._status == 0:
            logger.info("draining: not ready, still answering for %g s", settings.drain_delay_seconds)
            await asyncio.sleep(settings.drain_delay_seconds)
        for site in list(runner.sites):
            await site.stop()
        # grpcio refuses new calls at once, and cuts off what is left when the same time is up.
        grpc_stops = asyncio.ensure_future(self._grpc.stop(settings.exit_timeout_seconds)) if self._grpc else None
        try:
            async with asyncio.timeout(settings.exit_timeout_seconds):
                await self.admission.idle()
        except TimeoutError:
            logger.warning(
                "%d requests are still in flight after %g s; stopping all the same",
                self.admission.in_flight,
                settings.exit_timeout_seconds,
            )
            self._status = self._status or 1
        if grpc_stops:
            await grpc_stops


@contextmanager
def _listening_on(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # strerror is the event loop's, with the address once more in it; the number says it shorter.
        raise CannotListen(f"{place}: {os.strerror(error.errno) if error.errno else error}") from None


@contextmanager
def _private() -> Iterator[None]:
    """Files made meanwhile have mode 0600 from their first moment; a later chmod would leave a gap."""
    mask = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(mask)


def _reachable(address: str) -> str:
    """The host of a URL that reaches a server listening on that address from this machine."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"[{address}]" if ":" in address else address


def serve(
    plane: Callable[[], DataPlane],
    settings: ServerSettings,
    *,
    metrics: ServerMetrics | None = None,
    routes: Callable[[Http], Sequence[web.RouteDef]] = lambda http: (),
    started: Callable[[Service], Awaitable[int | None]] | None = None,
    metrics_port: int | None = None,
    tls: ssl.SSLContext | None = None,
    grpc: GrpcSettings | None = None,
) -> int:
    """Run a service until SIGTERM or SIGINT; returns the exit status.

    `plane` is called inside the event loop.  A second signal ends the process at once with status 1.
    """

    async def main() -> int:
        service = Service(
            plane(),
            settings,
            metrics=metrics,
            routes=routes,
            started=started,
            metrics_port=metrics_port,
            tls=tls,
            grpc=grpc,
        )
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, os._exit, 1)
            service.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        return await service.run()

    logs.configure(settings.log_level, settings.log_format)
    return uvloop.run(main())
