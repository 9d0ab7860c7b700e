"""The queue before one model version: requests come in on the event loop, instance threads take batches out.

What is executed together, and what never, is decided by `decide`; this does it.  All of the mutable
state, under one lock: the requests that wait, by priority level; the seats of instances that have nothing to
do; counts.  An entry carries its own reply, and a caller who has gone is normal: its entry leaves the queue.
Knows no protocol and no torch.
"""

import asyncio
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from oip.errors import DeadlineExceeded, InferenceError, Unavailable
from torchscript_predictor.scheduling.batch import Inputs, Outputs, shape_key
from torchscript_predictor.scheduling.decide import BatchRules, Refusal, decide, places
from torchscript_predictor.scheduling.policy import DynamicBatching, QueuePolicy, TimeoutAction

Answer = Outputs | InferenceError

RETRY_AFTER_SECONDS = 1


class Entry:
    """One request in the queue, and the future that its caller awaits.  Made on the event loop.

    Times are readings of the scheduler's clock.  `shape` is None where requests are never merged.
    `queue_seconds` and `compute_seconds` are what was measured, 0.0 until it was; `gather_seconds` and
    `scatter_seconds` are the parts of the latter before and after the model itself.
    """

    __slots__ = (
        "answer",
        "arrived",
        "compute_seconds",
        "deadline",
        "future",
        "gather_seconds",
        "inputs",
        "level",
        "places",
        "queue_seconds",
        "rows",
        "scatter_seconds",
        "shape",
        "timeout_at",
    )

    def __init__(self, inputs: Inputs, rows: int, shape: object, arrived: float, deadline: float | None) -> None:
        self.future: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        self.inputs: Inputs | None = inputs
        self.rows = rows
        self.places = 1 if shape is None else places(rows)
        self.shape = shape
        self.arrived = arrived
        self.deadline = deadline
        self.timeout_at: float | None = None
        self.level: _Level | None = None
        self.answer: Answer | None = None
        self.queue_seconds = 0.0
        self.compute_seconds = 0.0
        self.gather_seconds = 0.0
        self.scatter_seconds = 0.0

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.future.done()

    def settle(self, answer: Answer) -> None:
        """Give the caller the answer; a no-op if the caller has gone.  On the event loop."""
        if self.future.done():
            return
        if isinstance(answer, InferenceError):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


class Batch:
    """Entries that an instance is to execute together, with their inputs."""

    __slots__ = ("entries", "inputs")

    def __init__(self, entries: Sequence[Entry], inputs: Sequence[Inputs]) -> None:
        self.entries = entries
        self.inputs = inputs

    @property
    def rows(self) -> list[int]:
        return [entry.rows for entry in self.entries]


class Seat:
    """Where one instance waits for work."""

    __slots__ = ("called", "look_again_at", "seen", "signal")

    def __init__(self) -> None:
        self.signal = threading.Lock()
        self.signal.acquire()
        self.called = False  # woken, and has not looked at the queue since
        self.look_again_at: float | None = None  # nothing was due before that
        self.seen = 0  # arrivals when that was decided


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """What a scheduler has seen.  A batch size counts rows, an execution counts once whatever its size."""

    queued: int
    idle_instances: int
    inference_count: int
    execution_count: int
    batch_sizes: Mapping[int, int]
    """Executions by batch size."""
    rejected: int
    """Refused because a queue was full."""
    timed_out: int
    expired: int
    """Their callers' deadlines passed in the queue."""
    cancelled: int
    """Their callers left while they were in the queue."""


class _Level:
    """The entries of one priority level; dictionaries as ordered sets, for removal from anywhere."""

    __slots__ = ("delayed", "policy", "timeout_action", "waiting")

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.timeout_action = policy.timeout_action
        self.waiting: OrderedDict[Entry, None] = OrderedDict()
        self.delayed: OrderedDict[Entry, None] = OrderedDict()


class Scheduler:
    """The queue before one model version."""

    def __init__(
        self,
        model_name: str,
        max_queue_size: int,
        *,
        max_batch_size: int = 0,
        dynamic_batching: DynamicBatching | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            max_queue_size: requests that may wait, whatever their level.
            max_batch_size: the model's; 0 for a model that does not batch.
            dynamic_batching: how requests are merged; None executes each alone, in order.
        """
        self._model_name = model_name
        self._max_queue_size = max_queue_size
        self._has_rows = max_batch_size > 0
        self._policy = dynamic_batching or DynamicBatching()
        self._rules = batch_rules(max_batch_size, dynamic_batching)
        self._clock = clock
        self._lock = threading.Lock()
        self._levels = [_Level(policy) for policy in self._policy.queue_policies]
        self._queued = 0
        self._places = 0  # of a batch, that the queued entries take together
        self._arrivals = 0
        self._idle: list[Seat] = []
        self._called = 0  # instances that were woken and have not looked at the queue since
        self._closed = False
        self._in_order: deque[Entry] = deque()  # unanswered, where ordering is preserved; the event loop's own
        self._rejected = 0
        self._refused: Counter[Refusal] = Counter()
        self._batch_sizes: Counter[int] = Counter()  # counted on the event loop

    def __repr__(self) -> str:
        return (
            f"<Scheduler {self._model_name}: {self._queued} queued, {len(self._idle)} instances idle"
            f"{', closed' if self._closed else ''}>"
        )

    @property
    def queued(self) -> int:
        """Entries that wait."""
        return self._queued

    def statistics(self) -> SchedulerStatistics:
        """From any thread."""
        with self._lock:
            return SchedulerStatistics(
                queued=self._queued,
                idle_instances=len(self._idle),
                inference_count=sum(size * count for size, count in self._batch_sizes.items()),
                execution_count=self._batch_sizes.total(),
                batch_sizes=MappingProxyType(dict(self._batch_sizes)),
                rejected=self._rejected,
                timed_out=self._refused[Refusal.TIMEOUT],
                expired=self._refused[Refusal.DEADLINE],
                cancelled=self._refused[Refusal.GONE],
            )

    # What the event loop calls

    def submit(
        self, inputs: Inputs, deadline: float | None, *, priority: int = 0, timeout_microseconds: int = 0
    ) -> Entry:
        """Queue a request; `finish` waits for its answer.

        Args:
            inputs: as `LoadedModel.execute` takes them.
            priority: 1 is the highest level; 0 asks for the model's default.
            timeout_microseconds: to wait at most, where the model lets requests shorten its timeout; 0 for none.

        Raises:
            Unavailable: the queue is full, or closed.
            DeadlineExceeded: the deadline has passed already.
        """
        rows, shape = 1, None
        if self._has_rows:
            rows = next(iter(inputs.values())).shape[0]
            if self._rules.max_batch_size > 1:
                shape = shape_key(inputs)
        now = self._clock()
        if deadline is not None and now >= deadline:
            raise DeadlineExceeded("the request's deadline passed before it was queued")
        entry = Entry(inputs, rows, shape, now, deadline)
        level = self._levels[self._policy.level(priority) - 1]
        if timeout_microseconds or level.policy.default_timeout_microseconds:
            timeout = level.policy.timeout_seconds(timeout_microseconds)
            entry.timeout_at = None if timeout is None else now + timeout
        with self._lock:
            self._refuse_at_the_door(level)
            level.waiting[entry] = None
            entry.level = level
            self._queued += 1
            self._places += entry.places
            self._arrivals += 1
            self._call_an_instance()
        if self._rules.keep_order:
            self._in_order.append(entry)
        return entry

    def _refuse_at_the_door(self, level: _Level) -> None:
        if self._closed:
            raise Unavailable(
                f"Server is stopping, scheduler for model '{self._model_name}' has stopped accepting new inference "
                "requests",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        limit = level.policy.max_queue_size
        if limit and len(level.waiting) + len(level.delayed) >= limit:
            which = f" at priority {self._levels.index(level) + 1}" if len(self._levels) > 1 else ""
        elif self._queued >= self._max_queue_size:
            limit, which = self._max_queue_size, ""
        else:
            return
        self._rejected += 1
        raise Unavailable(
            f"Exceeds maximum queue size: {limit} requests wait for model '{self._model_name}'{which}",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )

    async def finish(self, entry: Entry) -> Outputs:
        """The answer to a submitted entry.  Cancelling this call withdraws the entry.

        Raises:
            DeadlineExceeded: at the deadline, even while the entry is being executed.
            Unavailable: the queue policy's timeout passed while it waited.
            InferenceError: what the execution raised.
        """
        timers = []
        loop = asyncio.get_running_loop()
        if entry.deadline is not None:
            seconds = max(0.0, entry.deadline - self._clock())
            timers.append(loop.call_later(seconds, self._pass_deadline, entry))
        if entry.timeout_at is not None and entry.level and entry.level.timeout_action is TimeoutAction.REJECT:
            seconds = max(0.0, entry.timeout_at - self._clock())
            timers.append(loop.call_later(seconds, self._time_out, entry))
        try:
            return await entry.future
        finally:
            self._withdraw(entry, Refusal.GONE)
            if self._in_order:
                self._answer_in_order()
            for timer in timers:
                timer.cancel()

    def _pass_deadline(self, entry: Entry) -> None:
        if self._withdraw(entry, Refusal.DEADLINE):
            entry.settle(refusal(Refusal.DEADLINE))
        else:
            entry.settle(DeadlineExceeded("the request's deadline passed before the model had answered"))

    def _time_out(self, entry: Entry) -> None:
        if self._withdraw(entry, Refusal.TIMEOUT):  # else it is being executed: in time
            entry.settle(refusal(Refusal.TIMEOUT))

    def _withdraw(self, entry: Entry, why: Refusal) -> bool:
        """Take an entry out of the queue; whether it was there."""
        if entry.level is None:  # no lock where there is nothing to do: an entry never comes back
            return False
        with self._lock:
            if not self._remove(entry):
                return False
            self._refused[why] += 1
        entry.inputs = None
        return True

    def _settle(self, answers: Sequence[tuple[Entry, Answer]], batch_size: int | None) -> None:
        if batch_size is not None:
            self._batch_sizes[batch_size] += 1
        if not self._rules.keep_order:
            _settle_at_once(answers)
            return
        for entry, answer in answers:
            entry.answer = answer
        self._answer_in_order()

    def _answer_in_order(self) -> None:
        """Give answers as far as every earlier request has its own."""
        while self._in_order:
            entry = self._in_order[0]
            if entry.answer is not None:
                entry.settle(entry.answer)
            elif not entry.gone:
                return
            self._in_order.popleft()

    # What instance threads call

    def wait(self, seat: Seat) -> bool:
        """Block until there may be a batch to take; False when it is time to end."""
        with self._lock:
            while True:
                if self._queued:
                    if seat.look_again_at is None:
                        return True
                else:
                    self._has_looked(seat)
                    seat.look_again_at = None
                    if self._closed:
                        return False
                timeout = -1.0  # for ever
                if seat.look_again_at is not None:
                    timeout = seat.look_again_at - self._clock()
                    grown = self._arrivals != seat.seen and self._places >= self._rules.enough
                    if timeout <= 0 or grown or self._closed:
                        seat.look_again_at = None
                        return True
                self._sleep(seat, timeout)
                seat.look_again_at = None

    def take(self, seat: Seat) -> Batch | None:
        """The batch to execute now; None if there is none, as when another instance was quicker."""
        with self._lock:
            self._has_looked(seat)
            now = self._clock()
            decision = decide(self._levels, 1, self._rules, now)
            refused = []
            for entry, why in decision.refused:
                self._remove(entry)
                self._refused[why] += 1
                refused.append((entry, refusal(why)))
            for entry in decision.delayed:
                assert entry.level is not None, "a queued entry has a level; this is a bug"
                del entry.level.waiting[entry]
                entry.level.delayed[entry] = None
            batch = None
            for entries in decision.batches:
                batch = Batch(entries, [self._claim(entry, now) for entry in entries])
            if batch is None:
                seat.look_again_at = decision.look_again_at
                seat.seen = self._arrivals
            elif self._queued:
                self._call_an_instance()
        if refused:
            self.refuse(refused)
        return batch

    def answer(self, answers: Sequence[tuple[Entry, Answer]], batch_size: int | None = None) -> None:
        """Give callers their answers, in one wake-up of their event loop.  From any thread.

        Args:
            batch_size: of the execution that succeeded; None if it failed.
        """
        _call_in(answers[0][0], self._settle, answers, batch_size)

    def refuse(self, refused: Sequence[tuple[Entry, InferenceError]]) -> None:
        """Tell callers that their requests will not be executed; these answers wait for no others.  From any thread."""
        _call_in(refused[0][0], _settle_at_once, refused)

    def is_late(self, entry: Entry) -> bool:
        """Whether an entry's deadline has passed."""
        return entry.deadline is not None and self._clock() >= entry.deadline

    def close(self) -> None:
        """Accept nothing more.  The instances end once what is queued has been executed, without delay."""
        with self._lock:
            self._closed = True
            self._rules = replace(self._rules, delay_seconds=0.0)
            for seat in self._idle:
                self._call(seat)
            self._idle.clear()

    def abandon(self) -> None:
        """Refuse everything that is still queued; for when draining has taken too long."""
        with self._lock:
            entries = [entry for level in self._levels for each in (level.waiting, level.delayed) for entry in each]
            for entry in entries:
                self._remove(entry)
        if entries:
            why = "the server stopped before the request was executed"
            self.refuse([(entry, Unavailable(why)) for entry in entries])

    # With the lock held

    def _remove(self, entry: Entry) -> bool:
        level = entry.level
        if level is None:
            return False
        if entry in level.waiting:
            del level.waiting[entry]
        else:
            del level.delayed[entry]
        entry.level = None
        self._queued -= 1
        self._places -= entry.places
        return True

    def _claim(self, entry: Entry, now: float) -> Inputs:
        self._remove(entry)
        inputs, entry.inputs = entry.inputs, None
        assert inputs is not None, "a queued entry has inputs; this is a bug"
        entry.queue_seconds = now - entry.arrived
        return inputs

    def _sleep(self, seat: Seat, timeout_seconds: float) -> None:
        """Give up the lock until the seat is called or the time has passed."""
        self._idle.append(seat)
        self._lock.release()
        try:
            woken = seat.signal.acquire(timeout=timeout_seconds)
        finally:
            self._lock.acquire()
        if not seat.called:
            self._idle.remove(seat)
        elif not woken:  # called just as the time had passed
            seat.signal.acquire()

    def _call_an_instance(self) -> None:
        """Wake an idle instance, unless those that were woken will take all there is, or all of it can wait."""
        if not self._idle or self._places <= self._called * self._rules.max_batch_size:
            return
        if self._places < self._rules.enough and any(seat.look_again_at is not None for seat in self._idle):
            return  # one of them wakes by itself when the oldest is due
        self._call(self._idle.pop())

    def _call(self, seat: Seat) -> None:
        seat.called = True
        self._called += 1
        seat.signal.release()

    def _has_looked(self, seat: Seat) -> None:
        if seat.called:
            seat.called = False
            self._called -= 1


def batch_rules(max_batch_size: int, dynamic_batching: DynamicBatching | None) -> BatchRules:
    """What the configuration makes of batches."""
    if dynamic_batching is None:
        return BatchRules()
    return BatchRules(
        max_batch_size=max(1, max_batch_size),
        preferred=frozenset(dynamic_batching.preferred_batch_size),
        delay_seconds=dynamic_batching.max_queue_delay_microseconds / 1e6 if max_batch_size > 1 else 0.0,
        keep_order=dynamic_batching.preserve_ordering,
    )


def _call_in(entry: Entry, function: Callable[..., None], *arguments: object) -> None:
    try:
        entry.future.get_loop().call_soon_threadsafe(function, *arguments)
    except RuntimeError:  # the loop is closed: nobody is left to answer
        return


def _settle_at_once(answers: Sequence[tuple[Entry, Answer]]) -> None:
    for entry, answer in answers:
        entry.settle(answer)


def refusal(why: Refusal) -> InferenceError:
    """What the caller of a request that will not be executed is told."""
    if why is Refusal.TIMEOUT:
        return Unavailable("Request timeout expired", retry_after_seconds=RETRY_AFTER_SECONDS)
    return DeadlineExceeded("the request's deadline passed while it was queued")
