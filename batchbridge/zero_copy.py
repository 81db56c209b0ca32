"""From which size on a send without a copy is cheaper here: measured once a process, by `cython_ext/calibrate.pyx`.

16 KiB is what holds unless this machine clearly says something else: a smaller size must save a fifth of the sender's
time, and 16 KiB gives way to a larger one only where zero copy costs a tenth more. So noise leaves it as it is. It is
sought from 4 to 64 KiB: an object leaves in pieces of 64 KiB at most.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .values import AUTO, KIB, format_size

__all__ = [
    "BUDGET_US",
    "DEFAULT_SIZE_BYTES",
    "SIZES_BYTES",
    "Calibration",
    "calibrate",
    "calibrated",
    "decide",
    "has_zero_copy",
    "size_for",
]

DEFAULT_SIZE_BYTES = 16 * KIB
#: What is tried; the answer is one of them.
SIZES_BYTES = (4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB)

#: Rounds, of which lower quartiles are told, and how many must end in time.
ROUNDS, ROUNDS_MIN = 5, 3
#: How long a starting server may measure; setting up and taking down come to it. What takes longer is not known.
BUDGET_US = 8_000
#: Cost without a copy ÷ cost with one, at most: from the usual size on, and where a smaller one is to be taken.
RATIO_MAX, RATIO_BELOW_MAX = 1.1, 0.8

Costs = Mapping[int, tuple[float, float]]
"""By size in bytes: what a send costs its thread in microseconds, copied and without a copy."""


@dataclass(frozen=True)
class Calibration:
    """What was found, and by what."""

    size_bytes: int
    """Sends from this size on should be without a copy."""
    costs_us: Costs = field(default_factory=dict)
    took_us: int = 0
    reason: str = ""
    """Why nothing could be told, so that `size_bytes` is the usual size; "" where it could."""

    @property
    def words(self) -> str:
        """The costs, as a person reads them: "16 KiB 6.1 → 5.0 µs, …"."""
        return ", ".join(
            f"{format_size(size)} {copied:.1f} → {without:.1f} µs" for size, (copied, without) in self.costs_us.items()
        )


def decide(costs_us: Costs) -> int:
    """The smallest size from which on zero copy is cheaper, by costs of all of SIZES_BYTES.

    The largest of them where it never is, and DEFAULT_SIZE_BYTES where a cost is missing or is none.
    """
    if any(min(costs_us.get(size, (0.0, 0.0))) <= 0.0 for size in SIZES_BYTES):
        return DEFAULT_SIZE_BYTES
    ratios = {size: costs_us[size][1] / costs_us[size][0] for size in SIZES_BYTES}
    found = SIZES_BYTES[-1]
    for size in reversed(SIZES_BYTES):
        if ratios[size] > RATIO_MAX:
            break
        # What is smaller than usual must earn its place, and what lies between it and the usual size as well.
        if size < DEFAULT_SIZE_BYTES and ratios[size] > RATIO_BELOW_MAX:
            break
        found = size
    return found


def calibrate(budget_us: int = BUDGET_US) -> Calibration:
    """Measures, within `budget_us` or little more, and decides. Needs no privilege; never raises."""
    try:
        from .cython_ext.calibrate import measure
    except ImportError:
        return Calibration(DEFAULT_SIZE_BYTES, reason="this build has no io_uring engine")
    found = measure(SIZES_BYTES, ROUNDS, budget_us)
    costs_us, took_us, error = found["costs_us"], found["took_us"], found["error"]
    if error:
        return Calibration(DEFAULT_SIZE_BYTES, {}, took_us, f"no send could be timed: {error.lower()}")
    if found["rounds"] < ROUNDS_MIN:
        reason = f"the machine is busy: {found['rounds']} of {ROUNDS_MIN} rounds ended in {budget_us / 1000:g} ms"
        return Calibration(DEFAULT_SIZE_BYTES, costs_us, took_us, reason)
    return Calibration(decide(costs_us), costs_us, took_us)


_lock = threading.Lock()
_found: Calibration | None = None


def calibrated() -> Calibration:
    """What :func:`calibrate` says; it measures at most once a process."""
    global _found
    with _lock:
        if _found is None:
            _found = calibrate()
        return _found


def has_zero_copy(features: Mapping[str, Any]) -> bool:
    """Whether what a ring probe found is enough to send without a copy."""
    return bool(features.get("send_zc", False) and features.get("registered_buffers", False))


def size_for(setting: int | str, features: Mapping[str, Any]) -> tuple[int, str]:
    """The size for an engine whose `zero_copy_size_bytes_min` is `setting`, and where it comes from.

    "setting"; "calibration"; "default", where that could not tell; or "none", where a ring probe's `features` lack what
    zero copy takes (an engine without a ring has none), so that everything is copied whatever the size.
    """
    if not has_zero_copy(features):
        return DEFAULT_SIZE_BYTES if setting == AUTO else int(setting), "none"
    if setting != AUTO:
        return int(setting), "setting"
    found = calibrated()
    return found.size_bytes, "default" if found.reason else "calibration"
