"""A V2 client over HTTP: one pool of connections, binary tensors by default, one deadline a call.

Knows aiohttp and the codec; knows no model.  Every failure is one of `oip.errors`, with the meaning
that a caller of the caller can be told: unreachable and 503 are Unavailable, the deadline is
DeadlineExceeded, nonsense is BadAnswer, anything else keeps the status it came with.
"""

import asyncio
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from oip import http_codec, json_text
from oip.client.address import Address
from oip.errors import (
    BadAnswer,
    DeadlineExceeded,
    InferenceError,
    InvalidArgument,
    Unavailable,
    error_for_status,
)
from oip.messages import InferenceRequest, InferenceResponse, ModelMetadata
from oip.timing import parse_header

HandOff = Literal["binary", "json"]

MAX_ANSWER_BYTES = 1 << 30
"""An answer longer than a gibibyte is refused: no predictor of pictures means that."""

_SECONDS = re.compile(r"[0-9]{1,9}")
"""A Retry-After that is a number; its other form, a date, is not read."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to try again.  Inference is idempotent, so a call that got no answer may be repeated."""

    attempts: int = 3
    first_delay_seconds: float = 0.02

    def delay(
        self, attempt: int, error: InferenceError, now: float, deadline: float | None, jitter: float
    ) -> float | None:
        """Seconds to wait before the next attempt, or None to give up.

        `attempt` counts from 1; `jitter` is a random number in [0, 1).  Only Unavailable is worth
        another attempt, and only if the wait ends before the deadline.
        """
        if attempt >= self.attempts or not isinstance(error, Unavailable):
            return None
        seconds = self.first_delay_seconds * 2 ** (attempt - 1) * (0.5 + jitter)
        return None if deadline is not None and now + seconds >= deadline else seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """A response and where the server says its time went: {stage: (milliseconds, description)}."""

    response: InferenceResponse
    stages: Mapping[str, tuple[float, str]]


class HttpClient:
    """Calls one V2 server.  Create it inside a running event loop; close it there.

    Args:
        timeout_seconds: the longest a call may take where the caller sets no earlier deadline.
        connections: how many connections may be open at once; further calls wait for one.
        max_answer_bytes: a longer answer is a BadAnswer.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout_seconds: float = 60.0,
        connect_timeout_seconds: float = 2.0,
        connections: int = 64,
        hand_off: HandOff = "binary",
        retries: RetryPolicy = RetryPolicy(),
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self.address = address
        self._max_answer_bytes = max_answer_bytes
        self.hand_off: HandOff = hand_off
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        connector: aiohttp.BaseConnector
        if address.unix_socket:
            connector = aiohttp.UnixConnector(address.unix_socket, limit=connections)
        else:
            connector = aiohttp.TCPConnector(limit=connections, ttl_dns_cache=10)
        self._session = aiohttp.ClientSession(
            connector=connector,
            # The deadline is ours (see `_attempt`); aiohttp's own timers would be a second one.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_seconds),
            auto_decompress=True,
            cookie_jar=aiohttp.DummyCookieJar(),  # one caller's cookie must not travel with another's request
            # tensors hardly shrink: no answer of a predictor is to be compressed for us
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def infer(
        self, request: InferenceRequest, *, deadline: float | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One inference call.

        Args:
            deadline: a reading of `time.monotonic` by which the answer must be here.
            headers: sent along, beside the codec's own.

        Raises:
            InferenceError: see the module's docstring.
        """
        limit = time.monotonic() + self._timeout_seconds
        deadline = limit if deadline is None else min(deadline, limit)
        path = _model_path(request.model_name, request.model_version) + "/infer"
        encoded = http_codec.encode_request(request, binary=self.hand_off == "binary")
        body = encoded.body()
        status, answer_headers, answer = await self._call(
            "POST", path, deadline, body, {**(headers or {}), **encoded.headers}
        )
        if status != 200:
            raise _error(status, answer, answer_headers)
        response = http_codec.decode_response(answer, answer_headers.get(http_codec.HEADER_LENGTH))
        return Answer(response, parse_header(answer_headers.get("Server-Timing", "")))

    async def extensions(self, *, timeout_seconds: float = 5.0) -> frozenset[str]:
        """The protocol extensions that the server lists; none where it has no server metadata.

        Raises:
            Unavailable, DeadlineExceeded, BadAnswer: there was no answer.
        """
        status, _, body = await self._get("/v2", timeout_seconds)
        try:
            document = json_text.loads(body) if status == 200 else {}
        except InvalidArgument:
            document = {}
        listed = document.get("extensions") if isinstance(document, dict) else None
        return frozenset(name for name in listed if isinstance(name, str)) if isinstance(listed, list) else frozenset()

    async def model_ready(self, name: str, version: str = "", *, timeout_seconds: float = 2.0) -> bool:
        """Whether the server says that the model can serve.  Triton's empty body and KServe's JSON both count.

        Raises:
            Unavailable, DeadlineExceeded, BadAnswer: there was no answer.
        """
        status, _, body = await self._get(_model_path(name, version) + "/ready", timeout_seconds)
        if status != 200:
            return False
        try:
            document = json_text.loads(body) if body.strip() else {}
        except InvalidArgument:
            return True
        return not (isinstance(document, dict) and document.get("ready") is False)

    async def model_metadata(self, name: str, version: str = "", *, timeout_seconds: float = 5.0) -> ModelMetadata:
        """The model's inputs and outputs.

        Raises:
            NotFound: the server has no such model.
            BadAnswer: the answer is no metadata.
        """
        status, headers, body = await self._get(_model_path(name, version), timeout_seconds)
        if status != 200:
            raise _error(status, body, headers)
        return http_codec.decode_model_metadata(body)

    async def model_config(
        self, name: str, version: str = "", *, timeout_seconds: float = 5.0
    ) -> Mapping[str, Any] | None:
        """The model configuration as JSON, or None where the server has no such route."""
        status, headers, body = await self._get(_model_path(name, version) + "/config", timeout_seconds)
        if status in (404, 405, 501):
            return None
        if status != 200:
            raise _error(status, body, headers)
        try:
            document = json_text.loads(body)
        except InvalidArgument as error:
            raise BadAnswer(f"the predictor's model configuration is unreadable: {error.message}") from None
        if not isinstance(document, dict):
            raise BadAnswer("the predictor's model configuration is no JSON object")
        return document

    async def _get(self, path: str, timeout_seconds: float) -> tuple[int, Mapping[str, str], bytes]:
        return await self._attempt("GET", path, time.monotonic() + timeout_seconds, None, {})

    async def _call(
        self, method: str, path: str, deadline: float, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """`_attempt`, again where the retry policy says so."""
        attempt = 1
        while True:
            try:
                status, answer_headers, answer = await self._attempt(method, path, deadline, body, headers)
                if status != 503:
                    return status, answer_headers, answer
                error: InferenceError = _error(status, answer, answer_headers)
            except Unavailable as unreachable:
                error = unreachable
            delay = self._retries.delay(attempt, error, time.monotonic(), deadline, random.random())
            if delay is None:
                raise error
            await asyncio.sleep(delay)
            attempt += 1

    async def _attempt(
        self, method: str, path: str, deadline: float, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One exchange: (status, headers, body).  The only place that touches the network."""
        url = URL(self.address.base_url + path, encoded=True)  # or yarl would resolve a model named ".."
        answering = False
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the predictor was called")
        try:
            async with (
                asyncio.timeout(left),
                self._session.request(method, url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                answering = True
                return response.status, response.headers, await self._read(response)
        except (aiohttp.ConnectionTimeoutError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if answering:
                raise BadAnswer("the predictor's answer breaks off") from None
            raise Unavailable("the predictor cannot be reached", retry_after_seconds=1) from None
        except TimeoutError:
            raise DeadlineExceeded("the predictor did not answer in time") from None
        except (aiohttp.ClientError, ValueError):
            # A payload that breaks off, headers that are no HTTP, a body that does not decompress.
            raise BadAnswer("the predictor's answer is no valid HTTP or breaks off") from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """The whole body, decompressed, as long as it is within the bound."""
        limit = self._max_answer_bytes
        chunks: list[bytes] = []
        length = response.content_length or 0  # its word, so that a body over the bound is not even begun
        if length <= limit:
            length = 0
            async for chunk in response.content.iter_any():
                chunks.append(chunk)
                length += len(chunk)
                if length > limit:
                    break
        if length > limit:
            raise BadAnswer(f"the predictor's answer is longer than {limit} bytes")
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _model_path(name: str, version: str) -> str:
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _error(status: int, body: bytes, headers: Mapping[str, str]) -> InferenceError:
    """What an answer other than 200 means, in the predictor's own words where it sent any."""
    if 200 < status < 400:
        return BadAnswer(f"the predictor answered with status {status}, which no V2 server does")
    try:
        document = json_text.loads(body)
        message = document.get("error") or document.get("detail") if isinstance(document, dict) else None
    except InvalidArgument:
        message = None
    retry_after = headers.get("Retry-After", "")
    return error_for_status(status)(
        message if isinstance(message, str) else f"the predictor answered with status {status}",
        retry_after_seconds=int(retry_after) if _SECONDS.fullmatch(retry_after) else None,
    )
