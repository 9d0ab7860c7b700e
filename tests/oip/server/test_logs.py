"""Log lines as machines and people read them."""

import json
import logging
import sys

import pytest

from oip.server import logs


@pytest.fixture(autouse=True)
def root():
    """The root logger's handlers and level, put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines(capsys):
    logs.configure("info", "json")
    logger = logging.getLogger("tandem.test")
    logger.debug("unseen")
    logger.info("a %s\nof two lines", "message", extra={"request_id": "7", "status": 200, "secret": "x"})
    try:
        raise ValueError("reason")
    except ValueError:
        logger.exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "tandem.test",
        "message": "a message\nof two lines",
        "request_id": "7",
        "status": 200,
    }
    assert (second["level"], second["message"]) == ("error", "failed")
    assert "ValueError: reason" in second["exception"]


@pytest.mark.parametrize(
    ("form", "terminal", "no_color", "starts"),
    [
        ("auto", False, False, "{"),
        ("auto", True, False, "\033[33m"),
        ("auto", True, True, ""),
        ("text", False, False, ""),
        ("text", True, False, "\033[33m"),
        ("json", True, False, "{"),
    ],
)
def test_the_form_fits_the_reader(capsys, monkeypatch, form, terminal, no_color, starts):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    logs.configure("warning", form)
    logging.getLogger("tandem.test").info("unseen")
    logging.getLogger("tandem.test").warning("seen")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(starts)
    assert "seen" in line
    assert ("\033" in line) is starts.startswith("\033")
