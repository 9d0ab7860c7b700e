"""What one model version has done: counts and times, for the statistics extension and for the metrics alike.

Requests are counted on the event loop, executions by the instance threads that did them; a snapshot is what both
show.  Knows no transport, no Prometheus and no clock: whoever measures brings seconds.
"""

import threading
from bisect import bisect_left
from collections.abc import Sequence
from enum import Enum

from oip.errors import Cancelled, DeadlineExceeded, InferenceError, Internal, Unavailable
from oip.server.extensions import BatchStatistics, Duration, InferenceStatistics, ModelStatistics
from oip.server.metrics import SECONDS

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Bucket bounds of batch sizes."""


class FailureReason(Enum):
    """Triton's label `reason` of a failed request."""

    REJECTED = "REJECTED"
    """The queue was full, or the request waited too long there."""
    CANCELED = "CANCELED"
    """Its caller left, or its deadline passed."""
    BACKEND = "BACKEND"
    """The model failed."""
    OTHER = "OTHER"
    """It broke a rule."""


def failure_reason(error: BaseException) -> FailureReason:
    """Why a request failed, by what was raised."""
    match error:
        case Unavailable():
            return FailureReason.REJECTED
        case Internal():
            return FailureReason.BACKEND
        case Cancelled() | DeadlineExceeded():
            return FailureReason.CANCELED
        case InferenceError():
            return FailureReason.OTHER
        case Exception():
            return FailureReason.BACKEND
        case _:  # asyncio's CancelledError: the caller has gone
            return FailureReason.CANCELED


class Histogram:
    """Observations by bucket; `bounds` are upper limits, the last bucket has none."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class _Times:
    """How often, and nanoseconds for each of the three stages of an execution."""

    __slots__ = ("count", "infer", "input", "output")

    def __init__(self) -> None:
        self.count = self.input = self.infer = self.output = 0


class Recorder:
    """Counts for one model version; lives as long as the version's name is served, over reloads."""

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.inference_count = 0
        self.last_inference_milliseconds = 0
        self.failures = dict.fromkeys(FailureReason, 0)
        self.request_seconds = Histogram(SECONDS)
        self.queue_seconds = Histogram(SECONDS)
        self.compute_seconds = Histogram(SECONDS)
        self.batch_size = Histogram(ROWS)
        self._success = self._request = self._queue = 0
        self._failed_nanoseconds = 0
        self._input = self._infer = self._output = 0
        self._batches: dict[int, _Times] = {}
        self._lock = threading.Lock()

    # On the event loop

    def success(
        self, rows: int, now: float, request: float, queue: float, gather: float, compute: float, scatter: float
    ) -> None:
        """Count an answered request; times in seconds, `now` since the epoch, `compute` including the other two."""
        self._success += 1
        self.inference_count += rows
        self.last_inference_milliseconds = int(now * 1000)
        self._request += int(request * 1e9)
        self._queue += int(queue * 1e9)
        self._input += int(gather * 1e9)
        self._infer += int((compute - gather - scatter) * 1e9)
        self._output += int(scatter * 1e9)
        self.request_seconds.observe(request)
        self.queue_seconds.observe(queue)
        self.compute_seconds.observe(compute)

    def failure(self, error: BaseException, request: float) -> None:
        """Count a request that was not answered, for whatever was raised."""
        self.failures[failure_reason(error)] += 1
        self._failed_nanoseconds += int(request * 1e9)

    # In instance threads

    def execution(self, rows: int, gather: float, infer: float, scatter: float) -> None:
        """Count an execution; times in seconds."""
        with self._lock:
            times = self._batches.get(rows)
            if times is None:
                times = self._batches[rows] = _Times()
            times.count += 1
            times.input += int(gather * 1e9)
            times.infer += int(infer * 1e9)
            times.output += int(scatter * 1e9)
            self.batch_size.observe(rows)

    # For readers

    def snapshot(self) -> ModelStatistics:
        """What has been counted so far."""
        with self._lock:
            batches = tuple(
                BatchStatistics(
                    rows,
                    Duration(times.count, times.input),
                    Duration(times.count, times.infer),
                    Duration(times.count, times.output),
                )
                for rows, times in sorted(self._batches.items())
            )
        done = self._success
        return ModelStatistics(
            name=self.name,
            version=self.version,
            last_inference_milliseconds=self.last_inference_milliseconds,
            inference_count=self.inference_count,
            execution_count=sum(batch.compute_infer.count for batch in batches),
            inference=InferenceStatistics(
                success=Duration(done, self._request),
                fail=Duration(sum(self.failures.values()), self._failed_nanoseconds),
                queue=Duration(done, self._queue),
                compute_input=Duration(done, self._input),
                compute_infer=Duration(done, self._infer),
                compute_output=Duration(done, self._output),
            ),
            batches=batches,
        )
