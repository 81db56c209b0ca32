"""Measuring on a machine that a hypervisor shares with others."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from batchbridge.measure.results import Run, load

TRIES = 3


def undisturbed(
    measure: Callable[..., subprocess.CompletedProcess[str]], path: Path, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], list[Run]]:
    """Measures into a file, again where a hypervisor took so much of a core that runs are void: no fault of what is
    tested. The last process, and its runs."""
    for _ in range(TRIES):
        done = measure(*arguments, f"--output={path}")
        runs = load(path).runs
        if not any("hypervisor" in (run.invalid_reason or "") for run in runs):
            break
    return done, runs
