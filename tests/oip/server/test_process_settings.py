"""Trace and log settings: what can be changed is, what cannot is refused."""

import logging

import pytest

from oip.errors import InvalidArgument, NotFound, Unsupported
from oip.server.process_settings import TRACE_OFF, LogFlags, NoTracing, ProcessLogSettings


@pytest.fixture
def logger():
    logger = logging.Logger("test", logging.INFO)
    handler = Kept()
    logger.addHandler(handler)
    return logger


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.levels = []

    def emit(self, record):
        self.levels.append(record.levelname)


def written(logger):
    kept = logger.handlers[0].levels
    kept.clear()
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, "x")
    return "".join(name[0] for name in kept)


@pytest.mark.parametrize(
    ("changes", "letters"),
    [
        ({}, "IWEC"),
        ({"log_verbose_level": 1}, "DIWEC"),
        ({"log_info": False}, "WEC"),
        ({"log_warning": False}, "IEC"),
        ({"log_error": False}, "IW"),
        ({"log_info": False, "log_warning": False, "log_error": False}, ""),
        ({"log_info": False, "log_verbose_level": 2}, "DWEC"),
        ({"log_file": "", "log_format": "default"}, "IWEC"),
    ],
)
def test_levels_are_switched_one_by_one(logger, changes, letters):
    settings = ProcessLogSettings(logger)
    settings.update_log_settings(changes)
    assert written(logger) == letters
    assert {**settings.log_settings(), **changes} == settings.log_settings()


@pytest.mark.parametrize(
    ("level", "flags"),
    [
        (logging.DEBUG, LogFlags(verbose=1)),
        (logging.INFO, LogFlags()),
        (logging.WARNING, LogFlags(info=False)),
        (logging.ERROR, LogFlags(info=False, warning=False)),
    ],
)
def test_the_level_at_start_is_shown(level, flags):
    shown = ProcessLogSettings(logging.Logger("test", level)).log_settings()
    assert (shown["log_info"], shown["log_warning"], shown["log_error"]) == (flags.info, flags.warning, flags.error)
    assert shown["log_verbose_level"] == flags.verbose


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"log_info": 1}, InvalidArgument, "true or false"),
        ({"log_verbose_level": True}, InvalidArgument, "a number from 0"),
        ({"log_verbose_level": -1}, InvalidArgument, "a number from 0"),
        ({"log_verbose_level": 2**31}, InvalidArgument, "a number from 0"),
        ({"log_infos": True}, InvalidArgument, "unknown log setting 'log_infos'"),
        ({"log_file": "x"}, Unsupported, "'log_file' cannot be changed"),
        ({"log_format": "ISO8601"}, Unsupported, "'log_format' cannot be changed"),
    ],
)
def test_what_is_refused_changes_nothing(logger, changes, error, message):
    settings = ProcessLogSettings(logger)
    before = settings.log_settings()
    with pytest.raises(error, match=message):
        settings.update_log_settings({"log_error": False, **changes})
    assert settings.log_settings() == before
    assert written(logger) == "IWEC"


def test_tracing_is_off_and_stays_off():
    tracing = NoTracing(lambda: ["m"])
    tracing.update_trace_settings({"trace_level": ("OFF",), "trace_rate": None, "trace_count": ("-1",)}, "m")
    assert tracing.trace_settings() == tracing.trace_settings("m") == TRACE_OFF
    for changes in ({"trace_level": ("TIMESTAMPS",)}, {"trace_rate": ("1",)}, {"trace_file": ("x",)}):
        with pytest.raises(Unsupported, match="no traces are written"):
            tracing.update_trace_settings(changes)
    with pytest.raises(InvalidArgument, match="unknown trace setting 'trace_levels'"):
        tracing.update_trace_settings({"trace_levels": ("OFF",)})
    with pytest.raises(NotFound, match="'nope' is not found"):
        tracing.trace_settings("nope")
