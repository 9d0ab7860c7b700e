"""Addresses as people write them."""

import pytest

from oip.client.address import Address


@pytest.mark.parametrize(
    ("text", "tls", "base_url", "socket"),
    [
        ("localhost:8000", False, "http://localhost:8000", None),
        ("localhost", False, "http://localhost", None),
        ("localhost:8000", True, "https://localhost:8000", None),
        ("predictor.ns.svc.cluster.local", False, "http://predictor.ns.svc.cluster.local", None),
        ("http://host:1", True, "http://host:1", None),
        ("https://host", False, "https://host", None),
        ("http://host:8000/", False, "http://host:8000", None),
        ("HTTP://Host:8000", False, "http://host:8000", None),
        ("127.0.0.1:65535", False, "http://127.0.0.1:65535", None),
        ("[::1]:8000", False, "http://[::1]:8000", None),
        ("http://[::1]", False, "http://[::1]", None),
        ("unix:/run/p.sock", False, "http://localhost", "/run/p.sock"),
        ("unix:///run/p.sock", False, "http://localhost", "/run/p.sock"),
        ("unix:p.sock", True, "http://localhost", "p.sock"),
    ],
)
def test_parse(text, tls, base_url, socket):
    address = Address.parse(text, tls=tls)
    assert (address.base_url, address.unix_socket) == (base_url, socket)
    assert str(address) == (f"unix:{socket}" if socket else base_url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":8000",
        "http://",
        "ftp://host",
        "grpc://host:8001",
        "host:port",
        "host:65536",
        "host:-1",
        "http://host/v2",
        "host:8000/v2",
        "host?x=1",
        "host#x",
        "user:secret@host",
        "http://user@host:1",
        "a b:80",
        "::1",
        "http://[::1",
        "unix:",
        "unix://",
    ],
)
def test_what_is_no_address(text):
    with pytest.raises(ValueError):
        Address.parse(text)
