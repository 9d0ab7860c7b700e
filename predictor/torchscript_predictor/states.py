r"""The states of a model version, and what an operator is told of them.

    UNKNOWN -> LOADING -> READY -> UNLOADING -> UNAVAILABLE
                       \-> UNAVAILABLE

Values alone.
"""

from dataclasses import dataclass
from enum import Enum


class ModelState(Enum):
    """Triton's model states; the values are what the repository index shows."""

    UNKNOWN = "UNKNOWN"
    """Not looked at yet."""
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    """Takes no new requests, finishes those it has."""
    UNAVAILABLE = "UNAVAILABLE"
    """Not served; the reason says why."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One line of the index: a model version, or a model that has none ("-").

    `intra_op_threads` are those of each of the `instances`.
    """

    name: str
    version: str
    state: ModelState
    reason: str = ""
    load_seconds: float = 0.0
    instances: int = 0
    intra_op_threads: int = 0
