"""Hands the requests for one model version to its instances, first come, first served.

The event loop submits, instance threads take.  All of the mutable state: a queue with a bound, and whether
it is closed.  An entry carries its own reply, and a caller who has gone is normal: its entry is
skipped.  Knows no protocol, no tensor's meaning and no torch.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue

import numpy as np

from oip.errors import DeadlineExceeded, InferenceError, Unavailable

Outputs = dict[str, np.ndarray]

RETRY_AFTER_SECONDS = 1


class Entry:
    """One request in the queue, and the future that its caller awaits.

    `queue_seconds` and `compute_seconds` are what the instance measured, 0.0 until it has.
    """

    __slots__ = (
        "_clock",
        "_loop",
        "_submitted",
        "compute_seconds",
        "deadline",
        "future",
        "inputs",
        "queue_seconds",
    )

    def __init__(
        self, inputs: Mapping[str, np.ndarray], deadline: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Made on the event loop.  `deadline` is a reading of `clock`, None for no limit."""
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._submitted = clock()
        self.future: asyncio.Future[Outputs] = self._loop.create_future()
        self.inputs: Mapping[str, np.ndarray] | None = inputs
        self.deadline = deadline
        self.queue_seconds = 0.0
        self.compute_seconds = 0.0

    def claim(self) -> Mapping[str, np.ndarray] | None:
        """The inputs to execute, or None if nobody waits for the answer any more.  Called once, by any thread."""
        inputs = self.inputs  # before done() is asked: a caller who goes takes them away
        if self.future.done():
            return None
        now = self._clock()
        self.queue_seconds = now - self._submitted
        if self.deadline is not None and now >= self.deadline:
            self.resolve(DeadlineExceeded("the request's deadline passed while it was queued"))
            return None
        return inputs

    def resolve(self, answer: Outputs | InferenceError) -> None:
        """Give the caller the answer.  From any thread; a no-op if the caller has gone."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to answer
            self._loop.call_soon_threadsafe(self.settle, answer)

    def settle(self, answer: Outputs | InferenceError) -> None:
        """`resolve` for the event loop's own thread."""
        if self.future.done():
            return
        if isinstance(answer, InferenceError):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


class Scheduler:
    """The queue before one model version."""

    def __init__(self, model_name: str, max_queue_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._model_name = model_name
        self._max_queue_size = max_queue_size
        self._clock = clock
        self._queue: SimpleQueue[Entry | None] = SimpleQueue()  # None tells one instance to end
        self._closed = False

    def __repr__(self) -> str:
        return f"<Scheduler {self._model_name}: {self._queue.qsize()} queued{', closed' if self._closed else ''}>"

    @property
    def queued(self) -> int:
        """Entries that wait, those of callers who have gone included."""
        return self._queue.qsize()

    def submit(self, inputs: Mapping[str, np.ndarray], deadline: float | None) -> Entry:
        """Queue a request; `finish` waits for its answer.  On the event loop.

        Raises:
            Unavailable: the queue is full, or closed.
            DeadlineExceeded: the deadline has passed already.
        """
        if self._closed:
            raise Unavailable(
                f"Server is stopping, scheduler for model '{self._model_name}' has stopped accepting new inference "
                "requests",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        if self._queue.qsize() >= self._max_queue_size:
            raise Unavailable(
                f"Exceeds maximum queue size: {self._max_queue_size} requests wait for model '{self._model_name}'",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        if deadline is not None and self._clock() >= deadline:
            raise DeadlineExceeded("the request's deadline passed before it was queued")
        entry = Entry(inputs, deadline, self._clock)
        self._queue.put(entry)
        return entry

    async def finish(self, entry: Entry) -> Outputs:
        """The answer to a submitted entry.  Cancelling this call withdraws the entry.

        Raises:
            DeadlineExceeded: at the deadline, even while the entry is being executed.
            InferenceError: what the execution raised.
        """
        timer = None
        if entry.deadline is not None:
            timer = asyncio.get_running_loop().call_later(
                max(0.0, entry.deadline - self._clock()),
                entry.settle,
                DeadlineExceeded("the request's deadline passed before the model had answered"),
            )
        try:
            return await entry.future
        finally:
            entry.inputs = None  # a withdrawn entry may wait in the queue for long
            if timer:
                timer.cancel()

    def take(self) -> tuple[Entry, Mapping[str, np.ndarray]] | None:
        """The next entry that somebody waits for, with its inputs; None when it is time to end.

        Blocks.  For instance threads.
        """
        while (entry := self._queue.get()) is not None:
            inputs = entry.claim()
            if inputs is not None:
                return entry, inputs
        return None

    def close(self, instances: int) -> None:
        """Accept nothing more.  Each of the instances ends once what is queued has been executed."""
        if not self._closed:
            self._closed = True
            for _ in range(instances):
                self._queue.put(None)

    def abandon(self) -> None:
        """Refuse everything that is still queued; for when draining has taken too long."""
        with contextlib.suppress(Empty):
            while True:
                entry = self._queue.get_nowait()
                if entry is None:
                    continue
                entry.resolve(Unavailable("the server stopped before the request was executed"))
