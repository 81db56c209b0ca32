"""Synthetic results, as runs would leave them: every kind, with figures that follow from the parameters."""

import math
import random
from typing import Any

from batchbridge.measure.cost import Usage
from batchbridge.measure.load import LoadFigures
from batchbridge.measure.results import Results, Run

MACHINE = {"processor": "A Test Processor", "cores": 2, "kernel": "Linux 6.18.0"}


def make_run(
    arm: str, block: int, parameters: dict[str, Any], *, rate: float, latency_us: float, cpu_us: float | None = None,
    batch: float | None = None, **more: Any,
) -> Run:  # fmt: skip
    """A run whose latencies are lognormal around `latency_us`, and whose batches are around `batch`."""
    chance = random.Random(f"{arm} {block} {sorted(parameters.items())}")
    latencies = sorted(latency_us * math.exp(chance.gauss(0, 0.5)) for _ in range(500))
    counts: dict[int, int] = {}
    for latency in latencies:
        bucket = 1 << int(math.log2(latency))
        counts[bucket] = counts.get(bucket, 0) + 1
    sizes = sorted({max(1, round(batch * factor)) for factor in (0.5, 1, 2)}) if batch else []
    return Run(
        arm, block, parameters,
        seconds=1.0, responses=int(rate), requests_per_s=rate * chance.uniform(0.98, 1.02),
        latency_us={"p50": latencies[250], "p99": latencies[495]}, histogram=sorted(counts.items()),
        server_cpu_us_per_request=cpu_us and cpu_us * chance.uniform(0.98, 1.02),
        batch_sizes=[(size, 100) for size in sizes], mean_batch_size=batch, **more,
    )  # fmt: skip


class StillWatch:
    """A CoreWatch that has seen nothing but some stolen time."""

    def __init__(self, steal_share: float = 0.0) -> None:
        self.usage = Usage(1.0, 0.5, steal_share, 0.0)

    def between(self, _began_us: int, _ended_us: int) -> Usage:
        return self.usage


def client_figures(
    requests: int = 1000, requests_per_s: float = 1000.0, offered_per_s: float | None = None
) -> LoadFigures:
    """What a client tells that found nothing wrong."""
    return LoadFigures(
        requests=requests, responses=900, seconds=1.0, requests_per_s=requests_per_s, offered_per_s=offered_per_s,
        latency_us={}, histogram=[], idle_share=0.5, saturated=False, late_us=None, wrong={}, failures={},
        is_valid=True, invalid_reason=None, command=[],
    )  # fmt: skip


def sweep_results(blocks: int = 3, rate_per_s: float | None = 50_000.0, *, cpu: bool = True) -> Results:
    results = Results("sweep", machine=MACHINE, settings={"rate_per_s": rate_per_s})
    for block in range(blocks):
        for size in (1, 8, 64):
            for delay in (0, 400):
                results.runs.append(make_run(
                    "tune", block, {"max_batch_size": size, "max_queue_delay_us": delay}, rate=50_000.0 - 9000 / size,
                    latency_us=500 + delay + 900 / size, cpu_us=5 + 4 / size if cpu else None, batch=size * 0.7,
                    offered_per_s=rate_per_s,
                ))  # fmt: skip
    return results


def batching_results(
    blocks: int = 4,
    sizes: tuple[int, ...] = (1, 8, 64),
    outs: tuple[int, ...] | None = None,
    levels: tuple[str, ...] = ("U0", "U1", "K0", "K1", "nginx"),
    *,
    cpu: bool = True,
    settings: tuple[dict[str, Any], ...] = ({"connections": 64, "work_us": 0},),
) -> Results:
    """`outs` None: responses go back in batches as large as they came."""
    costs = {"U0": 11.0, "U1": 8.0, "K0": 5.0, "K1": 5.2, "nginx": 22.0}
    results = Results("batching", machine=MACHINE)
    for block in range(blocks):
        for common in settings:
            for arm in levels:
                cost = costs[arm]
                results.runs.append(make_run(arm, block, common, rate=9e5 / cost, latency_us=400,
                                             cpu_us=cost if cpu else None))  # fmt: skip
            for size in sizes:
                for out in outs or (size,):
                    cost = 5.3 + 2.0 / size + 0.5 / out
                    results.runs.append(make_run(
                        f"B({size},{out})", block, {**common, "in": size, "out": out}, rate=9e5 / cost,
                        latency_us=450, cpu_us=cost if cpu else None, batch=size * 0.9,
                    ))  # fmt: skip
    return results


def versus_results(blocks: int = 3, arms: tuple[str, ...] = ("batchbridge", "nginx")) -> Results:
    results = Results("versus", machine=MACHINE)
    for block in range(blocks):
        for place, arm in enumerate(arms):
            for rate in (20_000, 40_000, 80_000):
                answered = min(rate, 90_000 / (1 + place))
                results.runs.append(make_run(arm, block, {"rate_per_s": rate, "connections": 64}, rate=answered,
                                             latency_us=300 * (1 + place), cpu_us=6.0, offered_per_s=float(rate),
                                             batch=4.0 if place == 0 else None))  # fmt: skip
    return results


def load_results() -> Results:
    run = make_run("load", 0, {"connections": 64}, rate=100_000.0, latency_us=300)
    return Results("load", machine=MACHINE, runs=[run])


def rates_results(blocks: int = 3) -> Results:
    """Arms at two rates, without and with batches."""
    results = Results("batching", machine=MACHINE)
    for block in range(blocks):
        for arm, base in (("U1", 9.0), ("B(64,64)", 6.0), ("K1", 7.0)):
            for share, rate in ((0.2, 20_000.0), (0.8, 80_000.0)):
                parameters = {"phase": "cost", "connections": 64, "work_us": 0, "rate_share": share, "rate_per_s": rate}
                run = make_run(arm, block, parameters, rate=rate, latency_us=300, batch=8.0, offered_per_s=rate,
                               client_idle_share=0.5)  # fmt: skip
                run.server_cpu_us_per_request = base + 2 / share + block / 10
                results.runs.append(run)
    return results


def overload_results(blocks: int = 3) -> Results:
    """A server that keeps its goodput, and one that loses it; both with a capacity of 100,000/s."""
    results = Results("overload", machine=MACHINE, settings={"close": True})
    for block in range(blocks):
        for arm, lost in (("kernel", 0.0), ("nginx", 0.3)):
            results.runs.append(make_run(arm, block, {"phase": "capacity", "connections": 256}, rate=100_000.0,
                                         latency_us=300, batch=8.0, client_idle_share=0.5))  # fmt: skip
            for load in (0.5, 1.0, 2.0, 3.0):
                goodput = 100_000.0 * (min(load, 1.0) - lost * max(0.0, load - 1))
                results.runs.append(make_run(
                    arm, block, {"phase": "overload", "connections": 8192, "load": load, "rate_per_s": 1e5 * load},
                    rate=goodput, latency_us=300 * load, batch=8.0, offered_per_s=1e5 * load, asked=1000,
                    errors={"refused": 0, "unanswered": 500, "unissued": 0}, server_threads_share=0.8,
                    loops_per_s=1000.0, client_idle_share=0.01 if load == 3.0 else 0.5,
                ))  # fmt: skip
    return results
