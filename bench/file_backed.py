"""What a large file costs that no cache keeps, by who sends it how: ``python -P -m bench.file_backed``.

Our engines send such a file through a window of fragments: read from the page cache into registered memory, and from
there without a copy (`io_uring`) or with one (`epoll`). Beside them nginx with `sendfile`, and two servers that do
nothing else (`file_sender.c`, compiled when it is asked for): one by io_uring's SPLICE, which the kernel always gives
to threads of its own, one by sendfile(2). All files are in the page cache. Fresh processes, in random order within
blocks; both cores are watched by idle loops, since a copy that a zero-copy send puts off is made where the client is.
Beside that stands what the server's threads had of a core, with those of the kernel's that work for them: it tells also
where neighbours had too much of a core for the idle loop to tell anything, but not what the kernel does for all in
interrupts.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from batchbridge import doctor
from batchbridge.cython_ext.load import Exchange
from batchbridge.measure import machine
from batchbridge.measure.experiment import COST, PLACES, Arm, Experiment, Phase, notes_of, shuffled, site
from batchbridge.measure.namespaces import Place
from batchbridge.measure.processes import CommandProcess, MeasuredProcess, ServerProcess, port_at
from batchbridge.measure.results import Results, Run

from . import rivals
from .zero_copy import content

MIB = 1 << 20
SIZES = (MIB, 10 * MIB)
ENGINES = ("io_uring", "epoll")
SENDERS = ("splice", "sendfile")
CONNECTIONS = 16
#: Of our engines: so low that each of these files is sent from the page cache.
CACHED_FILE_SIZE_BYTES_MAX = MIB // 2


def sender(folder: Path) -> Path:
    """The program of the two least servers. Raises RivalError where it cannot be compiled."""
    binary = folder / "file_sender"
    source = Path(__file__).with_name("file_sender.c")
    command = ["cc", "-O2", "-o", str(binary), str(source), "-luring"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise rivals.RivalError(f"cc cannot be run: {error.strerror}") from None
    if done.returncode:
        raise rivals.RivalError(f"file_sender.c cannot be compiled: {done.stderr.strip()}")
    return binary


def arms(folder: Path, sizes: Sequence[int]) -> Iterator[Arm]:
    """Each server that there is here, for each size; the files are below `folder`."""
    root = folder / "root"
    root.mkdir()
    for each in (folder, root):
        each.chmod(0o755)  # some rivals' workers are another user
    binary = sender(folder)
    available = {engine.name for engine in doctor.diagnose().engines if engine.available}
    for size_bytes in sizes:
        body = content(size_bytes)
        path = root / f"{size_bytes}"
        path.write_bytes(body)
        asked = [Exchange(b"GET /%d HTTP/1.1\r\nHost: bench\r\n\r\n" % size_bytes, statuses=[200], body=body)]
        known: dict[str, float | str] = {"size_bytes": size_bytes}
        for engine in ENGINES:
            if engine not in available:
                continue

            def ours(place: Place, cpu: int, _phase: Phase, engine: str = engine) -> MeasuredProcess:
                settings: dict[str, Any] = {"cached_file_size_max": CACHED_FILE_SIZE_BYTES_MAX}
                return ServerProcess(
                    None, root=root, engine=engine, cpu=cpu, place=place, access_log="off", **settings
                )  # fmt: skip

            yield Arm(engine, f"our {engine} engine, a window of fragments", ours, asked, known)
        if rivals.why_not("nginx") is None:

            def nginx(place: Place, cpu: int, _phase: Phase) -> MeasuredProcess:
                port = port_at(place)
                return CommandProcess(rivals.command_of("nginx", root, port, folder), port, cpu=cpu, place=place)

            yield Arm("nginx", "nginx, sendfile on", nginx, asked, known)
        for way in SENDERS:

            def least(place: Place, cpu: int, _phase: Phase, way: str = way, path: Path = path) -> MeasuredProcess:
                port = port_at(place)
                command = [str(binary), way, str(port), str(path), str(cpu)]
                return CommandProcess(command, port, cpu=cpu, place=place)

            yield Arm(way, f"the least server, by {way}", least, asked, known)


def measure(results: Results, sizes: Sequence[int], blocks: int, seconds: float, place: str | None,
            on_run: Any) -> None:  # fmt: skip
    """Makes all runs, each size and server in every block."""
    phase = Phase(COST, CONNECTIONS, client_loop=True, watch_server=True)
    with tempfile.TemporaryDirectory(prefix="batchbridge-file-backed-") as folder, site(place) as (at, note):
        results.note = note
        experiment = Experiment(at, results, seconds, on_run=on_run)
        plan = [(arm, phase) for arm in arms(Path(folder), sizes)]
        for block in range(blocks):
            for arm, each in shuffled(plan, block):
                experiment.run(arm, each, block)


#: What a run tells, in microseconds a MiB but for the last.
COLUMNS = ("server", "client", "both", "threads", "MiB/s")


def figures_of(run: Run) -> dict[str, float]:
    """By name, as far as the run tells them."""
    found: dict[str, float] = {}
    if not run.valid or not run.requests_per_s:
        return found
    mib = float(run.parameters["size_bytes"]) / MIB
    if run.server_cpu_us_per_request is not None:
        found["server"] = run.server_cpu_us_per_request / mib
    if run.client_core_us_per_request is not None:
        found["client"] = run.client_core_us_per_request / mib
    if "server" in found and "client" in found:
        found["both"] = found["server"] + found["client"]
    if run.server_threads_share is not None:
        found["threads"] = run.server_threads_share * 1e6 / run.requests_per_s / mib
    found["MiB/s"] = run.requests_per_s * mib
    return found


def told(figures: dict[str, float]) -> str:
    """On one line."""
    return "  ".join(f"{name} {figures[name]:8,.1f}" if name in figures else f"{name}        ?" for name in COLUMNS)


def table(results: Results) -> Iterator[str]:
    """Lines: medians by size and server."""
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for run in results.runs:
        if figures := figures_of(run):
            found.setdefault((int(run.parameters["size_bytes"]), run.arm), []).append(figures)
    for (size_bytes, arm), runs in sorted(found.items()):
        columns = {name: [run[name] for run in runs if name in run] for name in COLUMNS}
        medians = {name: median(values) for name, values in columns.items() if values}
        yield f"{size_bytes // MIB:>3} MiB  {arm:9} {told(medians)}  ({len(runs)} runs)"


@click.command()
@click.option("--blocks", type=click.IntRange(1, 1000), default=3, show_default=True,
              help="Blocks; each has every size with every server. Three are a screen.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=0.7, show_default=True,
              help="Measured time of a run.")  # fmt: skip
@click.option("--place", type=click.Choice(PLACES), help="Two network namespaces where they can be had, unless given.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Keep the results in this file.")
def main(blocks: int, seconds: float, place: str | None, output: Path | None) -> None:
    """Measure what large files cost that no cache keeps."""
    results = Results("versus", machine=machine.facts(), settings={}, path=output)

    def tell(run: Run) -> None:
        size_bytes = run.parameters["size_bytes"]
        click.echo(
            f"block {run.block}  {size_bytes:>10,} B  {run.arm:9}  {run.invalid_reason or told(figures_of(run))}"
        )

    measure(results, SIZES, blocks, seconds, place, tell)
    for line in [*table(results), *notes_of(results.runs)]:
        click.echo(line)


if __name__ == "__main__":
    main()
