"""Where the time of one request went, as consecutive stages that add up to the total.

Knows no transport and no clock but the monotonic one.  The header is `Server-Timing` of the W3C,
durations in milliseconds.
"""

import time


class Stopwatch:
    """Consecutive stages of one request: each `lap` ends a stage and begins the next."""

    __slots__ = ("_last", "laps", "started")

    def __init__(self) -> None:
        self.started = self._last = time.perf_counter()
        self.laps: list[tuple[str, float, str]] = []

    def lap(self, stage: str) -> float:
        """End a stage that began with the last lap (or the start); returns its seconds."""
        now = time.perf_counter()
        seconds = now - self._last
        self._last = now
        self.laps.append((stage, seconds, ""))
        return seconds

    def describe(self, text: str) -> None:
        """Split the last lap further, in words for a reader."""
        stage, seconds, _ = self.laps[-1]
        self.laps[-1] = (stage, seconds, text)

    def record(self, stages: list[tuple[str, float]]) -> None:
        """Split the time since the last lap into stages that somebody else measured, in seconds.

        What they leave over goes to the last of them, so that the sum still is the total.
        """
        now = time.perf_counter()
        left = now - self._last
        self._last = now
        for stage, seconds in stages[:-1]:
            seconds = min(seconds, left)
            left -= seconds
            self.laps.append((stage, seconds, ""))
        self.laps.append((stages[-1][0], left, ""))

    def header(self) -> str:
        """The value of a `Server-Timing` header: every stage, then `total`, their sum."""
        parts = []
        for stage, seconds, description in self.laps:
            part = f"{stage};dur={seconds * 1000:.3f}"
            parts.append(f'{part};desc="{description}"' if description else part)
        parts.append(f"total;dur={sum(seconds for _, seconds, _ in self.laps) * 1000:.3f}")
        return ", ".join(parts)


def parse_header(header: str) -> dict[str, tuple[float, str]]:
    """The stages of a `Server-Timing` header as {name: (milliseconds, description)}; oddities are skipped."""
    stages = {}
    for part in header.split(", "):
        name, *attributes = part.split(";")
        values = dict(attribute.split("=", 1) for attribute in attributes if "=" in attribute)
        try:
            stages[name.strip()] = (float(values["dur"]), values.get("desc", "").strip('"'))
        except (KeyError, ValueError):
            continue
    return stages
