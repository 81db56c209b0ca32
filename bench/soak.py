"""Keeps a server under mixed load, and looks whether its books balance and its memory stays flat.

    python -m bench.soak [--minutes 10] [--engine auto|kernel|io_uring|epoll] ...

Rounds of a few seconds: files, handlers, pipelines and a connection for each request, with overload, slow, broken,
hostile and vanishing clients beside them. After each round all clients leave, and the server must be at rest: nothing
under way, every request read counted once and as the clients saw it, a line in the access log for each, as many
descriptors open as before. At the end its memory is compared with that after the warm-up. Ends with 1 and a
sentence for each thing that does not hold.

Without --engine, all engines that run here share the time.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from batchbridge.doctor import choose_engine
from batchbridge.errors import EngineError
from batchbridge.measure.processes import ServerError, ServerProcess, cores, pinned

from . import soak_app
from .odd_clients import OddClient
from .reconcile import Check, against_clients, against_log, at_most, at_rest, equal, is_at_rest, within
from .soak_traffic import Group, Tally, groups, make_site

ENGINES = ("kernel", "io_uring", "epoll")
ROUND_S = 6.0
ROUNDS_MIN = 3
ODD_CLIENTS = 6
#: How long the server may take to come to rest when all clients have left.
REST_PATIENCE_S = 15.0
#: Growth of the heap from the warm-up to the end that is no leak: fragments, and tables at their high-water mark.
GROWTH_BYTES_MAX = 4 * 1024 * 1024
WARMUP_SHARE = 0.34
#: Of what clients found wrong, so much is told in full.
FAULTS_TOLD = 8

SETTINGS = {
    "header_timeout": "1s",
    "body_timeout": "1s",
    "idle_timeout": "2s",
    "send_timeout": "1s",
    "linger_timeout": "500ms",
    "handler_threads": 2,
    "handler_queue_slabs": 48,
    "cache_size": "8MiB",
    "access_log_buffer": "1MiB",
}

LOG_LINE = re.compile(rb'\S+ - - \[[^\]]+\] "(?:[^"\\]|\\x[0-9a-f]{2})*" [2-5]\d\d \d+ "[^"]*" "[^"]*"\n')


@dataclass
class Watch:
    """What was seen of the server, round by round, at rest."""

    anon_bytes: list[int] = field(default_factory=list)
    shmem_bytes: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    slabs: list[int] = field(default_factory=list)
    routes: int = 0
    log_lines: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    console = Console()
    engines = options.engine or [name for name in ENGINES if runs_here(name)]
    faults: list[str] = []
    for engine in engines:
        try:
            checks = soak(console, engine, options.minutes * 60 / len(engines), options.seed)
        except ServerError as error:
            faults.append(f"{engine}: {error}")
            continue
        console.print(verdict(engine, checks))
        faults += [f"{engine}: {check.fault}" for check in checks if check.fault]
    for fault in faults:
        console.print(fault, style="red", highlight=False, soft_wrap=True)
    if not faults:
        console.print(f"All holds: {' and '.join(engines)}, {options.minutes:g} minutes.", highlight=False)
    return 1 if faults else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=minutes, default=10.0, help="how long, fractions allowed (10)")
    parser.add_argument("--engine", action="append", choices=("auto", *ENGINES), help="repeatable (all that run here)")
    parser.add_argument("--seed", type=int, default=1, help="of the odd clients' behaviour (1)")
    return parser.parse_args(arguments)


def minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes above 0")
    return value


def runs_here(engine: str) -> bool:
    try:
        choose_engine(engine)
    except EngineError:
        return False
    return True


# --- one engine -------------------------------------------------------------------------------------------------------


def soak(console: Console, engine: str, seconds: float, seed: int) -> list[Check]:
    """All rounds with one engine; what was found. Raises ServerError where the server ends or hangs."""
    started = time.monotonic()
    server_cpu, client_cpu = cores()
    watch, total = Watch(), Tally()
    with tempfile.TemporaryDirectory(prefix="batchbridge-soak-") as scratch, pinned(client_cpu):
        root, log = Path(scratch, "site"), Path(scratch, "access.log")
        root.mkdir()
        make_site(root)
        app = f"{soak_app.__file__}:server"
        with ServerProcess(app, root=root, engine=engine, cpu=server_cpu, access_log=log, **SETTINGS) as server:
            traffic = groups(root, server, total)
            rounds = max(ROUNDS_MIN, round(seconds / ROUND_S))
            for number in range(1, rounds + 1):
                left_s = seconds - (time.monotonic() - started)
                if left_s <= 0 and number > ROUNDS_MIN:
                    break
                round_s = max(0.5, left_s / (rounds - number + 1) - 3)
                total.add(play(server, traffic, (root / "large.bin").read_bytes(), round_s, seed * 1000 + number))
                look(server, watch, log)
                console.print(progress_line(server.engine, started, total, watch), highlight=False, soft_wrap=True)
            checks = [*examine(server, total, watch), *watched(watch)]
            checks.append(equal("end", "exit status", server.stop(), "it should be", 0))
            errors = len(re.findall("Traceback| ERROR ", server.errors))
            checks.append(equal("errors on standard error", "there are", errors, "there should be", 0))
    return checks


def play(server: ServerProcess, traffic: list[Group], large: bytes, seconds: float, seed: int) -> Tally:
    """One round, until all its clients are through."""
    until = time.monotonic() + seconds
    address = (server.host, server.port)
    odd = [OddClient(address, random.Random(seed * 100 + number), large) for number in range(ODD_CLIENTS)]
    tallies: list[Tally] = []

    def regular(group: Group) -> Callable[[], None]:
        return lambda: tallies.append(group.run(server, seconds, seed))

    def odd_one(client: OddClient) -> Callable[[], None]:
        return lambda: client.run(until)

    threads = [threading.Thread(target=regular(group), name=group.name) for group in traffic]
    threads += [threading.Thread(target=odd_one(client), name="odd") for client in odd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Tally()
    for tally in [*tallies, *(client.tally for client in odd)]:
        total.add(tally)
    if len(tallies) < len(traffic):
        total.faults.append(f"{len(traffic) - len(tallies)} of the loads failed")
    return total


def look(server: ServerProcess, watch: Watch, log: Path) -> None:
    """Waits until the server is at rest, and notes what it holds then. Raises ServerError where it has ended."""
    until = time.monotonic() + REST_PATIENCE_S
    stats = server.stats()
    while not is_at_rest(stats) and time.monotonic() < until:
        time.sleep(0.05)
        stats = server.stats()
    memory = server.memory_bytes()
    watch.anon_bytes.append(memory["anon"])
    watch.shmem_bytes.append(memory["shmem"])
    watch.descriptors.append(server.open_descriptors())
    watch.slabs.append(stats["bridge"]["slabs_in_use"])
    watch.routes = len(stats["routes"])
    take_log(server, watch, log, stats["log"]["lines"])


def take_log(server: ServerProcess, watch: Watch, log: Path, lines_counted: int) -> None:
    """Moves the log away as an operator does, with SIGUSR1, and counts its lines: minutes of it would fill the disk."""
    until = time.monotonic() + REST_PATIENCE_S
    moved = log.with_suffix(".old")
    while watch.log_lines + count_lines(log) < lines_counted and time.monotonic() < until:
        time.sleep(0.05)
    os.rename(log, moved)
    server.signal(signal.SIGUSR1)
    while not log.exists() and time.monotonic() < until:
        time.sleep(0.02)
    watch.log_lines += count_lines(moved)
    moved.unlink()


def count_lines(path: Path) -> int:
    """Lines in the Combined format; others are none."""
    with path.open("rb") as file:
        return sum(LOG_LINE.fullmatch(line) is not None for line in file)


# --- judging ----------------------------------------------------------------------------------------------------------


def examine(server: ServerProcess, total: Tally, watch: Watch) -> list[Check]:
    stats = server.stats()
    checks = at_rest(stats) + within(stats) + against_clients(stats, total) + against_log(stats, watch.log_lines)
    if not total.faults:
        return [*checks, Check("clients", f"{total.responses:,} answers right")]
    further = "" if len(total.faults) <= FAULTS_TOLD else f", and {len(total.faults) - FAULTS_TOLD} more faults"
    return [
        *checks,
        Check("clients", f"{len(total.faults)} faults", "; ".join(total.faults[:FAULTS_TOLD]) + further + "."),
    ]


def watched(watch: Watch) -> list[Check]:
    """Memory, descriptors and slabs, at the end against after the warm-up."""
    warm = max(1, round(len(watch.anon_bytes) * WARMUP_SHARE))
    end = max(1, len(watch.anon_bytes) // 4)
    before, after = median(watch.anon_bytes[warm - 1 : warm + end - 1]), median(watch.anon_bytes[-end:])
    return [
        at_most("growth of the heap, KiB", "it grew by", (after - before) / 1024, GROWTH_BYTES_MAX / 1024),
        equal("descriptors", "at the end", watch.descriptors[-1], "after the first round", watch.descriptors[0]),
        # Each route keeps the slab open that its next requests go to.
        at_most("slabs in use at rest", "at the end", watch.slabs[-1], watch.routes),
    ]


def progress_line(engine: str, started: float, total: Tally, watch: Watch) -> str:
    state = f"{len(total.faults)} faults ({total.faults[0]})" if total.faults else "all answers right"
    return (
        f"{time.monotonic() - started:6.0f} s  {engine}: {total.responses:,} responses, {state}; heap "
        f"{watch.anon_bytes[-1] / 1e6:.1f} MB, shared {watch.shmem_bytes[-1] / 1e6:.1f} MB, "
        f"{watch.descriptors[-1]} descriptors"
    )


def verdict(engine: str, checks: list[Check]) -> Table:
    table = Table(title=f"soak, {engine}")
    table.add_column("what")
    table.add_column("figures", justify="right")
    table.add_column("holds")
    for check in checks:
        table.add_row(check.name, check.figures, "[red]no[/red]" if check.fault else "yes")
    return table


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
