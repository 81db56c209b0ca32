"""What batching does, in a minute: real documents and a batch handler, served on loopback at batch sizes 1 to 64.

    python -m bench.demo --root FOLDER [--output batching.png] [--engine auto]

The server is a process of its own, pinned to one core, the client another one, on a second core. Three requests of
four go to a handler whose answer depends on the request, the fourth asks for a file below FOLDER. Each answer is
compared with the right one, byte by byte.

The route's policy is `idle`: a batch leaves when a handler is free and either `max_batch_size` requests wait or no more
bytes do. With more requests under way than fit any of the batches, and the server's core busy, as many wait as the
policy allows; so `max_batch_size` is what limits the batch, and the achieved size follows it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from batchbridge.cython_ext.load import Exchange, Load
from batchbridge.doctor import choose_engine
from batchbridge.measure import machine
from batchbridge.measure.processes import ServerError, ServerProcess, cores, pinned
from batchbridge.measure.traffic import document_exchanges, request_bytes

from . import demo_app

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
CONNECTIONS = 256
DOCUMENTS = 300
DOCUMENT_SIZE_BYTES_MAX = 65_536
DOCUMENT_SHARE = 0.25
VECTORS = 1000
WARMUP_S = 0.3
#: Less idle time than this, and the client's core limits the figure; less use of its core than that, and the server was
#: kept from it by other programs. The figure is "at least" then.
CLIENT_IDLE_SHARE_MIN = 0.15
SERVER_BUSY_SHARE_MIN = 0.85


@dataclass(frozen=True)
class Point:
    """What one run at one batch size showed."""

    batch_size_max: int
    batch_size: float
    """Items by batches: what was achieved."""
    requests_per_s: float
    cpu_us: float
    """Of the server, by request."""
    p50_ms: float
    p99_ms: float
    client_idle_share: float
    server_busy_share: float


class WrongAnswersError(Exception):
    """A run whose figures mean nothing. One sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    console = Console()
    if not options.root.is_dir():
        print(f"--root: {options.root} is not a folder", file=sys.stderr)
        return 2
    if not os.access(options.output.resolve().parent, os.W_OK):
        print(f"--output: {options.output.resolve().parent} is no folder that may be written to", file=sys.stderr)
        return 2
    documents = document_exchanges(options.root, DOCUMENTS, DOCUMENT_SIZE_BYTES_MAX, DOCUMENT_SHARE)
    if not documents:
        print(f"--root: {options.root} has no file to serve", file=sys.stderr)
        return 2
    try:
        engine, points = measure(console, options, documents)
    except (ServerError, WrongAnswersError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    summary = summarise(points)
    console.print(table(summary, engine, options))
    draw(options.output, points, engine)
    console.print(f"Picture: {options.output.resolve()}", highlight=False, soft_wrap=True)
    console.print(sentence(summary), highlight=False, soft_wrap=True)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="folder with the documents to serve")
    parser.add_argument("--output", type=Path, default=Path("batching.png"), help="the picture (batching.png)")
    parser.add_argument("--engine", default="auto", help="the server's engine (auto)")
    parser.add_argument("--seconds", type=positive, default=2.0, help="of each run (2)")
    parser.add_argument("--blocks", type=int, choices=range(1, 100), default=3, metavar="N",
                        help="runs at each batch size, in shuffled order (3)")  # fmt: skip
    return parser.parse_args(arguments)


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    console: Console, options: argparse.Namespace, documents: list[Exchange]
) -> tuple[str, dict[int, list[Point]]]:
    """Runs the blocks; the engine, and the points of each batch size. Raises ServerError, WrongAnswersError."""
    server_cpu, client_cpu = cores()
    exchanges = [*documents, *handler_exchanges()]
    points: dict[int, list[Point]] = {size: [] for size in BATCH_SIZES}
    app = f"{demo_app.__file__}:server"
    with (
        ServerProcess(app, root=options.root, engine=options.engine, cpu=server_cpu, access_log="off") as server,
        pinned(client_cpu),
        progress(console) as bar,
    ):
        console.print(engine_sentence(server.engine, options.engine), highlight=False, soft_wrap=True)
        answered = warm_up(server, documents)
        task = bar.add_task(f"{server.engine} engine", total=options.blocks * len(BATCH_SIZES))
        for size in order(options.blocks):
            bar.update(task, description=f"{server.engine} engine, max_batch_size {size}")
            point, responses = run_once(server, exchanges, size, options.seconds)
            points[size].append(point)
            answered += responses
            bar.advance(task)
        counted = server.stats()["requests"]["read"]
        if counted != answered:
            raise WrongAnswersError(f"the server counted {counted} requests, the client {answered} responses")
        server.stop()
        return server.engine, points


def order(blocks: int, seed: int = 1) -> Iterator[int]:
    """The batch sizes, block after block, each block in another order: what drifts falls on all of them."""
    shuffled = random.Random(seed)
    for _ in range(blocks):
        yield from shuffled.sample(BATCH_SIZES, len(BATCH_SIZES))


def handler_exchanges() -> list[Exchange]:
    """Requests to the handler, all different, with their answers."""
    weight = (1 - DOCUMENT_SHARE) / VECTORS
    return [
        Exchange(request_bytes("POST", demo_app.ROUTE, body=body), body=answer, weight=weight, name=f"vector {number}")
        for number, (body, answer) in enumerate(demo_app.bodies(VECTORS, seed=1))
    ]


def warm_up(server: ServerProcess, documents: list[Exchange]) -> int:
    """Asks for each document at least once, so that no measured run reads files; how many were answered."""
    figures = Load(server.host, server.port, documents, 16, 30.0, requests_max=65_536).run()
    check(figures)
    return int(figures["responses"])


def run_once(server: ServerProcess, exchanges: list[Exchange], size: int, seconds: float) -> tuple[Point, int]:
    """One run: its point, and how many requests were answered."""
    server.set_policy(demo_app.ROUTE, max_batch_size=size)
    load = Load(server.host, server.port, exchanges, CONNECTIONS, seconds, warmup_s=WARMUP_S)
    before, cpu_before_s, began = server.stats()["routes"][demo_app.ROUTE], server.cpu_s(), time.monotonic()
    figures = load.run()
    cpu_s, ran_s = server.cpu_s() - cpu_before_s, time.monotonic() - began
    after = server.stats()["routes"][demo_app.ROUTE]
    check(figures)
    batches = after["batches"] - before["batches"]
    point = Point(
        batch_size_max=size,
        batch_size=(after["items"] - before["items"]) / max(batches, 1),
        requests_per_s=figures["requests_per_s"],
        cpu_us=cpu_s / figures["responses"] * 1e6,
        p50_ms=figures["latency_us"]["p50"] / 1e3,
        p99_ms=figures["latency_us"]["p99"] / 1e3,
        client_idle_share=figures["client"]["idle_share"],
        server_busy_share=cpu_s / ran_s,
    )
    return point, figures["responses"]


def check(figures: dict[str, object]) -> None:
    """Raises WrongAnswersError where an answer was wrong or missing."""
    if figures["wrong_example"]:
        raise WrongAnswersError(f"a wrong answer: {figures['wrong_example']}")
    errors = figures["errors"]
    failed = {kind: count for kind, count in errors.items() if count} if isinstance(errors, dict) else {}
    if failed or figures["unanswered"]:
        raise WrongAnswersError(f"{figures['unanswered']} requests were not answered; failures: {failed or 'none'}")


# --- showing ----------------------------------------------------------------------------------------------------------


def engine_sentence(engine: str, asked: str) -> str:
    """Which engine is measured, and why not the one inside the kernel, where it is not."""
    if asked != "auto":
        return f"Engine: {engine}, as asked for."
    if engine == "kernel":
        return "Engine: kernel, so requests come up from inside the kernel in batches."
    chosen, reason = choose_engine("auto")
    return f"Engine: {engine}{f', since {reason}' if chosen == engine else '; kernel could not be loaded'}."


def progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console, transient=True
    )


def summarise(points: dict[int, list[Point]]) -> list[Point]:
    """The median of each figure, by batch size."""
    return [
        Point(**{name: median(getattr(point, name) for point in runs) for name in Point.__dataclass_fields__})
        for runs in points.values()
    ]


def is_at_least(point: Point) -> bool:
    """Whether something else than the server and its core limited the rate."""
    return point.client_idle_share < CLIENT_IDLE_SHARE_MIN or point.server_busy_share < SERVER_BUSY_SHARE_MIN


def table(summary: list[Point], engine: str, options: argparse.Namespace) -> Table:
    shown = Table(
        title=f"{engine} engine, {CONNECTIONS} connections, medians of {options.blocks} runs of {options.seconds:g} s",
        caption="max: max_batch_size; CPU: of the server, by request; server, client: how\n"
        "busy their cores were; ≥: the client or other programs were the limit.\n"
        "All answers were verified.",
    )
    for column in ("max", "mean batch", "requests/s", "CPU µs", "p50 ms", "p99 ms", "server", "client"):
        shown.add_column(column, justify="right", no_wrap=True)
    for point in summary:
        shown.add_row(
            f"{point.batch_size_max:.0f}",
            f"{point.batch_size:.1f}",
            f"{'≥ ' if is_at_least(point) else ''}{point.requests_per_s:,.0f}",
            f"{point.cpu_us:.1f}",
            f"{point.p50_ms:.2f}",
            f"{point.p99_ms:.2f}",
            f"{point.server_busy_share:.0%}",
            f"{1 - point.client_idle_share:.0%}",
        )
    return shown


def sentence(summary: list[Point]) -> str:
    """What the picture shows, in one sentence."""
    one, many = summary[0], summary[-1]
    at_least = "at least " if is_at_least(many) else ""
    return (
        f"The picture shows what calling a Python handler once per batch saves: with batches of {many.batch_size:.0f} "
        f"instead of {one.batch_size:.0f}, a request costs the server {many.cpu_us:.1f} instead of {one.cpu_us:.1f} µs "
        f"of CPU, and one core answers {at_least}{many.requests_per_s:,.0f} instead of {one.requests_per_s:,.0f} "
        f"requests per second."
    )


def draw(path: Path, points: dict[int, list[Point]], engine: str) -> None:
    # Here, since matplotlib takes longer to import than a run that fails early.
    from batchbridge.plot.panels import Series, draw_panels

    x = [[point.batch_size for point in runs] for runs in points.values()]
    at_least = [is_at_least(point) for point in summarise(points)]

    def series(label: str, name: str, scale: float = 1.0) -> Series:
        return Series(label, [[getattr(point, name) * scale for point in runs] for runs in points.values()])

    draw_panels(
        path,
        title=f"A Python handler called once per batch ({engine} engine, {CONNECTIONS} connections)",
        subtitle=f"{machine.sentence()}; a demo on loopback, not a claim",
        x_label="achieved batch size (requests, mean)",
        x=x,
        x_names=[f"{size}" for size in points],
        panels=[
            ("throughput", "1,000 requests/s", [replace(series("", "requests_per_s", 1e-3), at_least=at_least)]),
            ("server CPU", "µs/request", [series("", "cpu_us")]),
            ("latency", "ms", [series("p50", "p50_ms"), series("p99", "p99_ms")]),
        ],
        footnote="Points: medians, labelled with max_batch_size; hollow: at least, since other programs or the client "
        "were the limit; bars: least and largest of the runs. "
        f"{1 - DOCUMENT_SHARE:.0%} handler, {DOCUMENT_SHARE:.0%} documents.",
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
