"""For every test run: hypothesis draws the same examples each time in CI, and skips are accounted for.

In CI (`CI=true`) the run fails at a skip whose code `allowed-skips.txt` does not name, and when no test ran at
all. Elsewhere such skips are only listed.
"""

import os
from collections import Counter, defaultdict
from pathlib import Path

import hypothesis
import pytest

from support.skips import code_of

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
ALLOWED_SKIPS = Path(__file__).with_name("allowed-skips.txt")

# No deadline: examples share their cores with servers, so the time of one says nothing.
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("ci" if IN_CI else "dev")


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.collectonly:
        config.pluginmanager.register(SkipAccount(ALLOWED_SKIPS.read_text()), "skip-account")


class SkipAccount:
    def __init__(self, allowed_text: str) -> None:
        lines = (line.partition("#")[0].strip() for line in allowed_text.splitlines())
        self.allowed = {line for line in lines if line}
        self.expected: Counter[str] = Counter()
        self.unexpected: defaultdict[str, list[str]] = defaultdict(list)
        self.ran = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._count(report)
        self.ran += report.when == "call" and not report.skipped

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._count(report)

    def _count(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        # An expected failure is reported as skipped, too; it has run.
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        code = code_of(reason)
        if code in self.allowed:
            self.expected[code] += 1
        else:
            self.unexpected[reason.removeprefix("Skipped: ")].append(report.nodeid)

    def _faults(self) -> list[str]:
        faults = [
            f"{len(nodes)} skipped ({nodes[0]}{' and others' * (len(nodes) > 1)}): {reason}"
            for reason, nodes in sorted(self.unexpected.items(), key=lambda item: -len(item[1]))
        ]
        return faults if self.ran or not IN_CI else [*faults, "no test ran"]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if IN_CI and exitstatus == pytest.ExitCode.OK and self._faults():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for code, count in sorted(self.expected.items()):
            terminalreporter.write_line(f"skipped as allowed: {count} with {code}")
        if faults := self._faults():
            heading = "this fails the run" if IN_CI else "not everything was tested; in CI this would fail the run"
            terminalreporter.write_sep("=", heading, red=True)
            for fault in faults:
                terminalreporter.write_line(fault)
