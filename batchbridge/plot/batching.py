"""The question's figure: what batching gains, over the achieved batch size.

Panels: requests/s, server CPU per request c, and G = (c_U1 - c_B) / (c_U1 - c_K), the share of the gap between
unbatched user mode and kernel mode that batching closes. Arms without batches (U0, U1, K0, K1, rivals) are level lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.ticker import PercentFormatter

from ..measure.cost import slopes_by_block
from ..measure.results import Results, Run
from ..measure.statistics import Interval, by_block, closed_gap
from .groups import Group, Spread, evidence_note, of_phase, spoken, spread_of
from .sheet import NothingToDrawError, Sheet, footnotes_of
from .style import LINES, MARKERS, batch_axis, styled
from .throughput_latency import bars

#: Batched arms have the cool colours; the others are told apart by line style, and by colour as far as there are any.
BATCHED_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9")
LEVEL_COLOURS = {"U0": "#E69F00", "U1": "#D55E00", "K0": "#000000", "K1": "#000000"}
LEVEL_LINES: dict[str, Any] = {"U0": (0, (1, 1.2)), "U1": "--", "K0": "-.", "K1": "-"}
RIVAL_COLOUR = "#7f7f7f"
KERNEL_ARMS = ("K1", "K0")
UNBATCHED_ARM = "U1"

#: Phases of an experiment: closed loops, and open loops at several rates.
CAPACITY, COST = "capacity", "cost"

ByBlock = Mapping[int, float]


#: What a legend says of a family of arms.
FAMILIES = {"B": "B, batched", "BK": "BK, batched by the kernel side"}


@dataclass(frozen=True)
class Line:
    """A batched arm: for each batch size asked for, its runs."""

    label: str
    points: list[list[Run]]


def draw(results: Sequence[Results]) -> dict[str, Sheet]:
    """A sheet for each number of connections and each work of the handler.

    Raises NothingToDrawError without a valid run of a batched arm.
    """
    sheets: dict[str, Sheet] = {}
    runs = [run for one in results for run in one.runs if run.valid]
    settings = list(dict.fromkeys(setting_of(run) for run in of_phase(runs, CAPACITY) if is_batched(run)))
    for setting in settings:
        chosen = [run for run in runs if all(run.parameters.get(name, value) == value for name, value in setting)]
        suffix = "-".join(f"{value:g}{name.removesuffix('_us')}" for name, value in setting) if settings[1:] else ""
        sheets[suffix] = draw_setting(results, chosen, ", ".join(spoken(name, value) for name, value in setting))
    if not sheets:
        raise NothingToDrawError("no valid run is of a batched arm, B(in,out)")
    return sheets


def setting_of(run: Run) -> tuple[tuple[str, float | str], ...]:
    """What a sheet has in common."""
    return tuple((name, run.parameters[name]) for name in ("connections", "work_us") if name in run.parameters)


def is_batched(run: Run) -> bool:
    """Whether the run is of an arm B(in,out) or BK(in,out)."""
    return run.arm.startswith("B") and "in" in run.parameters


def draw_setting(results: Sequence[Results], runs: Sequence[Run], words: str) -> Sheet:
    """One sheet."""
    lines, levels = lines_of(runs), levels_of(runs)
    everything = [*(point for line in lines for point in line.points), *levels.values()]
    groups = [Group(point[0].arm, {}, throughput_runs(point)) for point in everything]
    gaps, gap_notes = gaps_of(lines, levels)
    notes = [evidence_note(results, groups), *([f"{words}."] if words else []), *cost_notes(everything), *gap_notes]
    if any(run.mean_batch_size is None for run in runs if is_batched(run)):
        notes.append("Where the achieved batch size was not measured, the one asked for is its place.")
    sheet = Sheet("What batching gains", columns=3, size_inches=(3.9, 3.5), notes=notes,
                  footnotes=footnotes_of(results))  # fmt: skip
    right = max(place_of(chosen) for line in lines for point in line.points for chosen in runs_of_panels(point))
    with styled():
        handles = draw_figure(sheet.panels[0], lines, levels, throughput_runs, throughput, scale=1e-3)
        handles.update(draw_figure(sheet.panels[1], lines, levels, cost_runs, cost))
        draw_gaps(sheet.panels[2], lines, gaps)
        for axis, title, unit in zip(
            sheet.panels,
            ("Throughput", "Server CPU", "Share of the gap closed"),
            ("1,000 requests/s", "µs/request", "G (%)"),
            strict=True,
        ):
            axis.set_title(title)
            axis.set_ylabel(unit if unit.startswith("G") else f"{title.lower().replace('cpu', 'CPU')} ({unit})")
            axis.set_xlabel("achieved batch size (requests, mean)")
            batch_axis(axis, max(right, 2.0))
        for axis in sheet.panels[:2]:
            if not axis.lines:
                say(axis, "not measured")
                continue
            axis.set_ylim(bottom=0, top=axis.get_ylim()[1] * 1.04)
    sheet.legend(list(handles.values()), list(handles))
    return sheet


# --- which runs are what ----------------------------------------------------------------------------------------------


def lines_of(runs: Iterable[Run]) -> list[Line]:
    """The batched arms: for each family (B, BK) a line for each size of response batches, its points by the size of
    request batches. Where a family's two sizes are the same everywhere, one line has them all."""
    families: dict[str, dict[tuple[Any, Any], list[Run]]] = {}
    for run in runs:
        if is_batched(run):
            points = families.setdefault(run.arm.partition("(")[0], {})
            points.setdefault((run.parameters.get("out"), run.parameters["in"]), []).append(run)
    return [line for family in sorted(families) for line in lines_of_family(family, families[family])]


def lines_of_family(family: str, points: dict[tuple[Any, Any], list[Run]]) -> list[Line]:
    """The lines of one family, from its runs by the sizes of response and request batches."""
    ordered = sorted(points, key=lambda key: (str(type(key[0])), key[0] or 0, key[1]))
    if all(size_out in (size_in, None) for size_out, size_in in ordered):
        return [Line(FAMILIES.get(family, family), [points[key] for key in ordered])]
    return [
        Line(f"{family}, responses in batches of {size:g}" if size is not None else family,
             [points[key] for key in ordered if key[0] == size])
        for size in dict.fromkeys(size for size, _ in ordered)
    ]  # fmt: skip


def levels_of(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The arms without batches."""
    levels: dict[str, list[Run]] = {}
    for run in runs:
        if not is_batched(run):
            levels.setdefault(run.arm, []).append(run)
    known = [arm for arm in LEVEL_LINES if arm in levels]
    return {arm: levels[arm] for arm in [*known, *(arm for arm in levels if arm not in known)]}


def place_of(runs: Sequence[Run]) -> float:
    """Where a point stands: its achieved batch size, or the one asked for where that was not measured."""
    sizes = [run.mean_batch_size for run in runs if run.mean_batch_size is not None]
    return median(sizes) if sizes else max(1.0, float(runs[0].parameters["in"]))


# --- figures of an arm, by block --------------------------------------------------------------------------------------


def throughput_runs(runs: Sequence[Run]) -> list[Run]:
    """The closed-loop runs, where there are any, since an open loop's rate is only what was offered."""
    runs = of_phase(runs, CAPACITY)
    return [run for run in runs if run.offered_per_s is None] or runs


def cost_runs(runs: Sequence[Run]) -> list[Run]:
    """The open-loop runs at several rates, where there are such; else those that tell the throughput."""
    several = [run for run in of_phase(runs, COST) if run.offered_per_s is not None]
    return several if slopes_by_block(several) else throughput_runs(runs)


def runs_of_panels(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs that the first panel shows, and those that the others do."""
    return [throughput_runs(runs), cost_runs(runs)]


def throughput(runs: Sequence[Run]) -> ByBlock:
    """Requests/s."""
    return by_block(throughput_runs(runs), "requests_per_s")


def cost(runs: Sequence[Run]) -> ByBlock:
    """Server CPU in microseconds per request.

    Where a block has open-loop runs at several rates, it is the slope of busy time on rate, which leaves out what is
    busy without any request; else what it is at saturation.
    """
    chosen = cost_runs(runs)
    return slopes_by_block(chosen) or by_block(chosen, "server_cpu_us_per_request")


def cost_notes(points: Iterable[Sequence[Run]]) -> list[str]:
    """How the costs were found, where that is not the same for all."""
    known = [point for point in points if cost(point)]
    saturated = list(dict.fromkeys(point[0].arm for point in known if not slopes_by_block(cost_runs(point))))
    if len(saturated) == len({point[0].arm for point in known}):
        return ["Server CPU: at saturation."] if known else []
    but = f", but at saturation of {', '.join(saturated)}" if saturated else ""
    return [f"Server CPU: the slope over open-loop rates{but}."]


Gaps = dict[tuple[str, int], list[tuple[float, Interval]]]


def gaps_of(lines: Sequence[Line], levels: Mapping[str, Sequence[Run]]) -> tuple[Gaps, list[str]]:
    """G by kernel arm and line, as (place, interval); and what has to be said of what is left out."""
    unbatched = cost(levels.get(UNBATCHED_ARM, ()))
    kernels = {arm: cost(levels[arm]) for arm in KERNEL_ARMS if arm in levels}
    kernels = {arm: costs for arm, costs in kernels.items() if costs}
    if not unbatched or not kernels:
        lacking = UNBATCHED_ARM if not unbatched else " or ".join(reversed(KERNEL_ARMS))
        return {}, [f"G is not shown: the server CPU of {lacking} was not measured."]
    gaps: Gaps = {}
    notes: list[str] = []
    for arm, kernel in kernels.items():
        undefined = 0
        for number, line in enumerate(lines):
            for point in line.points:
                gap = closed_gap(unbatched, cost(point), kernel)
                if gap is None:
                    undefined += 1
                else:
                    gaps.setdefault((arm, number), []).append((place_of(cost_runs(point)), gap))
        if undefined:
            notes.append(
                f"G against {arm} left out at {undefined} point{'' if undefined == 1 else 's'}: undefined, since the "
                f"interval of c_{UNBATCHED_ARM} − c_{arm} is not above 0, or no block has all three arms."
            )
    shown = list(dict.fromkeys(arm for arm, _ in gaps))
    if len(shown) > 1:
        notes.append(f"G: full marks and lines against {shown[0]}, hollow and dotted against {shown[1]}.")
    elif shown:
        notes.append(f"G is against {shown[0]}.")
    return gaps, notes


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw_figure(
    axis: Any,
    lines: Sequence[Line],
    levels: Mapping[str, Sequence[Run]],
    chosen: Callable[[Sequence[Run]], Sequence[Run]],
    figure: Callable[[Sequence[Run]], ByBlock],
    scale: float = 1.0,
) -> dict[str, Any]:
    """Lines and levels of one figure, each point at the batch size of the runs `chosen` for it.

    Returns the legend's handles by label.
    """
    handles: dict[str, Any] = {}
    for number, line in enumerate(lines):
        points = [(place_of(chosen(point)), figure(point)) for point in line.points]
        known = sorted((place, scaled(values, scale)) for place, values in points if values)
        if known:
            handles[line.label] = draw_points(axis, known, number)
    for arm, runs in levels.items():
        values = figure(runs)
        if values:
            spread = scaled(values, scale)
            style = {"color": LEVEL_COLOURS.get(arm, RIVAL_COLOUR), "linestyle": LEVEL_LINES.get(arm, LINES[4])}
            handles[arm] = axis.axhline(spread.middle, linewidth=1.5, zorder=1.5, **style)
            if spread.high > spread.low:
                axis.axhspan(spread.low, spread.high, color=style["color"], alpha=0.13, linewidth=0, zorder=1)
    return handles


def scaled(values: ByBlock, scale: float) -> Spread:
    """The spread of one value per block."""
    return spread_of([value * scale for value in values.values()])


def draw_points(axis: Any, points: Sequence[tuple[float, Spread]], number: int, *, hollow: bool = False) -> Any:
    """A line through medians with bars."""
    colour = BATCHED_COLOURS[number % len(BATCHED_COLOURS)]
    return axis.errorbar(
        [place for place, _ in points],
        [at.middle for _, at in points],
        yerr=bars([at for _, at in points]),
        color=colour,
        marker=MARKERS[number % len(MARKERS)],
        linestyle=":" if hollow else "-",
        markerfacecolor="white" if hollow else colour,
        markeredgecolor=colour,
        capsize=2.5,
        elinewidth=1,
    )


def draw_gaps(axis: Any, lines: Sequence[Line], gaps: Gaps) -> None:
    """G in percent, with its 95% intervals; 0 is the unbatched server, 100 the kernel."""
    # Batches of one gain least and the largest most, so these corners are the emptiest.
    for share, word, place, side in ((0, f"as {UNBATCHED_ARM}", 0.98, "right"), (100, "as the kernel", 0.02, "left")):
        axis.axhline(share, color="#444444", linewidth=0.9, linestyle="--", zorder=1)
        axis.annotate(word, (place, share), xycoords=("axes fraction", "data"), xytext=(0, 3), fontsize=8, ha=side,
                      textcoords="offset points", color="#444444")  # fmt: skip
    arms = list(dict.fromkeys(arm for arm, _ in gaps))
    for (arm, number), points in sorted(gaps.items()):
        spreads = [(place, Spread(100 * gap.low, 100 * gap.mid, 100 * gap.high)) for place, gap in sorted(points)]
        draw_points(axis, spreads, number, hollow=arm != arms[0])
    if not gaps:
        say(axis, "undefined,\nor not measured")
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, -12), max(high, 118))
    axis.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=""))


def say(axis: Any, words: str) -> None:
    """Words in the middle of a panel that has nothing to show."""
    axis.text(0.5, 0.5, words, transform=axis.transAxes, ha="center", va="center", fontsize=9, color="#444444",
              bbox={"facecolor": "white", "linewidth": 0})  # fmt: skip
