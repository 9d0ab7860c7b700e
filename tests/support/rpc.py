"""A plain gRPC caller for tests: our private message classes, bytes on the wire, the status as a value.

Knows grpcio's synchronous client, which shares nothing with the server under test.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from oip.proto import message_class

SERVICE = "inference.GRPCInferenceService"
PATIENCE_SECONDS = 20


@dataclass(frozen=True)
class Outcome:
    """How one call ended; `trailer` is its trailing metadata."""

    status: str
    details: str
    trailer: Mapping[str, str]
    body: bytes = b""

    def message(self, name: str) -> Any:
        assert self.status == "OK", self
        return message_class(name).FromString(self.body)


class Caller:
    """One connection."""

    def __init__(self, target: str, **options: Any) -> None:
        settings = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(target, options=[*settings, *options.items()])

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def begin(self, method: str, body: bytes = b"", *, service: str = SERVICE, **options: Any) -> Any:
        """A call under way; `outcome` waits for its end."""
        options.setdefault("timeout", PATIENCE_SECONDS)
        return self.channel.unary_unary(f"/{service}/{method}").future(body, **options)

    def call(self, method: str, body: bytes = b"", **options: Any) -> Outcome:
        return outcome(self.begin(method, body, **options))

    def ask(self, method: str, **fields: Any) -> Any:
        """The response's message to a request of these fields."""
        request = message_class(f"{method}Request")(**fields).SerializeToString()
        return self.call(method, request).message(f"{method}Response")

    def stream(self, requests: Iterable[bytes], **options: Any) -> Any:
        """The responses of `ModelStreamInfer`, as bytes; also the call."""
        options.setdefault("timeout", PATIENCE_SECONDS)
        return self.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter(requests), **options)


def outcome(call: Any) -> Outcome:
    """How a call ends, or a stream whose responses have been read."""
    status = call.code().name
    trailer = {item[0]: item[1] for item in call.trailing_metadata() or ()}
    return Outcome(status, call.details() or "", trailer, call.result() if status == "OK" else b"")
