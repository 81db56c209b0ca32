"""Listings: an HTML page for a folder of the root that has no index file.

The rules:

- A page shows what the engine would serve, and nothing else: files and folders that can be reached without leaving the
  root. Symbolic links out of it, dangling links, devices and sockets are left out.
- Hidden entries (their names begin with ".") are not shown, and hidden folders not listed (404).
- Names are bytes of any kind. In links they are percent-encoded (RFC 3986 section 2.1); as text they are UTF-8, with
  U+FFFD for what is not or cannot be shown.
- At most ``listing_entries_max`` entries are read, so a huge folder stalls nobody; the page says when it is not whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from .errors import HTTPError
from .values import format_size

if TYPE_CHECKING:
    from .cython_ext.messages import Batch, Request
    from .server import Server

__all__ = ["DirectoryListing", "Entry", "page", "read_entries"]

HEADERS = (
    ("Cache-Control", "no-cache"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ("X-Content-Type-Options", "nosniff"),
)

HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Index of {path}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ padding: 0.15rem 1rem 0.15rem 0; text-align: start; }}
td:first-child {{ overflow-wrap: anywhere; }}
td:nth-child(n + 2) {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
</style>
</head>
<body>
<h1>Index of {path}</h1>
<table>
<thead><tr><th scope="col">Name</th><th scope="col">Size</th><th scope="col">Changed (UTC)</th></tr></thead>
<tbody>
"""
UP = '<tr><td><a href="../">../</a></td><td></td><td></td></tr>\n'
TAIL = "</tbody>\n</table>\n{note}</body>\n</html>\n"
NOTE = "<p>There are more entries than are shown here.</p>\n"

#: openat2 (Linux 5.6) has this number on every architecture that Python runs on; neither os nor glibc 2.36 wraps it.
SYS_OPENAT2 = 437
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_BENEATH = 0x08


class OpenHow(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(folder: int, path: bytes, flags: int) -> int:
    """Opens `path` below the descriptor `folder`, following only links that stay below it. Raises OSError.

    It is the call with which the engine opens files, so a listing and the files that it shows are of one mind.
    """
    how = OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    fd = libc.syscall(
        ctypes.c_long(SYS_OPENAT2), ctypes.c_int(folder), ctypes.c_char_p(path), ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )  # fmt: skip
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(fd)


class Entry(NamedTuple):
    """One line of a listing."""

    name: bytes
    is_folder: bool
    size_bytes: int
    changed_s: float


def read_entries(root: int, folder: bytes, count_max: int) -> tuple[list[Entry], bool]:
    """The entries of `folder`, a path below the descriptor `root`: folders first, then by name.

    Also whether there are more than `count_max`, which are left out. Raises OSError.
    """
    found: list[Entry] = []
    is_whole = True
    fd = open_beneath(root, folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    try:
        with os.scandir(fd) as entries:
            for number, item in enumerate(entries):
                if number >= count_max:
                    is_whole = False
                    break
                name = os.fsencode(item.name)
                if not name.startswith(b"."):
                    found.extend(reachable(root, fd, folder, name))
    finally:
        os.close(fd)
    found.sort(key=lambda entry: (not entry.is_folder, entry.name.lower(), entry.name))
    return found, not is_whole


def reachable(root: int, fd: int, folder: bytes, name: bytes) -> Iterator[Entry]:
    """The entry `name` of the open `folder`, unless it is gone by now or is nothing that would be served."""
    with contextlib.suppress(OSError):
        facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISLNK(facts.st_mode):
            target = open_beneath(root, folder + b"/" + name, os.O_PATH)
            try:
                facts = os.fstat(target)
            finally:
                os.close(target)
        if stat.S_ISDIR(facts.st_mode):
            yield Entry(name, True, 0, facts.st_mtime)
        elif stat.S_ISREG(facts.st_mode):
            yield Entry(name, False, facts.st_size, facts.st_mtime)


def as_text(name: bytes) -> str:
    """Bytes as text that HTML can hold: control characters and surrogates become U+FFFD, markup is escaped."""
    text = name.decode("utf-8", "replace")
    return escape("".join("\ufffd" if ord(c) < 32 or 0x7F <= ord(c) < 0xA0 else c for c in text))


def row(entry: Entry) -> str:
    """One line of the table."""
    slash = "/" if entry.is_folder else ""
    try:
        changed = datetime.fromtimestamp(int(entry.changed_s), UTC)
        time = f'<time datetime="{changed:%Y-%m-%dT%H:%M:%SZ}">{changed:%Y-%m-%d %H:%M}</time>'
    except (OverflowError, ValueError, OSError):
        time = ""
    # "./": a name such as "mailto:x" would be taken for a URL of another kind. <bdi>: one written from right to left
    # does not turn its neighbours round.
    return (
        f'<tr><td><a href="./{quote(entry.name)}{slash}"><bdi>{as_text(entry.name)}</bdi>{slash}</a></td>'
        f"<td>{'' if entry.is_folder else format_size(entry.size_bytes)}</td><td>{time}</td></tr>\n"
    )


def page(path: bytes, entries: list[Entry], *, has_more: bool, size_bytes_max: int) -> str:
    """The page for the folder `path` ("/" or "/…/", decoded). Entries that would make it too large are left out."""
    parts = [HEAD.format(path=as_text(path))]
    if path != b"/":
        parts.append(UP)
    room = size_bytes_max - len(TAIL) - len(NOTE) - sum(len(part.encode()) for part in parts)
    for entry in entries:
        line = row(entry)
        room -= len(line.encode())
        if room < 0:
            has_more = True
            break
        parts.append(line)
    return "".join([*parts, TAIL.format(note=NOTE if has_more else "")])


def folder_of(raw_path: bytes) -> list[bytes]:
    """The segments of a folder's path as it was sent. The engine has refused what escapes the root or means no path."""
    segments: list[bytes] = []
    for segment in unquote_to_bytes(raw_path).split(b"/"):
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    return segments


class DirectoryListing:
    """The handler of listings, below the root of a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.entries_max = server.config.listing_entries_max
        self.size_bytes_max = server.config.response_size_bytes_max

    def run(self, batch: Batch) -> None:
        """Answers the requests of a batch."""
        for request in batch:
            with request:
                self.answer(request)

    def answer(self, request: Request) -> None:
        """Answers one with the page of its folder. Raises HTTPError where there is none to show."""
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405, headers=[("Allow", "GET, HEAD, OPTIONS")])
        segments = folder_of(request.raw_path)
        if any(segment.startswith(b".") or b"\0" in segment for segment in segments):
            raise HTTPError(404)
        try:
            entries, has_more = read_entries(self.server.root_fd, b"/".join(segments) or b".", self.entries_max)
        except OSError as error:
            raise HTTPError(status_of(error)) from None
        path = b"".join([b"/", *(segment + b"/" for segment in segments)])
        body = page(path, entries, has_more=has_more, size_bytes_max=self.size_bytes_max)
        request.respond(body, content_type="text/html; charset=utf-8", headers=HEADERS)


def status_of(error: OSError) -> int:
    """What a client is told when a folder cannot be read; as the engine does for files."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return 404
    if error.errno in (errno.EACCES, errno.EPERM, errno.EXDEV, errno.ELOOP):
        return 403
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
        return 503
    return 500
