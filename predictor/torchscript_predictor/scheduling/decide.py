"""Which of the requests that wait are executed now, which together, and which never.

`decide` is a pure function: it reads the queue and says what to do; the scheduler does it.  Semantics are
Triton's dynamic batcher's, with one difference: where no order has to be kept, requests of another shape are
passed over for later instead of ending the batch.  None of them starves: the first in the queue is always in
the first batch that is due.
"""

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Generic, Protocol, TypeVar

from torchscript_predictor.scheduling.policy import TimeoutAction

LOOK_AHEAD = 64
"""How many more requests than would fill the batches are looked at in search of some that can join."""


class Queued(Protocol):
    """What a decision needs to know of a request that waits; times are readings of one clock."""

    @property
    def rows(self) -> int:
        """Its batch size; 1 where the model does not batch."""

    @property
    def shape(self) -> Hashable:
        """Equal for requests that may be concatenated."""

    @property
    def arrived(self) -> float: ...

    @property
    def deadline(self) -> float | None:
        """When its caller stops waiting."""

    @property
    def timeout_at(self) -> float | None:
        """When the queue policy's timeout acts."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""


Q = TypeVar("Q", bound=Queued)
Q_co = TypeVar("Q_co", bound=Queued, covariant=True)


class Level(Protocol[Q_co]):
    """The requests of one priority level, each collection in the order in which they are executed."""

    @property
    def timeout_action(self) -> TimeoutAction: ...

    @property
    def waiting(self) -> Collection[Q_co]: ...

    @property
    def delayed(self) -> Collection[Q_co]:
        """Those behind the others because their timeout has passed."""


@dataclass(frozen=True, slots=True)
class BatchRules:
    """What a batch may be.  `max_batch_size` 1 means that requests are never merged."""

    max_batch_size: int = 1
    preferred: frozenset[int] = frozenset()
    delay_seconds: float = 0.0
    keep_order: bool = False

    @property
    def enough(self) -> int:
        """The least batch size that is sent without delay."""
        return min(self.preferred, default=self.max_batch_size)


class Refusal(Enum):
    """Why a request will never be executed."""

    GONE = "gone"
    """Its caller left."""
    DEADLINE = "deadline"
    """Its caller's deadline has passed."""
    TIMEOUT = "timeout"
    """It waited for longer than its queue policy allows."""


@dataclass(slots=True)
class Decision(Generic[Q]):
    """What to do: batches to execute, one on each free instance, and requests to refuse or put behind.

    `look_again_at` is when the next batch will be due that is not yet.
    """

    batches: list[list[Q]] = field(default_factory=list)
    refused: list[tuple[Q, Refusal]] = field(default_factory=list)
    delayed: list[Q] = field(default_factory=list)
    look_again_at: float | None = None


def decide(queue: Sequence[Level[Q]], free_instances: int, rules: BatchRules, now: float) -> Decision[Q]:
    """What to do with the queue, whose levels come highest priority first.

    A batch is due when it has a preferred size, when nothing more fits into it, or when its oldest request
    has waited for `delay_seconds`.  The queue is looked at as far as needed: what lies beyond may be late or
    gone without being named.
    """
    decision: Decision[Q] = Decision()
    if free_instances < 1:
        return decision
    if rules.max_batch_size == 1:
        decision.batches = [[entry] for entry in islice(_alive(queue, now, decision), free_instances)]
        return decision
    kept: set[Hashable] = set()  # shapes of which some wait, so that later ones have to as well
    for group in _groups(_alive(queue, now, decision), free_instances, rules):
        shape = group.entries[0].shape
        if shape in kept:
            continue
        count, due_at = group.due(rules, now)
        if count:
            decision.batches.append(group.entries[:count])
            if len(decision.batches) == free_instances:
                return decision
        elif decision.look_again_at is None or due_at < decision.look_again_at:
            decision.look_again_at = due_at
        if count < len(group.entries):
            if rules.keep_order:
                break
            kept.add(shape)
    return decision


def _alive(queue: Sequence[Level[Q]], now: float, decision: Decision[Q]) -> Iterator[Q]:
    """The requests that may be executed, in order; what becomes of the others goes into the decision."""
    for level in queue:
        late: list[Q] = []
        for entry in level.waiting:
            refusal = _refusal(entry, now)
            if refusal is not None:
                decision.refused.append((entry, refusal))
            elif entry.timeout_at is None or now < entry.timeout_at:
                yield entry
            elif level.timeout_action is TimeoutAction.REJECT:
                decision.refused.append((entry, Refusal.TIMEOUT))
            else:
                decision.delayed.append(entry)
                late.append(entry)
        for entries in (level.delayed, late):
            for entry in entries:
                refusal = _refusal(entry, now)
                if refusal is None:
                    yield entry
                elif entries is not late:
                    decision.refused.append((entry, refusal))


def places(rows: int) -> int:
    """How much of a batch a request takes; one without rows takes a place, so that requests are bounded too."""
    return max(1, rows)


def _refusal(entry: Queued, now: float) -> Refusal | None:
    if entry.gone:
        return Refusal.GONE
    if entry.deadline is not None and now >= entry.deadline:
        return Refusal.DEADLINE
    return None


class _Group(Generic[Q]):
    """Requests of one shape that fit into one batch; `closed` once no further one can join."""

    __slots__ = ("closed", "entries", "rows")

    def __init__(self) -> None:
        self.entries: list[Q] = []
        self.rows = 0
        self.closed = False

    def takes(self, entry: Q, rules: BatchRules) -> bool:
        return not self.closed and self.rows + places(entry.rows) <= rules.max_batch_size

    def add(self, entry: Q) -> None:
        self.entries.append(entry)
        self.rows += places(entry.rows)

    def due(self, rules: BatchRules, now: float) -> tuple[int, float]:
        """How many of the first entries to execute now, 0 for none, and when all are due at the latest."""
        if rules.delay_seconds:
            due_at = min(entry.arrived for entry in self.entries) + rules.delay_seconds
            late = now >= due_at
        else:
            due_at, late = now, False
        if rules.preferred and not late and self.rows >= rules.enough:
            best = rows = 0
            for count, entry in enumerate(self.entries, 1):
                rows += places(entry.rows)
                if rows in rules.preferred:
                    best = count
            if best:
                return best, due_at
        largest = max(rules.preferred, default=rules.max_batch_size)
        now_or_never = late or not rules.delay_seconds or self.closed or self.rows >= largest
        return (len(self.entries) if now_or_never else 0), due_at


def _groups(entries: Iterator[Q], free_instances: int, rules: BatchRules) -> list[_Group[Q]]:
    """The batches that the first entries could make, in the order of their first entries."""
    groups: list[_Group[Q]] = []
    growing: dict[Hashable, _Group[Q]] = {}
    closed = 0
    for entry in islice(entries, free_instances * rules.max_batch_size + LOOK_AHEAD):
        group = growing.get(entry.shape)
        if group is None or not group.takes(entry, rules):
            if rules.keep_order and groups:
                group = groups[-1]
            if group is not None and not group.closed:  # the next of its kind may not overtake this one
                group.closed = True
                closed += 1
            if len(groups) >= free_instances and (rules.keep_order or not rules.delay_seconds):
                if rules.keep_order or closed == len(groups):
                    break
                continue
            group = growing[entry.shape] = _Group()
            groups.append(group)
        group.add(entry)
        if group.rows >= rules.max_batch_size:
            group.closed = True
            closed += 1
        if closed >= free_instances and closed == len(groups):
            break
    return groups
