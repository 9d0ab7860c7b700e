"""How the requests for a model wait and which are merged, as its configuration says.

Values alone; the words and their meaning are Triton's (`ModelDynamicBatching` and `ModelQueuePolicy` of
model_config.proto).
"""

from dataclasses import dataclass
from enum import Enum


class TimeoutAction(Enum):
    """What becomes of a request that has waited for longer than its timeout."""

    REJECT = 0
    """It is refused."""
    DELAY = 1
    """It goes behind all requests of its own and of higher priority that are in time."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How long and how many requests of one priority level wait; 0 means without limit.

    Where `allow_timeout_override`, a request may bring a shorter timeout of its own.
    """

    timeout_action: TimeoutAction = TimeoutAction.REJECT
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0

    def timeout_seconds(self, asked_microseconds: int) -> float | None:
        """The timeout of a request that asks for one (0: it does not); None for no timeout."""
        timeouts = [self.default_timeout_microseconds]
        if self.allow_timeout_override:
            timeouts.append(asked_microseconds)
        return min((timeout / 1e6 for timeout in timeouts if timeout), default=None)


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """How requests are merged.

    `queue_policies` has one for each priority level, the highest first: level 1 is at index 0.
    """

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False
    default_priority_level: int = 1
    queue_policies: tuple[QueuePolicy, ...] = (QueuePolicy(),)

    def level(self, asked: int) -> int:
        """The level of a request that asks for one; 0, or one that there is not, means the default."""
        return asked if 1 <= asked <= len(self.queue_policies) else self.default_priority_level
