"""What every request meets at the door, whatever transport brought it: room, an id, a deadline.

Knows no transport.  `http` and `grpc` each have a door of their own that uses these; one `Admission` stands
behind both, so that the bound and the drain count every request of the process.
"""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from oip.errors import DeadlineExceeded, InferenceError, InvalidArgument, Unavailable
from oip.messages import InferenceRequest, InferenceResponse
from oip.server.data_plane import DataPlane, RequestContext

REQUEST_ID = "x-request-id"
ENVOY_TIMEOUT = "x-envoy-expected-rq-timeout-ms"

MAX_MESSAGE = 4000
"""Characters of an error message that are sent."""

_SAFE_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""Printable, short, no line breaks: an id goes into headers and logs."""

_LATE = "the deadline that came with the request passed before the answer was there"

_MILLISECONDS = re.compile(r"[0-9]{1,15}")
_VERSION = re.compile(r"[0-9]{1,18}")


class Admission:
    """The requests in flight over every transport of one process.

    `draining` is set by the service once it has been asked to stop.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self.draining = False
        self._idle: asyncio.Future[None] | None = None

    def enter(self) -> None:
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1
        if not self.in_flight and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def check(self) -> None:
        """
        Raises:
            Unavailable: there are more requests in flight than the limit, the one that asks included.
        """
        if self.in_flight > self.limit:
            raise Unavailable(f"{self.limit} requests are in flight, the limit; try again", retry_after_seconds=1)

    async def idle(self) -> None:
        """Return once no request is in flight."""
        if self.in_flight:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle


def usable_request_id(given: str) -> str:
    """The caller's id where it sent a usable one, else a new one."""
    return given if given and _SAFE_REQUEST_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    """32 hexadecimal digits.  Unique, not secret: no call of the system's generator for each request."""
    return f"{random.getrandbits(128):032x}"


def envoy_deadline(milliseconds: str) -> float | None:
    """The reading of the monotonic clock at which the caller stops waiting, from the proxy's header."""
    if not _MILLISECONDS.fullmatch(milliseconds) or int(milliseconds) == 0:
        return None  # Envoy: zero is no limit
    return time.monotonic() + int(milliseconds) / 1000


def drop_if_late(deadline: float | None) -> None:
    """Spare the work that nobody waits for.

    Raises:
        DeadlineExceeded: the deadline has passed.
    """
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineExceeded(_LATE)


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
        if clock.expired():  # whatever the monotonic clock says: an event loop's timers may be a little early
            raise DeadlineExceeded(_LATE) from None
        raise


def sooner(first: float | None, second: float | None) -> float | None:
    """The earlier of two deadlines, None being none."""
    return min((moment for moment in (first, second) if moment is not None), default=None)


def timeout_parameter(parameters: Mapping[str, Any]) -> float | None:
    """The deadline in the V2 parameter `timeout` (microseconds, 0 for none)."""
    timeout = parameters.get("timeout", 0)
    if not isinstance(timeout, int) or isinstance(timeout, bool) or timeout < 0:
        raise InvalidArgument(f"parameter 'timeout' must be a number of microseconds, got {timeout!r}")
    return time.monotonic() + timeout / 1e6 if timeout else None


async def infer_in_time(plane: DataPlane, inference: InferenceRequest, context: RequestContext) -> InferenceResponse:
    """The data plane's answer, or `DeadlineExceeded` once the request's own parameter `timeout` has passed."""
    timeout = timeout_parameter(inference.parameters)
    if timeout is None:
        return await plane.infer(inference, context)
    context.deadline = sooner(context.deadline, timeout)
    async with until(timeout):
        return await plane.infer(inference, context)


def check_version(version: str) -> None:
    """
    Raises:
        InvalidArgument: it is neither a number nor "".
    """
    if version and not _VERSION.fullmatch(version):
        raise InvalidArgument(f"a model version is a number, got {version[:40]!r}")


def told(error: InferenceError) -> str:
    """An error's message as it is sent: cut, for it may quote what came in; without lone surrogates."""
    return error.message[:MAX_MESSAGE].encode(errors="replace").decode()
