"""Where a server is: `host:port`, `http(s)://host:port` or `unix:PATH`.

Pure parsing; knows no socket.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    """A base URL, and the Unix socket to reach it through, if any."""

    base_url: str
    unix_socket: str | None = None

    def __str__(self) -> str:
        return f"unix:{self.unix_socket}" if self.unix_socket else self.base_url

    @classmethod
    def parse(cls, text: str, *, tls: bool = False) -> "Address":
        """Read an address.  Without a port it is 80, or 443 with TLS: what a Kubernetes Service listens on.

        Raises:
            ValueError: it is none of the three forms.
        """
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")
            if not path:
                raise ValueError("unix: needs the path of a socket, as in unix:/run/tandem/predictor.sock")
            return cls("http://localhost", path)
        url = urlsplit(text if "://" in text else f"{'https' if tls else 'http'}://{text}")
        try:
            port = url.port
        except ValueError:
            raise ValueError(f"the port of {text!r} is no number between 0 and 65535") from None
        more_than_host = "@" in url.netloc or url.path.strip("/") or url.query or url.fragment
        blank = any(character.isspace() for character in url.netloc)
        if url.scheme not in ("http", "https") or not url.hostname or more_than_host or blank:
            raise ValueError(f"{text!r} is no address; use host:port, http://host:port or unix:PATH")
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        return cls(f"{url.scheme}://{host}" + (f":{port}" if port is not None else ""))
