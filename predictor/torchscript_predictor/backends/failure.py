"""The readable part of what torch raises: its last reason, without traceback, source and paths.

Pure text.  torch puts whole tracebacks, C++ ones too, into its messages; a caller may see none of that.
"""

import re

MAX_LENGTH = 500

_REASON = re.compile(r"^(?:[\w.]*(?:Error|Exception)): ?", re.MULTILINE)
_PATH = re.compile(r"(?<![\w.:/])(?:/[\w.+@-]+){2,}/?")
_NOISE = (
    "Exception raised from",  # the C++ backtrace and all after it
    "This is an internal miniz error",
    "Traceback",
)


def reason(error: BaseException) -> str:
    """One line that says what went wrong.  Never empty."""
    text = str(error)
    starts = [match.start() for match in _REASON.finditer(text)]
    if starts:
        # "RuntimeError: AssertionError: negative input" says more without its first word
        text = _REASON.sub("", text[starts[-1] :], count=1)
    elif "Traceback" in text:
        text = text.partition("Traceback")[0]
    for noise in _NOISE:
        text = text.partition(noise)[0]
    lines = [line.strip() for line in text.splitlines()]
    line = _PATH.sub("<path>", " ".join(line for line in lines if line and not _is_source_mark(line)))
    return line[:MAX_LENGTH] or type(error).__name__


def _is_source_mark(line: str) -> bool:
    """The ~~~~ <--- HERE under a line of source."""
    return "<--- HERE" in line or not line.strip("~^ ")
