"""Where the time of one request went, as consecutive stages that add up to the total.

Knows no transport and no clock but the monotonic one.  The header is `Server-Timing` of the W3C,
durations in milliseconds.
"""

import math
import re
import time

_QUOTED = r'"(?:[^"\\]++|\\.)*+"?'
_BETWEEN_COMMAS = re.compile(rf'(?:[^,"]++|{_QUOTED})++')
_PLAIN_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_BETWEEN_SEMICOLONS = re.compile(rf'(?:[^;"]++|{_QUOTED})++')


PLAIN_HEADER = 1000
"""Characters of a header that is worth reading the quick way."""


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
            seconds = max(0.0, min(seconds, left))
            left -= seconds
            self.laps.append((stage, seconds, ""))
        self.laps.append((stages[-1][0], left, ""))

    def header(self) -> str:
        """The value of a `Server-Timing` header: every stage, then `total`, the sum of what is written."""
        parts = []
        total = 0.0
        for stage, seconds, description in self.laps:
            milliseconds = round(seconds * 1000, 3)
            total += milliseconds
            part = f"{stage};dur={milliseconds:.3f}"
            parts.append(f"{part};desc={_quoted(description)}" if description else part)
        parts.append(f"total;dur={total:.3f}")
        return ", ".join(parts)


def parse_header(header: str) -> dict[str, tuple[float, str]]:
    """The stages of a `Server-Timing` header as {name: (milliseconds, description)}; oddities are skipped."""
    stages = {}
    if '"' not in header and len(header) <= PLAIN_HEADER:  # as a predictor of ours writes it
        for part in header.split(","):
            name, found, duration = part.partition(";dur=")
            if found and _PLAIN_NUMBER.fullmatch(duration) and name.strip() and ";" not in name:
                stages[name.strip()] = (float(duration), "")
            elif part.strip():
                break
        else:
            return stages
        stages.clear()
    for part in _BETWEEN_COMMAS.findall(header):
        name, *attributes = _BETWEEN_SEMICOLONS.findall(part) or [""]
        values = {key.strip().lower(): value.strip() for key, _, value in (text.partition("=") for text in attributes)}
        try:
            milliseconds = float(values["dur"])
        except (KeyError, ValueError):
            continue
        if name.strip() and math.isfinite(milliseconds):
            stages[name.strip()] = (milliseconds, _unquoted(values.get("desc", "")))
    return stages


def _quoted(text: str) -> str:
    """A quoted string of HTTP; what a header cannot hold (line breaks above all) becomes a space."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    printable = re.sub(r"[^\x20-\x7e]", " ", text)
    return '"' + re.sub(r'(["\\])', r"\\\1", printable) + '"'


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:].removesuffix('"')) if text.startswith('"') else text
