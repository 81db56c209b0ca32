"""The machine that figures belong to: what a reader must know of it to set other figures beside them."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["facts", "sentence"]

CPUINFO = "/proc/cpuinfo"
MEMINFO = "/proc/meminfo"
VULNERABILITIES = "/sys/devices/system/cpu/vulnerabilities"
CLOCK_SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"

#: Of a mitigation's description, as much as tells it from another.
MITIGATION_LENGTH_MAX = 60


def facts() -> dict[str, Any]:
    """What is known of this machine; a fact that cannot be found out is None.

    processor, architecture, cores (that this process may use), cores_present, is_virtual, memory_bytes, kernel,
    mitigations (by vulnerability, in short; those that the processor is free of are left out), clock_source,
    frequency_governor, batchbridge, python, liburing.
    """
    cpuinfo = _read(CPUINFO) or ""
    return {
        "processor": _first(cpuinfo, "model name") or platform.machine(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cores_present": os.cpu_count(),
        "is_virtual": "hypervisor" in (_first(cpuinfo, "flags") or "").split(),
        "memory_bytes": _memory_bytes(_read(MEMINFO) or ""),
        "kernel": f"{platform.system()} {platform.release()}",
        "mitigations": _mitigations(VULNERABILITIES),
        "clock_source": _read(CLOCK_SOURCE),
        "frequency_governor": _read(GOVERNOR),
        "batchbridge": _package_version("batchbridge"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "liburing": _liburing_version(),
    }


def sentence(of: Mapping[str, Any] | None = None) -> str:
    """Processor, cores and kernel, in half a line: of these facts, or of this machine."""
    known = facts() if of is None else of
    count = known.get("cores", 0)
    cores = f"{count} core{'' if count == 1 else 's'}"
    return f"{known.get('processor', 'unknown processor')}, {cores}, {known.get('kernel', 'unknown kernel')}"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _first(lines: str, name: str) -> str | None:
    """The value of the first line `name: value`, its spaces single."""
    for line in lines.splitlines():
        found, _, value = line.partition(":")
        if found.strip() == name:
            return " ".join(value.split())
    return None


def _memory_bytes(meminfo: str) -> int | None:
    total = (_first(meminfo, "MemTotal") or "").split()
    return int(total[0]) * 1024 if total and total[0].isdigit() else None


def _mitigations(folder: str) -> dict[str, str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    found = {}
    for name in names:
        text = _read(os.path.join(folder, name)) or "unknown"
        if text != "Not affected":
            found[name] = text.removeprefix("Mitigation: ").partition(";")[0][:MITIGATION_LENGTH_MAX]
    return found


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _liburing_version() -> str | None:
    """Of the library that the system has; it has told its version since 2.3."""
    try:
        library = ctypes.CDLL("liburing.so.2")
        return f"{library.io_uring_major_version()}.{library.io_uring_minor_version()}"
    except (OSError, AttributeError):
        return None
