"""Memory that a model has given up, back to the operating system.

Knows no model.  glibc keeps what was freed for the next allocation; a server that has unloaded a model may
never make it.
"""

import ctypes
import gc
from collections.abc import Callable
from functools import cache


def give_memory_back() -> None:
    """Collect what only cycles hold, then return free pages.  Takes milliseconds; not for the event loop's thread."""
    gc.collect()
    _trim()


def keep_what_is_imported() -> None:
    """Let later collections pass over everything that is in memory now: modules, above all torch's, never go away.

    A collection then takes a millisecond, not a tenth of a second in which nothing else runs.
    """
    gc.collect()
    gc.freeze()


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # no glibc
        return None
    return trim


def _trim() -> None:
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
