"""What a sweep came to: tables and sentences for a person, JSON for a program, TOML for the server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..measure.cost import STEAL_SHARE_MAX
from ..measure.results import ResultsError, Run, write_atomically
from ..measure.statistics import evidence_sentence, ratio_interval
from .goals import AS_GOOD_SHARE, Figure, Outcome, Verdict
from .space import Candidate

__all__ = ["TOML_HEADER", "as_json", "front_table", "sentences", "steal_sentences", "toml", "write_toml"]

#: Files that begin so are ours to replace.
TOML_HEADER = "# Written by batchbridge tune"


def front_table(verdict: Verdict, present: Candidate) -> Table:
    """The Pareto front: what has a lower p99 costs more, and what costs less has a higher one."""
    beside = "throughput" if verdict.goal.objective == "throughput" else "server CPU per request"
    table = Table(title=f"Pareto front: p99 latency against {beside}", title_justify="left", box=None, pad_edge=False)
    for name in ("batch size", "delay µs", "p99 µs", "95% interval", "CPU µs", "requests/s", ""):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=name != "")
    shown = [*verdict.front, *([] if verdict.best in verdict.front else [verdict.best])]
    for outcome in shown:
        words = [
            *(["recommended"] if outcome is verdict.best else []),
            *(["within noise of it"] if outcome in verdict.equals else []),
            *(["as it is now"] if outcome.candidate == present else []),
            *(["not on the front"] if outcome not in verdict.front else []),
        ]
        table.add_row(
            f"{outcome.candidate.max_batch_size}",
            f"{outcome.candidate.max_queue_delay_us}",
            f"{outcome.middle('p99_us'):,.0f}",
            interval_words(outcome, "p99_us"),
            f"{outcome.middle('cpu_us'):.2f}" if outcome.cpu_us else "unknown",
            f"{outcome.middle('requests_per_s'):,.0f}",
            ", ".join(words),
        )
    return table


def interval_words(outcome: Outcome, figure: Figure) -> str:
    """ "1,100 to 1,400"; a dash with one block, which has no spread."""
    low, _, high = outcome.interval(figure)
    return f"{low:,.0f} to {high:,.0f}" if len(getattr(outcome, figure)) > 1 else "–"


def sentences(verdict: Verdict, outcomes: Sequence[Outcome], route: str, present: Candidate) -> list[str]:
    """The recommendation, its margin, what it gains, and how far all that can be believed."""
    best = verdict.best
    lines = [f"Recommended for {route}: {best.candidate}."]
    p99_us = best.middle("p99_us")
    if verdict.goal.p99_us is not None:
        firmly = "" if verdict.is_firm else ", though its interval reaches beyond the goal: within noise"
        lines.append(
            f"Its p99 of {p99_us:,.0f} µs is {verdict.margin:.0%} below the goal of {verdict.goal.p99_us:,} µs{firmly}."
        )
    lines += gain_sentences(verdict, outcomes, present)
    if verdict.equals:
        lines.append(
            f"Within noise of it in {objective_words(verdict)}: "
            f"{'; '.join(str(outcome.candidate) for outcome in verdict.equals[:4])}"
            f"{f' and {len(verdict.equals) - 4} more' if len(verdict.equals) > 4 else ''}. "
            f"Of those that are not worse by {AS_GOOD_SHARE:.0%} it has the least p99."
        )
    for outcome in verdict.left_out:
        lines.append(f"Left out: {outcome.candidate}, since {outcome.invalid_reason}.")
    blocks = len(best.p99_us)
    if note := evidence_sentence(blocks):
        lines.append(f"{note[0].upper()}{note[1:]}.")
    return lines


def steal_sentences(runs: Sequence[Run]) -> list[str]:
    """Whether the hypervisor took so much that the figures are doubtful."""
    stolen = sum(run.valid and (run.steal_share or 0.0) > STEAL_SHARE_MAX for run in runs)
    if not stolen:
        return []
    return [
        f"In {stolen} of {len(runs)} runs the hypervisor took more than {STEAL_SHARE_MAX:.0%} of a core: "
        "their latencies are partly its own."
    ]


def objective_words(verdict: Verdict) -> str:
    """What was to be best."""
    if verdict.goal.objective == "throughput":
        return "throughput"
    return "server CPU" if verdict.best.cpu_us else "p99 latency"


def gain_sentences(verdict: Verdict, outcomes: Sequence[Outcome], present: Candidate) -> list[str]:
    """How the recommendation compares with the setting before, within the blocks that both ran in."""
    before = next((outcome for outcome in outcomes if outcome.candidate == present), None)
    best = verdict.best
    if before is None or before.invalid_reason is not None:
        return []
    if before.candidate == best.candidate:
        return ["That is how it is set now."]
    parts = []
    figures: tuple[tuple[Figure, str, str], ...] = (
        ("p99_us", "p99 latency", "µs"),
        ("cpu_us", "server CPU", "µs/request"),
        ("requests_per_s", "throughput", "requests/s"),
    )
    for figure, name, unit in figures:
        if figure == "requests_per_s" and verdict.goal.objective != "throughput":
            continue
        ratio = ratio_interval(getattr(best, figure), getattr(before, figure))
        if ratio is None:
            continue
        digits = 2 if unit == "µs/request" else 0
        change = f"{ratio.mid - 1:+.0%} within blocks" if not ratio.contains(1.0) else "within noise"
        then, now = before.middle(figure), best.middle(figure)
        parts.append(f"{name} {then:,.{digits}f} → {now:,.{digits}f} {unit} ({change})")
    return [f"Against {present} as it is now: {'; '.join(parts)}."] if parts else []


def as_json(verdict: Verdict, outcomes: Sequence[Outcome], settings: dict[str, Any], files: dict[str, str]) -> str:
    """The verdict, all settings that were tried, and the files that were written."""

    def plain(outcome: Outcome) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for figure in ("p99_us", "cpu_us", "requests_per_s"):
            values = getattr(outcome, figure)
            figures[figure] = None
            if values:
                low, middle, high = outcome.interval(figure)
                interval = [low, high] if len(values) > 1 else None
                figures[figure] = {"median": middle, "interval": interval, "blocks": len(values)}
        return {**outcome.candidate._asdict(), **figures, "invalid_reason": outcome.invalid_reason}

    content = {
        "goal": {"objective": verdict.goal.objective, "p99_us": verdict.goal.p99_us},
        "recommendation": {**plain(verdict.best), "margin": verdict.margin, "is_firm": verdict.is_firm},
        "within_noise": [plain(outcome) for outcome in verdict.equals],
        "front": [plain(outcome) for outcome in verdict.front],
        "tried": [plain(outcome) for outcome in outcomes],
        "settings": settings,
        "files": files,
    }
    return json.dumps(content, indent=1, allow_nan=False)


def toml(verdict: Verdict, route: str, load_words: str) -> str:
    """The recommendation as a part of a configuration file that ``serve --config`` takes."""
    best = verdict.best.candidate
    margin = "" if verdict.margin is None else f", {verdict.margin:.0%} below the goal"
    return (
        f"{TOML_HEADER}, for the goal: {verdict.goal}.\n"
        f"# Measured {load_words}: p99 {verdict.best.middle('p99_us'):,.0f} µs{margin}.\n"
        f"\n[route.{json.dumps(route, ensure_ascii=False)}]\n"
        f"max_batch_size = {best.max_batch_size}\n"
        f"max_queue_delay_us = {best.max_queue_delay_us}\n"
    )


def check_toml_path(path: Path) -> None:
    """Raises ResultsError where a file is there that was not written here: it may be somebody's configuration."""
    try:
        begin = path.read_bytes()[: len(TOML_HEADER.encode())]
    except FileNotFoundError:
        return
    except OSError as error:
        raise ResultsError(f"--config: {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    if begin != TOML_HEADER.encode():
        raise ResultsError(f"--config: {path} was not written by batchbridge tune and is not replaced; name another")


def write_toml(path: Path, content: str) -> None:
    """Writes the file in one step. Raises ResultsError."""
    write_atomically(path, content.encode())
