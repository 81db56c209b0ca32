"""What the arms cost at the rates that they were offered: the server's core, what that is by request, and the tail.

A slope over these rates is one figure for all of them. It leaves out what they share, such as waking up, which batches
save most of where there is little to do; so the rates are shown one by one, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, PercentFormatter

from ..measure.experiment import COST
from ..measure.results import Results, Run
from .groups import Group, collect, evidence_note, spoken
from .lines import draw_arms, in_ms, is_hollow, name_axes
from .sheet import NothingToDrawError, Sheet, footnotes_of
from .style import COLOURS, logarithmic, styled
from .throughput_latency import latency

WORK = "work_us"


def draw(results: Sequence[Results]) -> dict[str, Sheet]:
    """A sheet for each work of the handler. Raises NothingToDrawError without a valid run at an offered rate."""
    groups = [group for group in collect(results[0], COST) if group.parameters.get("phase") == COST]
    if not groups:
        raise NothingToDrawError("no valid run was offered a rate (--rate-share)")
    works = sorted({float(group.parameters.get(WORK, 0)) for group in groups})
    of = {work: [group for group in groups if group.parameters.get(WORK, 0) == work] for work in works}
    return {f"{work:g}work" if works[1:] else "": draw_work(results, of[work], work) for work in works}


def draw_work(results: Sequence[Results], groups: Sequence[Group], work: float) -> Sheet:
    """One sheet."""
    arms = sorted({group.arm for group in groups})
    notes = [evidence_note(results, groups), words_of(groups, work)]
    if any(is_hollow(group) for group in groups):
        notes.append("Hollow: the client had no time left, so it may have waited for itself.")
    if len(arms) > len(COLOURS):
        notes.append(f"{len(COLOURS)} of {len(arms)} arms shown.")
    sheet = Sheet("Cost at offered rates", columns=3, size_inches=(3.9, 3.5), notes=notes,
                  footnotes=footnotes_of(results))  # fmt: skip
    arms = arms[: len(COLOURS)]
    with styled():
        busy, cost, tail = sheet.panels
        handles = draw_arms(
            sheet.panels, groups, arms, rate_of,
            lambda _arm: (busy_share, lambda run: run.server_cpu_us_per_request, in_ms(latency("p99"))),
        )  # fmt: skip
        name_axes(sheet.panels, "offered rate (1,000 requests/s)", (
            ("Busy", "busy time of the server's core (%)"),
            ("Server CPU", "server CPU (µs/request)"),
            ("Tail latency", "p99 latency (ms)"),
        ))  # fmt: skip
        for axis in sheet.panels:
            axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate / 1e3:g}"))
        for axis in (busy, cost):
            axis.set_ylim(bottom=0)
        busy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
        logarithmic(tail, "y")
    sheet.legend(handles, arms)
    return sheet


def words_of(groups: Sequence[Group], work: float) -> str:
    """What was offered."""
    connections = spoken("connections", groups[0].parameters.get("connections", 0))
    worked = f", {spoken(WORK, work)}" if work else ""
    return f"Open loop, {connections}{worked}; batches wait to be full; a core that never sleeps."


def rate_of(group: Group) -> float:
    """Requests/s that were offered."""
    return float(group.parameters["rate_per_s"])


def busy_share(run: Run) -> float | None:
    """The share of the time that the server's core was busy."""
    cost = run.server_cpu_us_per_request
    return None if cost is None else cost * run.requests_per_s / 1e6
