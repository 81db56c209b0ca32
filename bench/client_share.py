"""How many requests of real clients the kernel side recognises, so that they are answered without being parsed.

    python -P -m bench.client_share [--requests 2000] [--warmup-requests 2000] [--json FILE]

A server with the kernel engine has 1,000 URLs, asked for as often as Zipf's law says. The clients are those that
`bench.record_clients` has recorded, each with its own bytes: they take turns, ten requests each, in shuffled order, so
that they compete for the same places; the first of them count for nothing. Twice, each time with a fresh server: with
connections that carry up to 100 requests, where the client keeps them alive at all; and with a connection for each
request. Every answer is compared.

What a client does not send twice in the same bytes cannot be recognised; what may not be (HTTP/1.0, ranges, conditions
and so on) is named as its obstacle.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import batchbridge as bb

from .record_clients import is_last

RECORDINGS = Path(__file__).with_name("clients.json")
OBJECTS = 1000
ZIPF_EXPONENT = 1.0
TURN_REQUESTS = 10
PATIENCE_S = 10.0
RECEIVE_SIZE_BYTES = 65_536

#: Header lines that user mode never publishes, with what is said of them.
OBSTACLES = {
    b"connection: close": "Connection: close", b"connection: te, close": "Connection: close", b"range:": "Range",
    b"if-none-match:": "conditional", b"if-modified-since:": "conditional", b"if-range:": "conditional",
    b"content-length:": "Content-Length", b"upgrade:": "Upgrade", b"cookie:": "credentials",
    b"authorization:": "credentials", b"cache-control: no-cache": "no-cache", b"pragma: no-cache": "no-cache",
}  # fmt: skip


class WrongAnswerError(Exception):
    """A client got something else than it asked for. One sentence."""


@dataclass(frozen=True)
class Share:
    """Of one client, in one run."""

    requests: int
    recognised: int

    @property
    def share(self) -> float:
        return self.recognised / self.requests


class Visitor:
    """One recorded client, with at most one connection."""

    def __init__(self, recording: dict[str, Any], address: tuple[str, int], requests_per_connection: int) -> None:
        self.name = recording["client"]
        self.head = recording["request"].replace("{host}", f"{address[0]}:{address[1]}").replace("{name}", address[0])
        self.address = address
        is_kept = not is_last(self.head.encode("latin-1").rpartition(b"\r\n\r\n")[0])
        self.limit = requests_per_connection if is_kept else 1
        self.connection: socket.socket | None = None
        self.left = self.requests = self.recognised = 0

    def ask(self, target: str, body: bytes) -> None:
        """One request, whose answer must have this body."""
        if self.connection is None:
            self.connection = socket.create_connection(self.address, PATIENCE_S)
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.left = self.limit
        self.connection.sendall(self.head.replace("{target}", target, 1).encode("latin-1"))
        answered = self._receive()
        status = answered[9:12]
        if status not in (b"200", b"206") or not answered.endswith(b"\r\n\r\n" + body):
            raise WrongAnswerError(f"{self.name} asked for {target}: {answered[:60]!r}")
        self.requests += 1
        self.left -= 1
        if not self.left:
            self.close()

    def _receive(self) -> bytes:
        assert self.connection is not None
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._more(answer)
        lines, _, body = answer.partition(b"\r\n\r\n")
        length = int(lines.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            more = self._more(answer)
            answer += more
            body += more
        return answer

    def _more(self, before: bytes) -> bytes:
        assert self.connection is not None
        more = self.connection.recv(RECEIVE_SIZE_BYTES)
        if not more:
            raise WrongAnswerError(f"{self.name}: the connection ended behind {before[:60]!r}")
        return more

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def obstacle(request: str) -> str:
    """Why user mode does not publish such a request, in a word or two; empty: it does."""
    lines = request.lower().encode("latin-1").split(b"\r\n")
    if lines[0].endswith(b"http/1.0"):
        return "HTTP/1.0"
    return next((word for line in lines[1:] for start, word in OBSTACLES.items() if line.startswith(start)), "")


def measure(recordings: list[dict[str, Any]], options: argparse.Namespace, per_connection: int) -> dict[str, Share]:
    """One run with a fresh server: what each client's requests came to. Raises WrongAnswerError, EngineError."""
    chance = random.Random(1)
    targets = [f"/objects/{number:04d}.html" for number in range(OBJECTS)]
    bodies = [f"{number:04d}".encode() * (options.size_bytes // 4) for number in range(OBJECTS)]
    weights = list(accumulate((number + 1) ** -ZIPF_EXPONENT for number in range(OBJECTS)))
    with tempfile.TemporaryDirectory() as root:
        Path(root, "objects").mkdir()
        for target, body in zip(targets, bodies, strict=True):
            Path(root + target).write_bytes(body)
        # 0: else connections of one request would soon be kept from the kernel side.
        config = bb.Config(root=root, bind=("127.0.0.1:0",), engine="kernel", kernel_requests_min=0)
        server = bb.Server(config=config)
        with server.running():
            host, _, port = server.url.removeprefix("http://").rpartition(":")
            visitors = [Visitor(recording, (host, int(port)), per_connection) for recording in recordings]
            before = recognised(server)
            for number in range(0, options.warmup_requests + options.requests, TURN_REQUESTS):
                if number == options.warmup_requests:
                    for visitor in visitors:
                        visitor.requests = visitor.recognised = 0
                for visitor in chance.sample(visitors, len(visitors)):
                    for wanted in chance.choices(range(OBJECTS), cum_weights=weights, k=TURN_REQUESTS):
                        visitor.ask(targets[wanted], bodies[wanted])
                    after = recognised(server)
                    visitor.recognised += after - before
                    before = after
            for visitor in visitors:
                visitor.close()
    return {visitor.name: Share(visitor.requests, visitor.recognised) for visitor in visitors}


def recognised(server: bb.Server) -> int:
    return int(server.stats()["kernel_side"]["known"])


def total(shares: dict[str, Share], names: Sequence[str]) -> Share:
    chosen = [shares[name] for name in names]
    return Share(sum(share.requests for share in chosen), sum(share.recognised for share in chosen))


# --- showing ----------------------------------------------------------------------------------------------------------


def table(recordings: list[dict[str, Any]], kept: dict[str, Share], single: dict[str, Share]) -> Table:
    shown = Table(title="share of requests that the kernel side recognised", caption="kept: connections are kept alive")
    for column in ("client", "bytes", "kept", "one each", "obstacle"):
        shown.add_column(column, justify="left" if column in ("client", "obstacle") else "right", no_wrap=True)
    for recording in sorted(recordings, key=lambda recording: -kept[recording["client"]].share):
        name, request = recording["client"], recording["request"]
        length = len(request.replace("{host}", "127.0.0.1:8080").replace("{target}", "/objects/0000.html"))
        shown.add_row(name, str(length), f"{kept[name].share:.0%}", f"{single[name].share:.0%}", obstacle(request))
    return shown


def summary(recordings: list[dict[str, Any]], kept: dict[str, Share], single: dict[str, Share]) -> list[str]:
    names = [recording["client"] for recording in recordings]
    open_to_it = [recording["client"] for recording in recordings if not obstacle(recording["request"])]
    return [
        f"{what}: {total(kept, chosen).share:.1%} of {total(kept, chosen).requests:,} requests on connections that are "
        f"kept alive, {total(single, chosen).share:.1%} with a connection for each"
        for what, chosen in (
            (f"all {len(names)} clients", names),
            (f"the {len(open_to_it)} whose requests may be published", open_to_it),
        )
        if chosen
    ]


def tens(text: str) -> int:
    value = int(text)
    if value < 0 or value % TURN_REQUESTS:
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of {TURN_REQUESTS}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.client_share", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--recordings", type=Path, default=RECORDINGS, help="by bench.record_clients")
    parser.add_argument("--requests", type=tens, default=2000, help="of each client (2000)")
    parser.add_argument("--warmup-requests", type=tens, default=2000, help="of each client, before those (2000)")
    parser.add_argument("--requests-per-connection", type=int, default=100, help="where it is kept alive (100)")
    parser.add_argument("--size-bytes", type=int, default=1000, help="of each object (1000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    options = parser.parse_args(arguments)
    recordings = json.loads(options.recordings.read_text())
    console = Console()
    try:
        kept = measure(recordings, options, options.requests_per_connection)
        single = measure(recordings, options, 1)
    except (WrongAnswerError, bb.EngineError) as error:
        print(f"client_share: {error}", file=sys.stderr)
        return 1
    console.print(table(recordings, kept, single))
    for line in summary(recordings, kept, single):
        console.print(line, highlight=False, soft_wrap=True)
    if options.json:
        figures = {
            "objects": OBJECTS, "zipf_exponent": ZIPF_EXPONENT, "size_bytes": options.size_bytes,
            "warmup_requests": options.warmup_requests, "requests_per_connection": options.requests_per_connection,
            "clients": {
                name: {"kept_alive": asdict(kept[name]), "one_connection_each": asdict(single[name])} for name in kept
            },
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
