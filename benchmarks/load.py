"""A closed-loop load generator that costs little: prepared bytes, raw sockets, one request at a time a connection.

Knows just enough HTTP to find the end of an answer with a Content-Length.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True, slots=True)
class Load:
    """What one round saw; latencies in seconds, sorted."""

    seconds: float
    latencies: list[float]
    failures: int

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


class _Connection(asyncio.Protocol):
    """Sends the same request again as soon as its answer is complete, until `end`."""

    def __init__(self, request: bytes, end: float) -> None:
        self.request, self.end = request, end
        self.latencies: list[float] = []
        self.failures = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = b""
        self.needed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        self._send()

    def _send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.needed:
            head, separator, _ = self.buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self.needed = len(head) + 4 + int(length)
            self.failures += not self.buffer.startswith(b"HTTP/1.1 200")
        if len(self.buffer) < self.needed:
            return
        now = time.perf_counter()
        self.latencies.append(now - self.sent)
        self.buffer, self.needed = b"", 0
        if now < self.end:
            self._send()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def closed_loop(
    port: int, path: str, body: bytes, *, connections: int, seconds: float, headers: Mapping[str, str] | None = None
) -> Load:
    """Keep every connection busy for a while."""
    fields = {"Content-Type": "application/json"} if headers is None else headers
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    opened = [
        await loop.create_connection(lambda: _Connection(request, started + seconds), "127.0.0.1", port)
        for _ in range(connections)
    ]
    clients = [client for _, client in opened]
    async with asyncio.timeout(seconds + 60):
        await asyncio.gather(*(client.done for client in clients))
    latencies = sorted(latency for client in clients for latency in client.latencies)
    return Load(time.perf_counter() - started, latencies, sum(client.failures for client in clients))
