"""Does it matter how the two sides are joined? The same arms again, under each setting that might favour one of them.

A pair of virtual interfaces leaves checksums out and puts segmentation off, and packet steering costs interrupts that
batches save as well. So a ratio of two arms is measured under the usual setting and under others; where it changes
beyond noise, what was measured is in part the setting's doing, and a reader has to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import inf, log

from .experiment import NAMESPACES, ONE_CORE, OVERHEAD_S, Arm, Experiment, Phase, Site, shuffled
from .links import Link
from .processes import pinned
from .results import Run
from .statistics import Interval, by_block, ratio_interval

__all__ = ["FIGURES", "SETTINGS", "USUAL", "Change", "Setting", "changes", "estimate_s", "perform"]


@dataclass(frozen=True)
class Setting:
    """Where runs are made."""

    name: str
    place: str
    link: Link = Link()  # noqa: RUF009 - it is frozen


USUAL = "usual"
SETTINGS = (
    Setting(USUAL, NAMESPACES),
    Setting("MTU 9000", NAMESPACES, Link(mtu_bytes=9000)),
    Setting("no TSO, no GSO", NAMESPACES, Link(tso=False, gso=False)),
    Setting("no tx checksums", NAMESPACES, Link(tx_checksums=False)),
    Setting("no packet steering", NAMESPACES, Link(steering=False)),
    Setting("one core, loopback", ONE_CORE),
)

#: What is compared: name for the reader, and field of a run.
FIGURES = {"throughput": "requests_per_s", "server CPU": "server_cpu_us_per_request"}

Sites = Callable[[str, Link], AbstractContextManager[tuple[Site, str]]]
Announce = Callable[[int, Iterable[Arm]], None]


def estimate_s(runs: int, seconds: float) -> float:
    """About how long so many runs take."""
    return runs * (seconds + OVERHEAD_S)


def perform(
    experiment: Experiment, arms: Sequence[Arm], phase: Phase, blocks: int, sites: Sites, on_plan: Announce
) -> None:
    """Makes all runs: in every block each setting, in random order, and in it each arm. `sites` makes a place.

    Raises ExperimentError, NamespaceError and LinkError where a place cannot be made.
    """
    on_plan(blocks * len(arms) * len(SETTINGS), arms)
    for block in range(blocks):
        for place, setting in enumerate(shuffled(SETTINGS, block)):
            told = replace(phase, parameters={**phase.parameters, "setting": setting.name})
            with sites(setting.place, setting.link) as (where, _), pinned(where.client_cpu):
                experiment.site = where
                experiment.results.settings.setdefault("settings", {})[setting.name] = where.facts
                for arm in shuffled(arms, block, seed=2 + place):
                    experiment.run(arm, told, block)


# --- what the runs say ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """The ratio of an arm's figure to the base's, under a setting, and how it differs from the usual one."""

    arm: str
    setting: str
    figure: str
    """One of `FIGURES`."""
    ratio: Interval | None
    change: Interval | None
    """The ratio, divided by that of the usual setting in the same block; None for the usual setting."""
    is_beyond_noise: bool
    invalid: list[str]

    @property
    def words(self) -> str:
        """A sentence's worth."""
        if self.ratio is None or self.change is None:
            return ""
        low, mid, high = self.change
        return f"{self.arm}, {self.figure}: {self.ratio.mid:.2f} × the base, {mid:.2f} ({low:.2f}–{high:.2f}) of usual"


def changes(runs: Sequence[Run], base: str, again: str | None = None) -> list[Change]:
    """All changes, by figure, setting and arm. `again` is the arm that is the base once more: it shows the noise."""
    found = []
    arms = [arm for arm in dict.fromkeys(run.arm for run in runs) if arm != base]
    for figure in FIGURES:
        usual = {arm: _ratios(runs, arm, base, USUAL, figure) for arm in arms}
        for setting in SETTINGS:
            ratios = {arm: _ratios(runs, arm, base, setting.name, figure) for arm in arms}
            noise = _change(ratios.get(again or "", {}), usual.get(again or "", {}))
            for arm in arms:
                change = None if setting.name == USUAL else _change(ratios[arm], usual[arm])
                found.append(Change(
                    arm, setting.name, figure, ratio_interval(ratios[arm], dict.fromkeys(ratios[arm], 1.0)), change,
                    arm != again and is_beyond_noise(change, noise), _reasons(runs, arm, setting.name),
                ))  # fmt: skip
    return found


def _ratios(runs: Sequence[Run], arm: str, base: str, setting: str, figure: str) -> dict[int, float]:
    """Block by block, the arm's figure by the base's."""
    chosen = [run for run in runs if run.parameters.get("setting") == setting]
    of_arm, of_base = (by_block([run for run in chosen if run.arm == name], FIGURES[figure]) for name in (arm, base))
    return {block: of_arm[block] / of_base[block] for block in of_arm.keys() & of_base.keys() if of_base[block] > 0}


def _change(ratios: Mapping[int, float], usual: Mapping[int, float]) -> Interval | None:
    return ratio_interval(ratios, usual)


def is_beyond_noise(change: Interval | None, noise: Interval | None) -> bool:
    """Whether a change is one: its interval leaves out 1, and it is larger than any that the A/A arm may have had."""
    if change is None or change.high == inf or change.contains(1.0):
        return False
    if noise is None or noise.high == inf:
        return True
    return abs(log(change.mid)) > max(abs(log(noise.low)), abs(log(noise.high)))


def _reasons(runs: Sequence[Run], arm: str, setting: str) -> list[str]:
    chosen = [run for run in runs if run.arm == arm and run.parameters.get("setting") == setting]
    return list(dict.fromkeys(run.invalid_reason for run in chosen if run.invalid_reason is not None))
