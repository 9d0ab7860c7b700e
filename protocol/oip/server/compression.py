"""Answers in the form that `Accept-Encoding` asks for: gzip, deflate (zlib's form, as HTTP means it) or as they are.

Knows no transport object: header in, decision out; bytes in, bytes out.

Source: RFC 9110, section 12.5.3.
"""

import re
import zlib
from functools import lru_cache
from typing import Literal

Coding = Literal["", "gzip", "deflate"]

WORTH_IT = 1024
"""Bytes.  Libraries offer several codings unasked; a smaller answer is only compressed for who names one coding."""

LEVEL = 1
"""Of zlib.  Tensors hardly shrink further, and time is what is scarce."""

_WINDOW = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_QUALITY = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def answer_coding(accept: str, size: int) -> Coding:
    """How to send an answer of `size` bytes to a caller with that `Accept-Encoding`."""
    if not accept or not size:
        return ""
    coding, several = _preferred(accept[:200])
    return "" if several and size < WORTH_IT else coding


@lru_cache(64)
def _preferred(accept: str) -> tuple[Coding, bool]:
    """The coding liked best of those we have, the first of equals; and whether others were offered too."""
    best: Coding = ""
    best_quality = 0.0
    offers = [offer for offer in accept.split(",") if offer.strip()]
    for offer in offers:
        name, _, attributes = offer.partition(";")
        given = _QUALITY.fullmatch(attributes.strip()) if attributes.strip() else None
        if attributes.strip() and given is None:
            continue
        quality = float(given[1]) if given else 1.0
        match name.strip().lower():
            case "gzip" | "x-gzip" | "*":
                coding: Coding = "gzip"
            case "deflate":
                coding = "deflate"
            case "identity":
                coding = ""
            case _:
                continue
        if quality > best_quality:
            best, best_quality = coding, quality
    return best, len(offers) > 1


def compress(content: bytes, coding: Literal["gzip", "deflate"]) -> bytes:
    """The bytes in a coding."""
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return compressor.compress(content) + compressor.flush()
