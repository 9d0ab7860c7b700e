"""What `Accept-Encoding` asks for, and that clients can read what they get."""

import gzip
import zlib

import pytest

from oip.server.compression import WORTH_IT, answer_coding, compress


@pytest.mark.parametrize(
    ("accept", "size", "coding"),
    [
        ("", 10_000, ""),
        ("gzip", 0, ""),
        ("gzip", 1, "gzip"),
        ("deflate", 1, "deflate"),
        ("GZIP", 1, "gzip"),
        ("x-gzip", 1, "gzip"),
        ("*", 1, "gzip"),
        ("br", 10_000, ""),
        ("identity", 10_000, ""),
        ("gzip;q=0", 10_000, ""),
        ("gzip; q=0.5", 1, "gzip"),
        ("gzip;q=nonsense", 10_000, ""),
        ("gzip, deflate", WORTH_IT - 1, ""),  # a library's default, not a wish
        ("gzip, deflate", WORTH_IT, "gzip"),
        ("deflate, gzip", WORTH_IT, "deflate"),
        ("br, gzip, deflate", WORTH_IT, "gzip"),
        ("gzip;q=0.2, deflate;q=0.9", WORTH_IT, "deflate"),
        ("gzip;q=0.2, identity", WORTH_IT, ""),
        ("," * 5000, 10_000, ""),
    ],
)
def test_the_coding(accept, size, coding):
    assert answer_coding(accept, size) == coding


@pytest.mark.parametrize(("coding", "decompress"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_what_was_compressed_comes_back(coding, decompress):
    content = bytes(range(256)) * 100
    packed = compress(content, coding)
    assert decompress(packed) == content
    assert len(packed) < len(content)
