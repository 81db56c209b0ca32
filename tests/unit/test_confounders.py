"""A ratio that a setting changes is told from one that noise moves: the change is paired within blocks, leaves out 1,
and is larger than what the A/A arm shows under the same setting.
"""

import contextlib

import pytest

from batchbridge.measure.confounders import SETTINGS, USUAL, changes, is_beyond_noise, perform
from batchbridge.measure.experiment import NAMESPACES, ONE_CORE, Arm, Phase, Site
from batchbridge.measure.links import Link
from batchbridge.measure.results import Results, Run
from batchbridge.measure.statistics import Interval

WOBBLE = (1.0, 1.03, 0.98, 1.01)


def runs(change_by_setting, blocks=4):
    """`fast` costs half of `base`, and under some settings more; `again` is the base with some noise."""
    found = []
    for block in range(blocks):
        drift = 1 + 0.2 * block  # falls on all arms alike
        for setting in SETTINGS:
            factor = change_by_setting.get(setting.name, 1.0)
            for arm, cost in (("base", 10.0), ("again", 10.0 * WOBBLE[block]), ("fast", 5.0 * factor)):
                found.append(Run(
                    arm, block, {"setting": setting.name}, seconds=1.0, responses=1, requests_per_s=1e6 / cost / drift,
                    server_cpu_us_per_request=cost * drift,
                ))  # fmt: skip
    return found


def test_a_change_beyond_noise_is_found_where_it_is():
    found = changes(runs({"MTU 9000": 1.5}), "base", "again")
    real = [(change.setting, change.arm, change.figure) for change in found if change.is_beyond_noise]
    assert real == [("MTU 9000", "fast", "throughput"), ("MTU 9000", "fast", "server CPU")]
    cost = next(
        each for each in found if each.figure == "server CPU" and each.setting == "MTU 9000" and each.arm == "fast"
    )
    assert cost.ratio.mid == pytest.approx(0.75) and cost.change.mid == pytest.approx(1.5)
    assert cost.words == "fast, server CPU: 0.75 × the base, 1.50 (1.50–1.50) of usual"
    usual = next(each for each in found if each.setting == USUAL)
    assert usual.change is None and usual.words == ""


def test_less_than_what_the_same_server_twice_shows_is_noise():
    assert not is_beyond_noise(Interval(1.02, 1.03, 1.04), Interval(0.95, 1.0, 1.06))
    assert is_beyond_noise(Interval(1.1, 1.2, 1.3), Interval(0.95, 1.0, 1.06))
    assert not is_beyond_noise(Interval(0.9, 1.2, 1.4), None), "it may as well be 1"
    assert not is_beyond_noise(Interval(float("-inf"), 2.0, float("inf")), None), "one block tells no interval"
    assert not is_beyond_noise(None, None)


def test_what_is_invalid_has_reasons_and_no_ratio():
    made = runs({})
    for run in made:
        if run.arm == "fast" and run.parameters["setting"] == "MTU 9000":
            run.valid, run.invalid_reason = False, "It died."
    broken = [each for each in changes(made, "base", "again") if each.arm == "fast" and each.setting == "MTU 9000"]
    assert all(each.ratio is None and each.invalid == ["It died."] and not each.is_beyond_noise for each in broken)


class Recorded:
    def __init__(self):
        self.site, self.made, self.results = None, [], Results("confounders")

    def run(self, arm, phase, block):
        self.made.append((block, phase.parameters["setting"], arm.name, self.site.facts["place"]))


def test_every_block_has_every_setting_and_every_arm_in_its_place():
    opened = []

    @contextlib.contextmanager
    def sites(place, link):
        opened.append((place, link))
        yield Site(0, 0), ""

    experiment, planned = Recorded(), []
    arms = [Arm(name, "", None, []) for name in ("a", "b", "c")]
    perform(experiment, arms, Phase("capacity", 8), 2, sites, lambda runs, _arms: planned.append(runs))
    assert planned == [2 * 3 * len(SETTINGS)] == [len(experiment.made)]
    blocks = [[each[1:3] for each in experiment.made if each[0] == block] for block in range(2)]
    assert sorted(blocks[0]) == sorted(blocks[1]) and blocks[0] != blocks[1]
    assert len(set(blocks[0])) == 3 * len(SETTINGS)
    assert set(opened) == {(setting.place, setting.link) for setting in SETTINGS}
    assert set(experiment.results.settings["settings"]) == {setting.name for setting in SETTINGS}


def test_the_settings_are_the_protocols():
    links = {setting.name: setting.link for setting in SETTINGS if setting.place == NAMESPACES}
    assert links[USUAL] == Link()
    assert any(link.mtu_bytes == 9000 for link in links.values())
    assert any(link.tso is False and link.gso is False for link in links.values())
    assert any(link.tx_checksums is False for link in links.values())
    assert any(setting.place == ONE_CORE for setting in SETTINGS), "no interrupts between cores"
