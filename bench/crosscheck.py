"""Compares our load generator with wrk, h2load and httperf on one server that is slower than all of them.

    python -m bench.crosscheck [--seconds 2] [--blocks 5]

Runs alternate in shuffled blocks, on the same cores. Each generator's count of answers is held against the server's
own, and its figures against ours of the same block: where they measure the same, they should be within 5%. Exit
status 1: a rate was not, or a count was wrong.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from batchbridge.errors import BatchBridgeError
from batchbridge.measure.load import run_load
from batchbridge.measure.processes import ServerProcess, cores
from batchbridge.measure.traffic import get, learn

from . import crosscheck_app

CONNECTIONS = 16
PIPELINE = 8
#: Of the open loop. httperf has 1,024 descriptors at most, which must do for what arrives while the machine is busy.
RATE_PER_S = 1000
AGREEMENT = 0.05

Measure = Callable[["Bench"], "Told"]


class CrosscheckError(BatchBridgeError):
    """A generator did not run, or said what cannot be understood. One sentence."""


@dataclass
class Told:
    """What a generator says of one run."""

    answers: int
    requests_per_s: float
    mean_us: float
    under_way: int = 0
    """Requests at most that it leaves behind at its end, which the server has read."""


@dataclass
class Bench:
    """Where generators run, and for how long."""

    server: ServerProcess
    cpu: int | None
    seconds: float

    def run(self, *command: object) -> str:
        """A generator's output. Raises CrosscheckError."""
        pin = [] if self.cpu is None else ["taskset", "--cpu-list", str(self.cpu)]
        words = [*pin, *map(str, command)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise CrosscheckError(f"{command[0]} failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
        return done.stdout

    @property
    def url(self) -> str:
        return f"{self.server.url}/f"


# --- the generators ---------------------------------------------------------------------------------------------------


def ours(**options: object) -> Measure:
    def measure(bench: Bench) -> Told:
        exchanges = learn(bench.server.host, bench.server.port, get("/f"))
        figures = run_load(
            bench.server.host, bench.server.port, exchanges, connections=CONNECTIONS, seconds=bench.seconds,
            warmup_s=0.0, cpu=bench.cpu, **options,  # type: ignore[arg-type]
        )  # fmt: skip
        if not figures.is_valid:
            raise CrosscheckError(f"our run is no result: {figures.invalid_reason}")
        # One request more has learnt the answer.
        return Told(figures.requests + 1, figures.requests_per_s, figures.latency_us["mean"])

    return measure


def wrk(*flags: str) -> Measure:
    def measure(bench: Bench) -> Told:
        output = bench.run("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{bench.seconds:.0f}s", *flags, bench.url)
        rate = number(r"Requests/sec:\s+([\d.]+)", output)
        latency = re.search(r"Latency\s+([\d.]+)(us|ms|s)", output)
        if latency is None or "Non-2xx" in output or "Socket errors" in output:
            raise CrosscheckError(f"wrk says: {output!r}")
        mean_us = float(latency[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[latency[2]]
        return Told(int(number(r"(\d+) requests in", output)), rate, mean_us, under_way=CONNECTIONS)

    return measure


def h2load(pipeline: int = 1) -> Measure:
    def measure(bench: Bench) -> Told:
        rate = 1e9 / crosscheck_app.WORK_NS
        count = int(rate * bench.seconds / CONNECTIONS) * CONNECTIONS
        output = bench.run("h2load", "--h1", f"-n{count}", f"-c{CONNECTIONS}", f"-m{pipeline}", bench.url)
        if number(r"(\d+) succeeded", output) != count:
            raise CrosscheckError(f"h2load says: {output!r}")
        # The mean of "time for request" is its third figure, behind the least and the largest.
        found = re.search(r"time for request:\s+\S+\s+\S+\s+([\d.]+)(us|ms|s)", output)
        if found is None:
            raise CrosscheckError(f"h2load says: {output!r}")
        mean_us = float(found[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[found[2]]
        return Told(count, number(r"finished in [\d.]+m?s, ([\d.]+) req/s", output), mean_us)

    return measure


def httperf(bench: Bench) -> Told:
    count = int(RATE_PER_S * bench.seconds)
    output = bench.run(
        "httperf", "--hog", f"--server={bench.server.host}", f"--port={bench.server.port}", "--uri=/f",
        f"--num-conns={count}", "--num-calls=1", f"--rate={RATE_PER_S}", "--add-header=Connection: close\\n",
    )  # fmt: skip
    if number(r"Errors: total (\d+)", output):
        raise CrosscheckError(f"httperf says: {output!r}")
    mean_ms = number(r"Connection time \[ms\]: min [\d.]+ avg ([\d.]+)", output)
    return Told(int(number(r"replies (\d+)", output)), number(r"Request rate: ([\d.]+) req/s", output), mean_ms * 1e3)


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise CrosscheckError(f"{pattern!r} is not in {text!r}")
    return float(found[1])


#: What is measured, and by whom.
CASES: dict[str, dict[str, Measure]] = {
    "closed loop, kept connections": {"ours": ours(), "wrk": wrk(), "h2load": h2load()},
    "closed loop, a connection each": {"ours": ours(close=True), "wrk": wrk("-HConnection: close")},
    f"closed loop, {PIPELINE} pipelined": {"ours": ours(pipeline=PIPELINE), "h2load": h2load(PIPELINE)},
    f"open loop, {RATE_PER_S}/s, a connection each": {
        "ours": ours(close=True, rate_per_s=float(RATE_PER_S), arrivals="constant"),
        "httperf": httperf,
    },
}


# --- the comparison ---------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """A generator in a case."""

    case: str
    name: str
    told: list[Told] = field(default_factory=list)
    miscounts: int = 0
    """Of answers, against the server's count, beyond what it leaves under way."""

    @property
    def requests_per_s(self) -> float:
        return statistics.median(told.requests_per_s for told in self.told)

    @property
    def mean_us(self) -> float:
        return statistics.median(told.mean_us for told in self.told)


def lines() -> list[Line]:
    """All that can be measured here."""
    return [
        Line(case, name)
        for case, generators in CASES.items()
        for name in generators
        if name == "ours" or shutil.which(name) is not None
    ]


def measure(bench: Bench, found: list[Line], blocks: int) -> Iterator[str]:
    """Runs the blocks; tells before each run which it is."""
    for block in range(blocks):
        for line in random.Random(block).sample(found, len(found)):
            yield f"block {block + 1}: {line.case}, {line.name}"
            before = bench.server.stats()["requests"]["read"]
            told = CASES[line.case][line.name](bench)
            read = bench.server.stats()["requests"]["read"] - before
            line.told.append(told)
            line.miscounts += not 0 <= read - told.answers <= told.under_way


def compare(line: Line, mine: Line) -> tuple[float, float]:
    """Rate and mean latency as shares of ours: medians of the blocks' ratios, since drift falls on both of a block."""
    pairs = list(zip(line.told, mine.told, strict=True))
    return (
        statistics.median(theirs.requests_per_s / ours.requests_per_s for theirs, ours in pairs),
        statistics.median(theirs.mean_us / ours.mean_us for theirs, ours in pairs),
    )


def table(found: list[Line]) -> tuple[Table, bool]:
    """The comparison, and whether all agree."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("case", "generator", "requests/s", "to ours", "mean latency", "to ours", "counts"):
        shown.add_column(title, justify="left" if title in ("case", "generator") else "right")
    agree = True
    for line in found:
        mine = next(other for other in found if other.case == line.case and other.name == "ours")
        ratio, ratio_of_means = compare(line, mine)
        agree &= abs(ratio - 1) <= AGREEMENT and line.miscounts == 0
        shown.add_row(
            line.case, line.name, f"{line.requests_per_s:,.0f}", f"{ratio:.3f}", f"{line.mean_us:,.0f} µs",
            f"{ratio_of_means:.3f}", "right" if line.miscounts == 0 else f"{line.miscounts} wrong",
        )  # fmt: skip
    return shown, agree


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run (2)")
    parser.add_argument("--blocks", type=int, default=5, help="runs of each generator (5)")
    options = parser.parse_args()
    found = lines()
    console = Console(highlight=False)
    server_cpu, client_cpu = cores()
    try:
        with ServerProcess(f"{crosscheck_app.__file__}:server", cpu=server_cpu, access_log="off") as server:
            bench = Bench(server, client_cpu, options.seconds)
            with console.status("") as status:
                for words in measure(bench, found, options.blocks):
                    status.update(words)
    except (BatchBridgeError, subprocess.TimeoutExpired) as error:
        print(f"crosscheck: {error}", file=sys.stderr)
        return 1
    shown, agree = table(found)
    console.print(shown)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
