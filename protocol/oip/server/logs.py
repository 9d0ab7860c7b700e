"""Log lines: JSON where a machine reads them, plain (coloured on a terminal) where a person does.

Knows no request.  Nothing here or elsewhere logs a payload.
"""

import json
import logging
import os
import sys
import time
from typing import Literal

_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31;1"}
_OWN_FIELDS = ("request_id", "method", "path", "status", "milliseconds", "model")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message and our own extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in _OWN_FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Time, level and message; the level in colour where the terminal has any."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        code = _COLOURS.get(record.levelname) if self._colour else None
        return f"\033[{code}m{line}\033[0m" if code else line


def configure(level: str, form: Literal["auto", "text", "json"]) -> None:
    """Send everything to standard error in the given form; `NO_COLOR` is respected."""
    terminal = sys.stderr.isatty()
    handler = logging.StreamHandler()
    if form == "json" or (form == "auto" and not terminal):
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter(colour=terminal and "NO_COLOR" not in os.environ))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
