"""The readable part of torch's messages."""

import pytest

from torchscript_predictor.backends.failure import MAX_LENGTH, reason

TORCHSCRIPT = """The following operation failed in the TorchScript interpreter.
Traceback of TorchScript, serialized code (most recent call last):
  File "code/__torch__.py", line 16, in forward
      ops.prim.RaiseException("AssertionError: negative input")
      ~~~~~~~~~~~~~~~~~~~~~~~ <--- HERE

Traceback of TorchScript, original code (most recent call last):
  File "/home/someone/export.py", line 9, in forward
        assert bool((x>=0).all()), "negative input"
        ~~~~~~~~~~~~~~~~~~~~~~~~~ <--- HERE
RuntimeError: {what}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TORCHSCRIPT.format(what="AssertionError: negative input"), "AssertionError: negative input"),
        (
            TORCHSCRIPT.format(what="mat1 and mat2 shapes cannot be multiplied (1x5 and 4x3)"),
            "mat1 and mat2 shapes cannot be multiplied (1x5 and 4x3)",
        ),
        ("plain", "plain"),
        ("two\nlines", "two lines"),
        ("", "ValueError"),
        ("Traceback of something", "ValueError"),
        ("cannot open /srv/models/a.pt now", "cannot open <path> now"),
        ("ratio 1/2 and n/a and a/b/c", "ratio 1/2 and n/a and a/b/c"),
        (
            "PytorchStreamReader failed finding central directory. This is an internal miniz error. If you are",
            "PytorchStreamReader failed finding central directory.",
        ),
        ("bad thing\nException raised from foo at ../c10/x.cpp:12 (most recent call first):\nframe #0", "bad thing"),
        ("x" * 9999, "x" * MAX_LENGTH),
    ],
)
def test_reason(text, expected):
    assert reason(ValueError(text)) == expected
