"""Arms against each other, fairly: fresh processes, random order within blocks, and nothing that is wrong counts.

A *phase* is a kind of run: how many connections, closed loop or open at a rate, with the idle loop (for costs) or
without (for latencies). `measure_once` makes one run of one arm; `Experiment.run_all` makes many, and keeps each.
A server that fails, answers wrongly, or whose count differs from the client's makes that run invalid.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..cython_ext.load import Exchange
from ..errors import BatchBridgeError
from . import namespaces, profile
from .cost import IDLE_SHARE_MIN, CoreWatch, IdleLoop, is_disturbed
from .links import Link
from .load import LoadFigures, is_saturated, run_load
from .namespaces import Pair, Place
from .processes import MeasuredProcess, ServerError, ServerProcess, cores
from .results import Results, Run
from .statistics import evidence_sentence

__all__ = [
    "Arm",
    "Counted",
    "Experiment",
    "ExperimentError",
    "Phase",
    "Site",
    "are_client_limited",
    "is_client_limited",
    "measure_once",
    "notes_of",
    "shuffled",
    "site",
]

WARMUP_S = 0.5
#: How long the idle loop looks at the core before there is load.
CALIBRATION_S = 0.2
#: An open loop whose answers fall behind what was offered by more than this has found the server's limit.
SHORTFALL_MAX = 0.05
#: What a server says that will not answer now.
REFUSED_STATUS = 503
#: The first answers of a kernel arm are user mode's, which then publishes them: to each request so many.
KERNEL_HITS_MIN = 0.9
PUBLISHING_ANSWERS = 4
#: Runs take this much longer than their measured time: processes start, warm up and end.
OVERHEAD_S = 1.8
#: A run that the hypervisor disturbed is made again, up to so many times: what voids it is not the arm's doing.
DISTURBED_AGAIN_MAX = 2

#: Where server and client run: in two namespaces; on two cores over loopback; on one core, over loopback.
NAMESPACES, LOOPBACK, ONE_CORE = PLACES = ("namespaces", "loopback", "one-core")
ONE_CORE_CAVEAT = (
    "Measured with server and client on one core: no interrupt goes from one to another, a request's cost is both "
    "sides' together, and rates are what one core does for both."
)

CAPACITY, COST, LATENCY, LONE, OVERLOAD = "capacity", "cost", "latency", "lone", "overload"
COST_PHASES = (CAPACITY, COST)


USUAL = Link()

Planned = TypeVar("Planned")


class ExperimentError(BatchBridgeError):
    """The experiment cannot be made here. One sentence."""


@dataclass(frozen=True)
class Site:
    """Where runs are made: a core and a place for the server, and for the client."""

    server_cpu: int
    client_cpu: int
    pair: Pair = field(default_factory=Pair)

    @property
    def facts(self) -> dict[str, Any]:
        """For a results file: the place, and what its link does."""
        place = NAMESPACES if not self.pair.is_loopback else ONE_CORE if self.is_one_core else LOOPBACK
        return {"place": place, "link": dict(self.pair.link)}

    @property
    def is_one_core(self) -> bool:
        """Whether both sides share a core."""
        return self.server_cpu == self.client_cpu


@dataclass(frozen=True)
class Phase:
    """A kind of run."""

    name: str
    """capacity, cost, latency, lone …"""
    connections: int
    rate_per_s: float | None = None
    """Open loop at that rate; None: closed loop."""
    idle_loop: bool = True
    """Whether the idle loop tells the server's cost. The core never sleeps then, so latencies take a run without."""
    close: bool = False
    """A connection for each request."""
    parameters: dict[str, float | str] = field(default_factory=dict)
    """What else tells its runs from others."""
    client_loop: bool = False
    """An idle loop on the client's core as well: what the kernel does there for the server, such as a copy that a
    zero-copy send puts off, is in no thread's time. That core never sleeps then, so the server wakes it for less."""
    watch_server: bool = False
    """Also tells how much of the core the server's threads had. Looking takes the client's core some of its time."""

    @property
    def is_overload(self) -> bool:
        """More may be asked than can be answered: what is refused, lost or late is a figure, and no fault."""
        return self.name == OVERLOAD


@dataclass(frozen=True)
class Arm:
    """A server to be measured. `start` makes its process at a place, pinned to a core, ready for a phase."""

    name: str
    what: str
    """A sentence for the reader."""
    start: Callable[[Place, int, Phase], MeasuredProcess]
    exchanges: Sequence[Exchange] | Callable[[MeasuredProcess, Place], Sequence[Exchange]]
    """The requests, with the answers that they must have; or how to learn them."""
    parameters: dict[str, float | str] = field(default_factory=dict)
    route: str | None = None
    """Whose batches are counted."""
    spins: bool = False
    """It keeps its core busy without load, so its cost is told at saturation only."""
    hits_in_kernel: bool = False
    """It is only what it is called where the kernel side answers nearly all; else the run is invalid."""
    check: Callable[[Counted], str | None] | None = None
    """Why a run whose counters say this is not of the arm, and so invalid; None: it is."""
    program: str | None = None
    """File name of the server's program where it is not ours: its engine in the profile."""


@dataclass
class Experiment:
    """Runs into results, one after the other; `results` are saved after each where they have a path."""

    site: Site
    results: Results
    seconds: float
    warmup_s: float = WARMUP_S
    with_profile: bool = False
    on_run: Callable[[Run], None] = lambda _run: None
    """Told of each run that is made."""
    _known: set[str] = field(default_factory=set)

    def run(self, arm: Arm, phase: Phase, block: int) -> Run:
        """Makes one run, again where the hypervisor took too much of it, and keeps the last."""
        for _ in range(1 + DISTURBED_AGAIN_MAX):
            run, commands = measure_once(
                self.site, arm, phase, block, seconds=self.seconds, warmup_s=self.warmup_s,
                with_profile=self.with_profile,
            )  # fmt: skip
            if run.valid or run.steal_share is None or not is_disturbed(run.steal_share, run.seconds):
                break
        # Blocks differ in ports and seeds alone: the commands of the first stand for all.
        if (kind := f"{arm.name} {sorted(run.parameters.items())}") not in self._known:
            self._known.add(kind)
            for command in commands:
                self.results.add_command(command)
        self.results.append(run)
        self.on_run(run)
        return run


def shuffled(plan: Iterable[Planned], block: int, seed: int = 1) -> list[Planned]:
    """The plan in the order of that block: random, and the same each time."""
    ordered = list(plan)
    random.Random(f"{seed} {block}").shuffle(ordered)
    return ordered


@contextlib.contextmanager
def site(place: str | None = None, link: Link = USUAL) -> Iterator[tuple[Site, str]]:
    """A site, and what has to be said of it ("" or a sentence).

    `place`: one of `PLACES`; None takes the namespaces where they can be had, else loopback. `link`: of the
    namespaces. Raises ExperimentError on a single core, unless `place` is "one-core", and where a link is asked for
    that loopback has not; NamespaceError, LinkError.
    """
    server_cpu, client_cpu = cores()
    if place == ONE_CORE:
        only = min(os.sched_getaffinity(0))
        server_cpu, client_cpu = only, only
    if server_cpu is None or client_cpu is None:
        raise ExperimentError("measuring takes two cores, one for the server and one for its client; this has one")
    reason = None if place in (LOOPBACK, ONE_CORE) else namespaces.why_not()
    if place == NAMESPACES or (place is None and reason is None):
        with namespaces.within(server_cpu, client_cpu, link) as pair:
            yield Site(server_cpu, client_cpu, pair), f"Link: {link.words}." if link.words else ""
        return
    if link.words:
        raise ExperimentError(f"{link.words}: that is a setting of the link between namespaces, not of loopback")
    note = f"Measured over loopback: {namespaces.LOOPBACK_CAVEAT}{f' ({reason})' if reason else ''}."
    yield Site(server_cpu, client_cpu), ONE_CORE_CAVEAT if place == ONE_CORE else note


def is_client_limited(run: Run) -> bool:
    """Whether the client was so busy that the figures may be its own."""
    is_open = run.offered_per_s is not None
    return run.client_idle_share is not None and is_saturated(run.client_idle_share, is_open=is_open)


def are_client_limited(runs: Sequence[Run]) -> bool:
    """Whether it was in half of the valid ones."""
    valid = [run for run in runs if run.valid]
    return bool(valid) and sum(map(is_client_limited, valid)) * 2 >= len(valid)


def notes_of(runs: Sequence[Run]) -> list[str]:
    """What has to be said beside the figures of these runs: sentences."""
    notes = []
    if (evidence := evidence_sentence(len({run.block for run in runs if run.valid}))) != "":
        notes.append(f"{evidence[0].upper()}{evidence[1:]}.")
    asked = [run for run in runs if run.valid and run.parameters.get("phase") in COST_PHASES]
    # Where the client was the limit, what spins tells none either.
    lacking = sum(run.server_cpu_us_per_request is None and not is_client_limited(run) for run in asked)
    if lacking:
        notes.append(
            f"In {lacking} of {len(asked)} runs other programs had more than {1 - IDLE_SHARE_MIN:.0%} of the server's "
            "core before there was any load: these tell no cost."
        )
    return notes


# --- one run ----------------------------------------------------------------------------------------------------------


def measure_once(
    where: Site, arm: Arm, phase: Phase, block: int, *, seconds: float, warmup_s: float, with_profile: bool = False
) -> tuple[Run, list[list[str]]]:
    """A fresh run, and the exact commands of server and client. What fails makes it invalid, with a reason."""
    run = Run(arm.name, block, parameters(arm, phase))
    commands: list[list[str]] = []
    try:
        with arm.start(where.pair.server, where.server_cpu, phase) as server:
            commands.append(server.command)
            asked = arm.exchanges(server, where.pair.client) if callable(arm.exchanges) else arm.exchanges
            counted = counters(server, arm.route)
            with contextlib.ExitStack() as watching:
                loop = watching.enter_context(IdleLoop(where.server_cpu)) if phase.idle_loop else None
                # What spins leaves the loop nothing from the beginning; all that an idle core gives is known to be 1.
                idle_share = loop.idle_share(CALIBRATION_S) if loop is not None and not arm.spins else 1.0
                recorder = watching.enter_context(profile.Recorder(where.server_cpu)) if with_profile else None
                client_watch = None
                if phase.client_loop and not where.is_one_core:
                    client_loop = watching.enter_context(IdleLoop(where.client_cpu))
                    client_watch = watching.enter_context(
                        CoreWatch([where.client_cpu], client_loop, client_loop.idle_share(CALIBRATION_S))
                    )
                cpus = [where.server_cpu, where.client_cpu]
                threads_s = server.cpu_s if phase.watch_server else None
                watch = watching.enter_context(CoreWatch(cpus, loop, idle_share, threads_s))
                figures = run_load(
                    server.host, server.port, asked, connections=phase.connections, seconds=seconds, warmup_s=warmup_s,
                    rate_per_s=phase.rate_per_s, close=phase.close, cpu=where.client_cpu, seed=block + 1,
                    prefix=where.pair.client.prefix,
                )  # fmt: skip
                commands.append(figures.command)
                found = recorder.profile(arm.program) if recorder is not None else None
            fill(run, figures, watch, client_watch)
            if arm.spins and is_client_limited(run):
                # All of the core is busy whatever it does: by request that is a cost only where it could not do more.
                run.server_cpu_us_per_request = None
            if where.is_one_core:
                # The client waits for its core while the server has it: that is no sign that the client is the limit.
                run.client_idle_share = None
            run.profile = found.shares if found is not None and found.samples else None
            batches = difference(counters(server, arm.route), counted)
            run.batch_sizes, run.mean_batch_size = batches.sizes, batches.mean_size
            if batches.read:
                run.loops_per_s = batches.loops / batches.read * figures.requests_per_s
            if phase.is_overload:
                fault = overload_fault_of(figures, watch)
                count_errors(run, figures)
            else:
                fault = figures.invalid_reason or fault_of(figures, watch, batches)
            published = figures.requests - PUBLISHING_ANSWERS * len(asked)
            if fault is None and arm.hits_in_kernel and batches.kernel_hits < KERNEL_HITS_MIN * published:
                fault = f"the kernel side answered {batches.kernel_hits:,} of {figures.requests:,} requests"
            if fault is None and arm.check is not None:
                fault = arm.check(batches)
            if fault is None and server.process.poll() is not None:
                fault = f"the server ended with status {server.process.returncode}"
    except ServerError as error:
        fault = str(error)
    run.valid, run.invalid_reason = fault is None, fault
    return run, commands


def parameters(arm: Arm, phase: Phase) -> dict[str, float | str]:
    """What tells a run from others of the experiment."""
    rate = {} if phase.rate_per_s is None else {"rate_per_s": phase.rate_per_s}
    return {**arm.parameters, "phase": phase.name, "connections": phase.connections, **rate, **phase.parameters}


def fill(run: Run, figures: LoadFigures, watch: CoreWatch, client_watch: CoreWatch | None = None) -> None:
    """The client's figures, and what the cores showed meanwhile, if the client came to measuring at all."""
    for name, value in figures.run_fields().items():
        setattr(run, name, value)
    run.asked = figures.requests + figures.unissued
    if figures.ended_us > figures.began_us:
        usage = watch.between(figures.began_us, figures.ended_us)
        run.server_cpu_us_per_request = usage.us_per_request(figures.responses)
        run.ipis_per_request = usage.ipis_per_request(figures.responses)
        run.steal_share = usage.steal_share
        run.server_threads_share = usage.threads_share
        if client_watch is not None:
            usage = client_watch.between(figures.began_us, figures.ended_us)
            run.client_core_us_per_request = usage.us_per_request(figures.responses)


def count_errors(run: Run, figures: LoadFigures) -> None:
    """Leaves right answers in the run's rate, and counts the others. Latencies are those of all answers."""
    refused, answers = figures.statuses.get(REFUSED_STATUS, 0), sum(figures.statuses.values())
    if answers:
        run.requests_per_s = figures.requests_per_s * (1 - refused / answers)
    run.errors = {"refused": refused, "unanswered": figures.unanswered, "unissued": figures.unissued}


def overload_fault_of(figures: LoadFigures, watch: CoreWatch) -> str | None:
    """Why a run under overload is void; None: it is not."""
    wrong = figures.wrong["answers"] - figures.statuses.get(REFUSED_STATUS, 0)
    if wrong:
        return f"{wrong:,} of the server's answers were wrong, and not because it refused"
    return watch.between(figures.began_us, figures.ended_us).steal_fault


def fault_of(figures: LoadFigures, watch: CoreWatch, counted: Counted) -> str | None:
    """Why a run that the client found nothing wrong with is void all the same; None: it is not."""
    if counted.read is not None and counted.read != figures.requests:
        return f"the server counted {counted.read:,} requests, the client sent {figures.requests:,}"
    offered = figures.offered_per_s
    if offered is not None and figures.requests_per_s < offered * (1 - SHORTFALL_MAX):
        return f"of {offered:,.0f} requests/s offered, {figures.requests_per_s:,.0f} were answered"
    return watch.between(figures.began_us, figures.ended_us).steal_fault


# --- what our server counts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """Requests read, and batches of a route by size; None, and none, of a server that is not ours."""

    read: int | None
    kernel_hits: int = 0
    loops: int = 0
    items: int = 0
    batches: int = 0
    pieces: int = 0
    """Sends of large or slow responses, which leave by themselves."""
    zero_copy: int = 0
    """Of them, those without a copy."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """(largest size of a power of two, batches)."""

    @property
    def mean_size(self) -> float | None:
        """Requests by batch."""
        return self.items / self.batches if self.batches else None


def counters(server: MeasuredProcess, route: str | None) -> Counted:
    """What the server has counted until now. Raises ServerError."""
    return counted_in(server.stats(), route) if isinstance(server, ServerProcess) else Counted(None)


def counted_in(stats: dict[str, Any], route: str | None) -> Counted:
    """The same, of a server's statistics."""
    read = int(stats["requests"]["read"])
    hits = int(stats.get("kernel_side", {}).get("hits", 0))
    loops = int(stats.get("engine", {}).get("loops", 0))
    sends = stats.get("sends", {})
    pieces, zero_copy = int(sends.get("pieces", 0)), int(sends.get("zero_copy", 0))
    found: dict[str, Any] = stats["routes"].get(route, {}) if route is not None else {}
    if not found:
        return Counted(read, hits, loops, pieces=pieces, zero_copy=zero_copy)
    sizes = [(1 << power, count) for power, count in enumerate(found["batch_size_histogram"])]
    return Counted(read, hits, loops, found["items"], found["batches"], pieces, zero_copy, sizes)


def difference(after: Counted, before: Counted) -> Counted:
    """What was counted in between; sizes without any batch are left out."""
    read = None if after.read is None or before.read is None else after.read - before.read
    earlier = dict(before.sizes)
    sizes = [(size, count - earlier.get(size, 0)) for size, count in after.sizes]
    return Counted(
        read,
        after.kernel_hits - before.kernel_hits,
        after.loops - before.loops,
        after.items - before.items,
        after.batches - before.batches,
        after.pieces - before.pieces,
        after.zero_copy - before.zero_copy,
        [pair for pair in sizes if pair[1] > 0],
    )
