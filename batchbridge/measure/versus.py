"""Any servers against each other, each a command: run in turn, every answer compared with the server's own first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..cython_ext.load import Exchange
from .experiment import (
    CAPACITY,
    COST,
    LATENCY,
    LONE,
    Arm,
    Experiment,
    ExperimentError,
    Phase,
    are_client_limited,
    shuffled,
)
from .namespaces import Place
from .processes import CommandProcess, MeasuredProcess, port_at
from .results import Run
from .statistics import Interval, bootstrap_interval, by_block, log_ratio_interval, middle
from .traffic import learn

__all__ = ["AGAIN", "ServerFigures", "arms_of", "perform", "phase_of", "summarise"]

#: The last server once more: its ratio to itself shows what the machine's noise alone does.
AGAIN = "A/A"


@dataclass(frozen=True)
class ServerFigures:
    """A server's medians, and its ratios to the last one, paired within blocks. None: not known."""

    arm: str
    blocks: int
    invalid: list[str]
    requests_per_s: Interval | None
    is_client_limited: bool
    ratio: Interval | None
    cost_us: Interval | None
    """Server CPU by request, at saturation."""
    cost_ratio: Interval | None
    client_cost_us: float | None
    """Client CPU by request: a copy that a server saves may be made there."""
    ipis_per_request: float | None
    """Inter-processor interrupts that the server's core took: part of the cost."""
    latency_p50_us: float | None
    latency_p99_us: float | None
    latency_p50_ratio: Interval | None
    latency_p99_ratio: Interval | None


def arms_of(commands: Sequence[str], exchanges: Sequence[Exchange], port: int | None = None) -> list[Arm]:
    """An arm for each command, and the last one again. `{host}` and `{port}` in a command are filled in.

    `port` is where they all listen; None chooses a free one. Raises ExperimentError for a command that is empty, or
    has no `{port}` when none is given.
    """
    arms = [_arm(command, command, exchanges, port) for command in commands]
    return [*arms, _arm(f"{AGAIN} {commands[-1]}", commands[-1], exchanges, port)]


def _arm(name: str, command: str, exchanges: Sequence[Exchange], port: int | None) -> Arm:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ExperimentError(f"{command!r} is not a command: {str(error).lower()}") from None
    if not words:
        raise ExperimentError("a command is empty")
    if port is None and "{port}" not in command:
        raise ExperimentError(f"{command!r} does not say {{port}}; write it where the port stands, or give --port")

    def start(place: Place, cpu: int, _phase: Phase) -> MeasuredProcess:
        chosen = port or port_at(place)
        filled = [word.replace("{host}", place.host).replace("{port}", str(chosen)) for word in words]
        return CommandProcess(filled, chosen, cpu=cpu, place=place)

    def ask(server: MeasuredProcess, client: Place) -> Sequence[Exchange]:
        return client.call(lambda: learn(server.host, server.port, exchanges))

    return Arm(name, command, start, ask, program=words[0].rpartition("/")[2])


def phase_of(connections: int, *, close: bool, rate_per_s: float | None, may_sleep: bool) -> Phase:
    """The kind of run that is asked for: a closed loop or an open one; `may_sleep`: latencies, and no costs."""
    name = CAPACITY if rate_per_s is None else COST
    if may_sleep:
        name = LONE if connections == 1 and rate_per_s is None else LATENCY
    return Phase(name, connections, rate_per_s, idle_loop=not may_sleep, close=close)


def perform(experiment: Experiment, arms: Sequence[Arm], phase: Phase, blocks: int) -> None:
    """Makes all runs, every arm in every block."""
    for block in range(blocks):
        for arm, each in shuffled([(arm, phase) for arm in arms], block):
            experiment.run(arm, each, block)


def summarise(runs: Sequence[Run], base: str) -> list[ServerFigures]:
    """The figures of each server; `base` is the one that the others' ratios are to, and stands behind them."""
    arms = sorted(
        dict.fromkeys(run.arm for run in runs), key=lambda arm: (arm == base) + 2 * arm.startswith(f"{AGAIN} ")
    )
    of = {arm: [run for run in runs if run.arm == arm] for arm in arms}
    return [_figures(arm, of[arm], of.get(base, []) if arm != base else None) for arm in arms]


def _figures(arm: str, runs: Sequence[Run], base: Sequence[Run] | None) -> ServerFigures:
    valid = [run for run in runs if run.valid]

    def spread(figure: str) -> Interval | None:
        values = by_block(runs, figure)
        return bootstrap_interval(list(values.values()), median) if values else None

    def ratio(figure: str) -> Interval | None:
        return None if base is None else log_ratio_interval(runs, base, figure)

    def latency(name: str) -> float | None:
        return middle(run.latency_us.get(name) for run in valid)

    return ServerFigures(
        arm=arm,
        blocks=len(by_block(runs, "requests_per_s")),
        invalid=list(dict.fromkeys(run.invalid_reason for run in runs if run.invalid_reason is not None)),
        requests_per_s=spread("requests_per_s"),
        is_client_limited=are_client_limited(valid),
        ratio=ratio("requests_per_s"),
        cost_us=spread("server_cpu_us_per_request"),
        cost_ratio=ratio("server_cpu_us_per_request"),
        client_cost_us=middle(run.client_cpu_us_per_request for run in valid),
        ipis_per_request=middle(run.ipis_per_request for run in valid),
        latency_p50_us=latency("p50"),
        latency_p99_us=latency("p99"),
        latency_p50_ratio=ratio("latency_us.p50"),
        latency_p99_ratio=ratio("latency_us.p99"),
    )
