"""What a server costs: how long its core is busy for a request, whoever is busy there on its behalf.

An idle-priority loop on the server's core takes what nobody else wants; what it loses is busy time (`IdleLoop`). The
kernel's own accounting will not do: it looks at ticks, and misses softirqs that interrupt an idle core. Beside it stand
what would spoil the figure, or explains it: the time that a hypervisor took (steal), and inter-processor interrupts.

The cost of a request is the slope of busy time on the rate of requests (`slope_of`): what is busy without any request
cancels out. Where a server spins, there is no slope.

With the loop the core never sleeps: these runs tell costs, and not latencies.
"""

from __future__ import annotations

import bisect
import mmap
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from ..cython_ext import soaker
from ..errors import BatchBridgeError
from .results import Run
from .statistics import Interval, slope

__all__ = [
    "IDLE_SHARE_MIN",
    "STEAL_SHARE_MAX",
    "CoreWatch",
    "CostError",
    "IdleLoop",
    "Usage",
    "interrupts",
    "is_disturbed",
    "slope_of",
    "slopes_by_block",
]

#: A run during which a hypervisor took more than this share of a core is void.
STEAL_SHARE_MAX = 0.01
#: Stolen time is counted in ticks, and a tick of a short run is a large share: so few of them tell nothing.
STEAL_TICKS_MAX = 2
#: Where the loop gets less than this of a core without load, other programs run there, and no cost can be told.
IDLE_SHARE_MIN = 0.9

SAMPLES_PER_S = 20
START_PATIENCE_S = 10.0
CALIBRATION_S = 0.3

#: Rows of /proc/interrupts on x86: rescheduling, function call (packet steering among them), TLB shootdown. Elsewhere
#: rows "IPI0" and on, with a description.
IPI_ROWS = re.compile(r"(?:RES|CAL|TLB|IPI\d+)$")


class CostError(BatchBridgeError):
    """The idle loop cannot run, or was asked for a time that it did not see. One sentence."""


class IdleLoop:
    """The loop, a process of its own on core `cpu`, from when it runs until it is closed. Raises CostError.

    It yields at once to whatever else wants the core, as long as that is of its session and control group: where the
    kernel shares out a core between those first, an idle one of the other group has the same right to it.
    """

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        descriptor = os.memfd_create("batchbridge-idle-loop", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, soaker.SIZE_BYTES)
            self._memory = memoryview(mmap.mmap(descriptor, soaker.SIZE_BYTES)).cast("Q")
            program = "from batchbridge.cython_ext.soaker import main; main()"
            command = [sys.executable, "-P", "-c", program, str(descriptor), str(cpu), str(os.getpid())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                pass_fds=[descriptor], process_group=0,
            )  # fmt: skip
        finally:
            os.close(descriptor)
        try:
            self._wait_until_it_runs()
        except BaseException:
            self.close()
            raise

    def _wait_until_it_runs(self) -> None:
        until = time.monotonic() + START_PATIENCE_S
        while not self._memory[2]:
            if self._process.poll() is not None and self._process.stderr is not None:
                told = self._process.stderr.read().decode(errors="replace").strip().splitlines()
                raise CostError(told[-1] if told else f"the idle loop on core {self.cpu} ended")
            if time.monotonic() > until:
                raise CostError(f"core {self.cpu} had no turn for the idle loop within {START_PATIENCE_S:.0f} s")
            time.sleep(0.005)

    @property
    def own_ns(self) -> int:
        """Nanoseconds of the core that nobody else wanted, since the loop began."""
        return int(self._memory[0])

    @property
    def gaps(self) -> int:
        """How often somebody else came in between."""
        return int(self._memory[1])

    def idle_share(self, seconds: float = CALIBRATION_S) -> float:
        """What the loop gets of the core now, watched for so long: close to 1 where nothing else runs."""
        began_ns, own_ns = time.monotonic_ns(), self.own_ns
        time.sleep(seconds)
        return (self.own_ns - own_ns) / (time.monotonic_ns() - began_ns)

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def __enter__(self) -> IdleLoop:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()


def is_disturbed(steal_share: float, seconds: float) -> bool:
    """Whether a hypervisor took so much of a core in that time that the time tells nothing."""
    few = STEAL_TICKS_MAX / (seconds * os.sysconf("SC_CLK_TCK"))
    return steal_share > max(STEAL_SHARE_MAX, few)


@dataclass(frozen=True)
class Usage:
    """What happened on the server's core between two moments."""

    seconds: float
    busy_share: float | None
    """Of the time that an idle core gives to the loop; None without a loop, or where others use the core."""
    steal_share: float
    """The largest of the cores that were watched."""
    ipis: float
    """Inter-processor interrupts that the server's core took."""
    threads_share: float | None = None
    """Of the time, what the server's threads had of the core; None where that was not watched."""

    def us_per_request(self, responses: int) -> float | None:
        """Microseconds of the core by request, all that was busy divided by all that was answered."""
        if self.busy_share is None or not responses:
            return None
        return self.busy_share * self.seconds * 1e6 / responses

    def ipis_per_request(self, responses: int) -> float | None:
        """Inter-processor interrupts by request."""
        return self.ipis / responses if responses else None

    @property
    def steal_fault(self) -> str | None:
        """Why a run in this time is void; None: it is not."""
        if not is_disturbed(self.steal_share, self.seconds):
            return None
        return f"the hypervisor took {self.steal_share:.1%} of a core, more than {STEAL_SHARE_MAX:.0%}"


@dataclass(frozen=True)
class _Sample:
    at_us: int
    own_ns: int
    ipis: int
    ticks: tuple[tuple[int, int], ...]
    """(stolen, all) of each core."""
    threads_s: float = 0.0


class CoreWatch:
    """Looks at the cores, the first of them the server's, many times a second: any time within can be asked for.

    The load generator knows when its measured time began and ended only afterwards; hence the samples. `loop` is an
    idle loop on the server's core, or None where busy time is not asked for. `idle_share` is what it gets of an idle
    core; below IDLE_SHARE_MIN no busy time is told. `threads_s` tells the processor time of the server's threads, in
    seconds; None where that is not asked for. The thread that looks runs where its maker may run: keep that off the
    server's core.
    """

    def __init__(
        self,
        cpus: Sequence[int],
        loop: IdleLoop | None = None,
        idle_share: float = 1.0,
        threads_s: Callable[[], float] | None = None,
    ) -> None:
        self._cpus, self._loop, self._idle_share, self._threads_s = tuple(cpus), loop, idle_share, threads_s
        self._samples: list[_Sample] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look_again_and_again, name="batchbridge-watch", daemon=True)

    def __enter__(self) -> CoreWatch:
        self._samples.append(self._look())
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._samples.append(self._look())

    def _look_again_and_again(self) -> None:
        while not self._ending.wait(1 / SAMPLES_PER_S):
            self._samples.append(self._look())

    def _look(self) -> _Sample:
        stat = Path("/proc/stat").read_text()
        ipis = interrupts(Path("/proc/interrupts").read_text(), self._cpus[0])
        threads_s = self._threads_s() if self._threads_s is not None else 0.0
        # The loop's time and the clock, side by side and last: a delay between them would be an error of either.
        own_ns, at_us = self._loop.own_ns if self._loop else 0, time.monotonic_ns() // 1000
        return _Sample(at_us, own_ns, ipis, tuple(_ticks(stat, cpu) for cpu in self._cpus), threads_s)

    def between(self, began_us: int, ended_us: int) -> Usage:
        """What happened between two moments (CLOCK_MONOTONIC, microseconds). Raises CostError for any not watched."""
        usage = usage_between(self._samples, began_us, ended_us, self._idle_share if self._loop else None)
        return usage if self._threads_s is not None else replace(usage, threads_share=None)


def usage_between(samples: Sequence[_Sample], began_us: int, ended_us: int, idle_share: float | None) -> Usage:
    """The samples at both moments, as straight lines between their neighbours have it, and what lies in between."""
    if not samples or not samples[0].at_us <= began_us < ended_us <= samples[-1].at_us:
        raise CostError("the measured time was not watched from its beginning to its end")
    own_ns, ipis, threads_s = (
        _at(samples, ended_us, values) - _at(samples, began_us, values)
        for values in (
            [float(each.own_ns) for each in samples],
            [float(each.ipis) for each in samples],
            [each.threads_s for each in samples],
        )
    )
    seconds = (ended_us - began_us) / 1e6
    busy_share = None
    if idle_share is not None and idle_share >= IDLE_SHARE_MIN:
        busy_share = min(1.0, max(0.0, 1 - own_ns / 1e9 / seconds / idle_share))
    # Ticks are too coarse for lines between them: the samples around the time will do.
    first = samples[max(0, bisect.bisect_right([each.at_us for each in samples], began_us) - 1)]
    last = samples[min(len(samples) - 1, bisect.bisect_left([each.at_us for each in samples], ended_us))]
    steals = [
        (stolen - stolen_before) / max(1, total - total_before)
        for (stolen_before, total_before), (stolen, total) in zip(first.ticks, last.ticks, strict=True)
    ]
    return Usage(seconds, busy_share, max(steals, default=0.0), ipis, threads_s / seconds)


def _at(samples: Sequence[_Sample], at_us: int, values: Sequence[float]) -> float:
    after = min(len(samples) - 1, max(1, bisect.bisect_left([each.at_us for each in samples], at_us)))
    left, right = samples[after - 1], samples[after]
    share = (at_us - left.at_us) / max(1, right.at_us - left.at_us)
    return values[after - 1] + (values[after] - values[after - 1]) * share


def interrupts(text: str, cpu: int) -> int:
    """Inter-processor interrupts that core `cpu` has taken, out of /proc/interrupts. A core that is not there: 0."""
    header, _, rows = text.partition("\n")
    try:
        column = header.split().index(f"CPU{cpu}")
    except ValueError:
        return 0
    total = 0
    for row in rows.splitlines():
        name, _, counts = row.strip().partition(":")
        values = counts.split()
        if IPI_ROWS.match(name) and len(values) > column and values[column].isdigit():
            total += int(values[column])
    return total


def _ticks(stat: str, cpu: int) -> tuple[int, int]:
    """(stolen, all) ticks of a core, out of /proc/stat."""
    for line in stat.splitlines():
        name, *values = line.split()
        if name == f"cpu{cpu}":
            # user nice system idle iowait irq softirq steal; guest time, behind them, is in user already.
            numbers = [int(value) for value in values[:8]]
            return numbers[7], sum(numbers)
    return 0, 0


# --- the slope --------------------------------------------------------------------------------------------------------


def _points(runs: Iterable[Run]) -> list[tuple[int, float, float]]:
    """(block, answered by second, microseconds busy by second) of the valid runs that have a cost."""
    return [
        (run.block, run.responses / run.seconds, run.server_cpu_us_per_request * run.responses / run.seconds)
        for run in runs
        if run.valid and run.server_cpu_us_per_request is not None and run.seconds > 0 and run.responses
    ]


def slope_of(runs: Iterable[Run]) -> Interval | None:
    """Microseconds of the server's core by request, out of runs at several rates; None without two rates."""
    points = _points(runs)
    if len({round(rate) for _, rate, _ in points}) < 2:
        return None
    return slope([rate for _, rate, _ in points], [busy for _, _, busy in points])


def slopes_by_block(runs: Iterable[Run]) -> dict[int, float]:
    """The same for each block by itself: what arms are compared by. Blocks without two rates are left out."""
    blocks: dict[int, list[tuple[float, float]]] = {}
    for block, rate, busy in _points(runs):
        blocks.setdefault(block, []).append((rate, busy))
    return {
        block: slope([rate for rate, _ in points], [busy for _, busy in points], draws=0).mid
        for block, points in sorted(blocks.items())
        if len({round(rate) for rate, _ in points}) > 1
    }
