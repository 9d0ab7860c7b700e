r"""What to do about a model: pure decisions of loading, reloading and polling.

    a load finds nothing new              -> nothing is done
    the new versions are ready            -> they serve, the old ones end
    one of them failed, old ones serve    -> the old ones stay, the new ones end
    one of them failed, none serves       -> those that are ready serve, the load is refused with the reasons

Knows no file, no thread and no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

ControlMode = Literal["none", "poll", "explicit"]

Fingerprint = frozenset[tuple[str, int, int, int]]
"""Every file of a model's folder: path in it, time of change (nanoseconds), size, inode."""


@dataclass(frozen=True, slots=True)
class Source:
    """What versions were loaded from; equal sources need no reload."""

    fingerprint: Fingerprint
    override: int = 0
    """Which of the overrides that were ever given; 0 for none."""


class Outcome(Enum):
    """What becomes of the old and the new versions of a model once the new ones have been tried."""

    REPLACE = "replace"
    KEEP = "keep"


def outcome(failed: int, *, serves: bool) -> Outcome:
    """After a load of which `failed` versions were not ready, of a model that serves already or does not."""
    return Outcome.KEEP if failed and serves else Outcome.REPLACE


def needs_load(serving: Source | None, found: Source) -> bool:
    """Whether a load has anything to do; `serving` is None where no version serves."""
    return serving != found


def control_refusal(mode: ControlMode) -> str | None:
    """Why clients may not load and unload in a mode; None where they may.  Begins as Triton's sentence does."""
    match mode:
        case "explicit":
            return None
        case "poll":
            why = "explicit model load / unload is not allowed if polling is enabled"
        case _:
            why = "explicit model load / unload is not allowed in model control mode none"
    return f"{why}; start the server with --model-control-mode explicit"


@dataclass(frozen=True, slots=True)
class PollPlan:
    """What a look at the repository asks for, by model name."""

    load: tuple[str, ...] = ()
    unload: tuple[str, ...] = ()
    unsettled: tuple[str, ...] = ()
    """Changed, but not the same in two looks in a row: somebody may still be writing."""


def poll_plan(
    acted: Mapping[str, Fingerprint], before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]
) -> PollPlan:
    """What has changed and settled.

    Args:
        acted: what each model was last loaded from, or tried to be.
        before: the last look.
        now: this look.
    """
    changed = [name for name in sorted(now) if now[name] != acted.get(name)]
    gone = [name for name in sorted(acted) if name not in now]
    return PollPlan(
        load=tuple(name for name in changed if now[name] == before.get(name)),
        unload=tuple(name for name in gone if name not in before),
        unsettled=tuple(
            [name for name in changed if now[name] != before.get(name)] + [name for name in gone if name in before]
        ),
    )


SETTLING_SECONDS = 1.0


def seconds_to_next_look(plan: PollPlan, poll_seconds: float) -> float:
    """Soon where something is unsettled, else after the interval."""
    return min(SETTLING_SECONDS, poll_seconds) if plan.unsettled else poll_seconds
