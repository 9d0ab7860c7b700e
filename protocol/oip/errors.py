"""Every failure that a caller may see, as one small tree.

    InferenceError
    ├── InvalidArgument        the request breaks a rule; the message says which and what would be right
    │   ├── TooLarge           ... a body over the limit
    │   ├── TooSlow            ... a body that did not arrive in time
    │   └── UnsupportedMediaType
    ├── NotFound               no such model, version or route
    ├── MethodNotAllowed
    ├── TooManyRequests        the predictor asked for patience
    ├── Unavailable            not ready, draining, queue full, predictor unreachable
    ├── DeadlineExceeded       the caller's time is up
    ├── Cancelled              the caller has gone; nobody reads the answer
    ├── Unsupported            switched off, or not served by this process
    ├── BadAnswer              the predictor answered nonsense
    └── Internal               the model failed, or a bug of ours

Knows no transport: a code carries its HTTP status and gRPC status name as plain data, so that both
transports read one table and cannot drift apart.  Messages reach clients; they must never hold a
host, a path, a region name or a traceback.
"""

from enum import Enum


class ErrorCode(Enum):
    """The closed set of codes: (HTTP status, gRPC status name)."""

    INVALID_ARG = (400, "INVALID_ARGUMENT")
    NOT_FOUND = (404, "NOT_FOUND")
    METHOD_NOT_ALLOWED = (405, "UNIMPLEMENTED")
    TOO_SLOW = (408, "DEADLINE_EXCEEDED")
    TOO_LARGE = (413, "RESOURCE_EXHAUSTED")
    UNSUPPORTED_MEDIA_TYPE = (415, "INVALID_ARGUMENT")
    TOO_MANY_REQUESTS = (429, "RESOURCE_EXHAUSTED")
    CANCELLED = (499, "CANCELLED")
    INTERNAL = (500, "INTERNAL")
    UNSUPPORTED = (501, "UNIMPLEMENTED")
    BAD_ANSWER = (502, "INTERNAL")
    UNAVAILABLE = (503, "UNAVAILABLE")
    DEADLINE_EXCEEDED = (504, "DEADLINE_EXCEEDED")

    @property
    def http_status(self) -> int:
        return self.value[0]

    @property
    def grpc_status(self) -> str:
        return self.value[1]


class InferenceError(Exception):
    """A failure with a code; `instance` is the index of the V1 instance at fault, where one is."""

    code = ErrorCode.INTERNAL

    def __init__(self, message: str, *, instance: int | None = None, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.instance = instance
        self.retry_after_seconds = retry_after_seconds


class InvalidArgument(InferenceError):
    code = ErrorCode.INVALID_ARG


class TooLarge(InvalidArgument):
    code = ErrorCode.TOO_LARGE


class TooSlow(InvalidArgument):
    code = ErrorCode.TOO_SLOW


class UnsupportedMediaType(InvalidArgument):
    code = ErrorCode.UNSUPPORTED_MEDIA_TYPE


class NotFound(InferenceError):
    code = ErrorCode.NOT_FOUND


class MethodNotAllowed(InferenceError):
    code = ErrorCode.METHOD_NOT_ALLOWED


class TooManyRequests(InferenceError):
    code = ErrorCode.TOO_MANY_REQUESTS


class Unavailable(InferenceError):
    code = ErrorCode.UNAVAILABLE


class DeadlineExceeded(InferenceError):
    code = ErrorCode.DEADLINE_EXCEEDED


class Cancelled(InferenceError):
    code = ErrorCode.CANCELLED


class Unsupported(InferenceError):
    code = ErrorCode.UNSUPPORTED


class BadAnswer(InferenceError):
    code = ErrorCode.BAD_ANSWER


class Internal(InferenceError):
    code = ErrorCode.INTERNAL


_BY_STATUS: dict[int, type[InferenceError]] = {
    error.code.http_status: error
    for error in (
        InvalidArgument,
        NotFound,
        MethodNotAllowed,
        TooSlow,
        TooLarge,
        UnsupportedMediaType,
        TooManyRequests,
        Cancelled,
        Internal,
        Unsupported,
        BadAnswer,
        Unavailable,
        DeadlineExceeded,
    )
}


def error_for_status(status: int) -> type[InferenceError]:
    """The error that means what an HTTP status means; unlisted 4xx read as 400, unlisted 5xx as 500."""
    return _BY_STATUS.get(status) or (InvalidArgument if 400 <= status < 500 else Internal)
