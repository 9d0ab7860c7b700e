"""The trace and log settings of this process, as V2's extensions show and change them.

Logs go to standard error in the form that was chosen at start; which levels are let through can be changed.  No
traces are written, so the trace level is OFF and stays so: what would have no effect is refused, not swallowed.

Sources: Triton's extension_logging and extension_trace.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from oip.errors import InvalidArgument, NotFound, Unsupported
from oip.server.extensions import LogValue, TraceValue

TRACE_OFF: Mapping[str, TraceValue] = {
    "trace_file": ("",),
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_mode": ("triton",),
}


class NoTracing:
    """Implements `extensions.TraceSettings` where nothing is traced."""

    def __init__(self, model_names: Callable[[], Collection[str]]) -> None:
        self._model_names = model_names

    def trace_settings(self, model_name: str = "") -> Mapping[str, TraceValue]:
        """See `TraceSettings.trace_settings`."""
        if model_name and model_name not in self._model_names():
            raise NotFound(f"Request for unknown model: '{model_name}' is not found")
        return TRACE_OFF

    def update_trace_settings(self, changes: Mapping[str, TraceValue | None], model_name: str = "") -> None:
        """See `TraceSettings.update_trace_settings`."""
        current = self.trace_settings(model_name)
        for name, value in changes.items():
            if name not in current:
                raise InvalidArgument(f"unknown trace setting '{name[:40]}'; there are {', '.join(current)}")
            if value and value != current[name]:
                raise Unsupported(
                    f"trace setting '{name}' stays {current[name][0]!r}: no traces are written here; read "
                    "Server-Timing of the answers, or the metrics"
                )


@dataclass(frozen=True, slots=True)
class LogFlags:
    """Which messages are let through; `verbose` above 0 lets those for debugging through."""

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose: int = 0

    def lets_through(self, level: int) -> bool:
        """Whether a message of a level of `logging` is written."""
        if level >= logging.ERROR:
            return self.error
        if level >= logging.WARNING:
            return self.warning
        return self.info if level >= logging.INFO else self.verbose > 0

    @property
    def lowest(self) -> int:
        """The lowest level that may be written; what is below need not even be made."""
        if self.verbose > 0:
            return logging.DEBUG
        wanted = ((self.info, logging.INFO), (self.warning, logging.WARNING), (self.error, logging.ERROR))
        return min((level for flag, level in wanted if flag), default=logging.CRITICAL + 1)


class ProcessLogSettings:
    """Implements `extensions.LogSettings` on a logger, the process's root as a rule."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger()
        lowest = self._logger.level
        self._flags = LogFlags(
            info=lowest <= logging.INFO,
            warning=lowest <= logging.WARNING,
            error=lowest <= logging.ERROR,
            verbose=int(lowest <= logging.DEBUG),
        )
        self._filtered: list[logging.Handler] = []

    def log_settings(self) -> Mapping[str, LogValue]:
        """See `LogSettings.log_settings`."""
        return {
            "log_file": "",
            "log_info": self._flags.info,
            "log_warning": self._flags.warning,
            "log_error": self._flags.error,
            "log_verbose_level": self._flags.verbose,
            "log_format": "default",
        }

    def update_log_settings(self, changes: Mapping[str, LogValue]) -> None:
        """See `LogSettings.update_log_settings`."""
        self._flags = changed(self._flags, changes, self.log_settings())
        self._logger.setLevel(self._flags.lowest)
        for handler in self._logger.handlers:
            if handler not in self._filtered:
                handler.addFilter(self._passes)
                self._filtered.append(handler)

    def _passes(self, record: logging.LogRecord) -> bool:
        return self._flags.lets_through(record.levelno)


def changed(flags: LogFlags, changes: Mapping[str, LogValue], current: Mapping[str, LogValue]) -> LogFlags:
    """The flags after some changes.

    Raises:
        InvalidArgument: no such setting, or a value that it cannot have.
        Unsupported: a setting that cannot be changed.
    """
    for name, value in changes.items():
        match name:
            case "log_info" | "log_warning" | "log_error":
                if not isinstance(value, bool):
                    raise InvalidArgument(f"log setting '{name}' must be true or false, got {value!r:.40}")
                flags = replace(flags, **{name.removeprefix("log_"): value})
            case "log_verbose_level":
                if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
                    raise InvalidArgument(f"log setting '{name}' must be a number from 0, got {value!r:.40}")
                flags = replace(flags, verbose=value)
            case "log_file" | "log_format":
                if value != current[name]:
                    raise Unsupported(
                        f"log setting '{name}' cannot be changed while the server runs: logs go to standard error in "
                        "the form that --log-format chose"
                    )
            case _:
                raise InvalidArgument(f"unknown log setting '{name[:40]}'; there are {', '.join(current)}")
    return flags
