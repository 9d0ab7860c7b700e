"""Where each field of a `config.pbtxt` stands, so that an error can name its line.

protobuf's text_format forgets positions once it has parsed.  This scanner walks a text that
text_format has already accepted, so it need not be strict: what it does not understand has no place.
Knows no field by name.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

Path = tuple[str | int, ...]
"""Field names and indices in turn, as in ("input", 0, "dims", 1)."""

_TOKEN = re.compile(
    r"""(?P<blank>\s+|\#[^\n]*)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<mark>[{}<>\[\]:,;])
      | (?P<word>[^\s{}<>\[\]:,;"'#]+)""",
    re.VERBOSE,
)
_STRING = '"'


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field's value begins (counted from 1) and its text, without quotes, if it is a scalar."""

    line: int
    column: int
    text: str


class Places:
    """The places of all fields of one text."""

    def __init__(self, text: str) -> None:
        self._places: dict[Path, Place] = {}
        tokens = _Tokens(text)
        while tokens:
            self._message(tokens, ())

    def line(self, *path: str | int) -> int | None:
        """The line of a field, else of the nearest field around it; None if there is none.

        An index after a name may be left out where it is 0.
        """
        full = _with_indices(path)
        while full:
            if full in self._places:
                return self._places[full].line
            full = full[:-2]
        return None

    def entries(self, name: str, key: str) -> list[int]:
        """The indices of the entries of the map field `name` that have this key; the last one counts."""
        return [
            int(path[1])
            for path, place in self._places.items()
            if len(path) == 4 and path[0] == name and path[2] == "key" and place.text == key
        ]

    def _message(self, tokens: "_Tokens", path: Path) -> None:
        counts: Counter[str] = Counter()
        while tokens and tokens.peek not in ("}", ">"):
            name = tokens.take().text
            if name in (",", ";"):
                continue
            if tokens.peek == ":":
                tokens.take()
            if tokens.peek == "[":
                tokens.take()
                while tokens and tokens.peek != "]":
                    if tokens.peek == ",":
                        tokens.take()
                        continue
                    self._value(tokens, (*path, name, counts[name]))
                    counts[name] += 1
                tokens.take()
            else:
                self._value(tokens, (*path, name, counts[name]))
                counts[name] += 1
        tokens.take()

    def _value(self, tokens: "_Tokens", path: Path) -> None:
        kind = tokens.peek
        self._places[path] = tokens.take()
        if kind in ("{", "<"):
            self._message(tokens, path)
        while kind == _STRING and tokens.peek == _STRING:  # neighbouring strings are one value
            tokens.take()


class _Tokens:
    """The tokens of a text, one ahead."""

    def __init__(self, text: str) -> None:
        self._rest = _scan(text)
        self._next = next(self._rest, None)

    def __bool__(self) -> bool:
        return self._next is not None

    @property
    def peek(self) -> str:
        """The next token; a quote for any string; nothing past the end."""
        return self._next[0] if self._next else ""

    def take(self) -> Place:
        _, place = self._next or ("", Place(0, 0, ""))
        self._next = next(self._rest, None)
        return place


def _scan(text: str) -> Iterator[tuple[str, Place]]:
    line, line_start = 1, 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        column = match.start() - line_start + 1
        if match.lastgroup == "string":
            yield _STRING, Place(line, column, token[1:-1])
        elif match.lastgroup != "blank":
            yield token, Place(line, column, token)
        if "\n" in token:
            line += token.count("\n")
            line_start = match.start() + token.rindex("\n") + 1


def _with_indices(path: tuple[str | int, ...]) -> Path:
    full: list[str | int] = []
    for position, part in enumerate(path):
        full.append(part)
        if isinstance(part, str) and not (position + 1 < len(path) and isinstance(path[position + 1], int)):
            full.append(0)
    return tuple(full)
