"""Reads access log lines in the Combined format, strictly: what does not match is a fault."""

import re
from dataclasses import dataclass

# A quoted field holds printable ASCII but for the quote and the backslash, which, like all else, are written \xHH.
_FIELD = r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\x[0-9a-f]{2})*)"'
LINE = re.compile(
    r"(-|[0-9a-f.:]+) - - \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "
    rf"{_FIELD} (\d{{3}}) (\d+) {_FIELD} {_FIELD}"
)


@dataclass(frozen=True)
class Line:
    client: str
    time: str
    request: str
    status: int
    size_bytes: int
    referer: str
    user_agent: str


def parse(text: str) -> list[Line]:
    """The lines of a log. AssertionError: one is not whole, or not in the format."""
    assert text == "" or text.endswith("\n"), f"an unfinished line: {text[-200:]!r}"
    lines = []
    for line in text.split("\n")[:-1]:
        found = LINE.fullmatch(line)
        assert found, f"not in the Combined format: {line!r}"
        client, time, request, status, size_bytes, referer, user_agent = found.groups()
        lines.append(Line(client, time, request, int(status), int(size_bytes), referer, user_agent))
    return lines
