"""What each engine needs, what this machine has, and so which one ``auto`` takes. ``batchbridge doctor`` prints it.

Features are probed, versions are not compared. Starting a server asks only :func:`choose_engine`, which probes a ring
and looks at privileges. Whether the kernel side can be loaded is seen when it is loaded: where it cannot, a server
whose engine is ``auto`` goes on with :func:`choose_without_kernel`.
"""

from __future__ import annotations

import errno
import importlib
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .config import BY_NAME, ENGINES, format_size
from .errors import ConfigError, EngineError
from .policy import one_of
from .zero_copy import Calibration, calibrate, has_zero_copy

__all__ = ["Engine", "Finding", "Report", "choose_engine", "choose_without_kernel", "diagnose"]

IO_URING, EPOLL, KERNEL = "io_uring", "epoll", "kernel"

#: Feature of the ring probe: (how a person calls it, needed at all by the io_uring engine).
RING_FEATURES: dict[str, tuple[str, bool]] = {
    "single_issuer": ("rings with one submitting thread", True),
    "defer_taskrun": ("completions deferred to the loop", True),
    "buffer_ring": ("provided buffer rings", True),
    "multishot_accept_direct": ("multishot accept into direct descriptors", True),
    "multishot_recv": ("multishot receive", True),
    "send_zc": ("zero-copy send", False),
    "registered_buffers": ("registered buffers", False),
    "socket_cmd": ("socket commands in the ring", False),
}

#: io_uring operations that the engine submits; without the last three it works, more slowly.
OPCODES_NEEDED = ("ACCEPT", "RECV", "SEND", "READ", "WRITE", "CLOSE", "SHUTDOWN", "ASYNC_CANCEL", "POLL_ADD", "TIMEOUT")
OPCODES_USEFUL = ("SEND_ZC", "URING_CMD", "SPLICE")

#: What an engine thread's rings take of the locked memory: 4,096 entries of 64 bytes, 65,536 completions of 16.
RINGS_SIZE_BYTES = 4096 * 64 + 65_536 * 16

#: How long the sends of a calibration may take here: longer than at a server's start, where somebody waits for it.
CALIBRATION_BUDGET_US = 100_000

#: How long the kernel side may take to answer a request over loopback.
SELF_TEST_PATIENCE_S = 2.0

CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_IPC_LOCK": 14, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `ok` is False where it is missing, `needed_for` names the engines that cannot run then."""

    name: str
    ok: bool
    detail: str
    """A sentence: what is there, and what to do where it is missing."""
    needed_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    """Whether an engine can run here, and why, in one sentence."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True)
class Report:
    """All findings, and what follows from them."""

    findings: tuple[Finding, ...]
    engines: tuple[Engine, ...]
    chosen: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        return {
            "chosen": self.chosen,
            "reason": self.reason,
            "engines": [vars(engine) for engine in self.engines],
            "findings": [{**vars(finding), "needed_for": list(finding.needed_for)} for finding in self.findings],
        }


# What may be asked ---------------------------------------------------------------------------------------------------


def ring_probe() -> Mapping[str, bool | str] | None:
    """What the engine's own probe of a ring says (milliseconds), None in a build without the io_uring engine."""
    ring = _compiled("ring")
    return None if ring is None else ring.probe()


def _compiled(name: str) -> Any:
    """A module of the compiled floor, None where this build lacks it."""
    try:
        return importlib.import_module(f"batchbridge.cython_ext.{name}")
    except ImportError:
        return None


def judge_io_uring(probe: Mapping[str, bool | str] | None) -> Engine:
    """Whether the io_uring engine runs, from what :func:`ring_probe` said."""
    if probe is None:
        return Engine(IO_URING, False, "this build has no io_uring engine (batchbridge.cython_ext.ring does not load)")
    error = str(probe.get("ring_error") or "")
    if error:
        return Engine(IO_URING, False, f"a ring cannot be set up here: {error}")
    missing = [words for name, (words, needed) in RING_FEATURES.items() if needed and not probe.get(name, False)]
    if missing:
        return Engine(IO_URING, False, f"this kernel lacks {', '.join(missing)}; Linux 6.1 or newer has them")
    slower = [words for name, (words, needed) in RING_FEATURES.items() if not needed and not probe.get(name, True)]
    without = f", though without {', '.join(slower)}" if slower else ""
    return Engine(IO_URING, True, f"io_uring runs here with all that the engine needs{without}")


def judge_kernel(probe: Mapping[str, bool | str] | None) -> Engine:
    """Whether the kernel engine runs: it is the io_uring engine with a kernel side."""
    if _compiled("bpf") is None:
        return Engine(KERNEL, False, "this build has no kernel engine: it was built without clang or libbpf")
    ring = judge_io_uring(probe)
    if not ring.available:
        return Engine(KERNEL, False, ring.reason)
    if probe is not None and not probe.get("socket_cmd", False):
        return Engine(KERNEL, False, "this kernel lacks socket commands in the ring; Linux 6.7 or newer has them")
    for finding in (_privileges(), _types()):
        if not finding.ok:
            return Engine(KERNEL, False, _clause(finding.detail))
    return Engine(KERNEL, True, "the kernel side can be loaded here")


def _clause(sentence: str) -> str:
    """A finding's detail as part of a sentence."""
    return sentence[0].lower() + sentence[1:].removesuffix(".")


def judge_epoll() -> Engine:
    """The epoll engine runs on any Linux."""
    return Engine(EPOLL, True, "epoll runs on every Linux, also where io_uring is forbidden")


def choose_engine(wanted: str = "auto") -> tuple[str, str]:
    """The engine to run, and why: one plain sentence. Takes a few milliseconds.

    Raises EngineError when `wanted` is an engine that cannot run here, ConfigError when it is not an engine at all.
    """
    if wanted not in ENGINES:
        raise ConfigError(f"engine: {wanted!r} is not known; choose {one_of(ENGINES)}")
    if wanted == EPOLL:
        return EPOLL, "epoll was asked for"
    probe = ring_probe()
    engine = judge_io_uring(probe) if wanted == IO_URING else judge_kernel(probe)
    if wanted == "auto":
        return (KERNEL, engine.reason) if engine.available else choose_without_kernel(engine.reason, probe)
    if not engine.available:
        raise EngineError(f"the engine {wanted} cannot run: {engine.reason}; --engine auto takes what can")
    return wanted, f"{wanted} was asked for, and {engine.reason}"


def choose_without_kernel(why: str, probe: Mapping[str, bool | str] | None = None) -> tuple[str, str]:
    """What ``auto`` takes where the kernel engine cannot run, and one plain sentence that says so; `why` is its reason.

    `probe` is what :func:`ring_probe` has said, if it was asked before.
    """
    engine = judge_io_uring(probe or ring_probe())
    if engine.available:
        return IO_URING, f"the kernel engine cannot run here: {why}"
    return EPOLL, f"{engine.reason}; epoll runs on every Linux"


def diagnose() -> Report:
    """Looks at everything. Takes some 60 ms and needs no privilege; with the kernel engine to try, half a second."""
    probe = ring_probe()
    findings = [_release(), _allowed(), _seccomp(), *_ring(probe), *_opcodes(), _memlock(), _zero_copy(probe)]
    findings += _kernel_side()
    kernel = judge_kernel(probe)
    if kernel.available:
        tried = try_kernel_side()
        findings.append(tried)
        kernel = Engine(KERNEL, tried.ok, f"it was tried: {_clause(tried.detail)}")
        if tried.ok:
            findings.append(try_sqpoll())
    engines = (kernel, judge_io_uring(probe), judge_epoll())
    chosen, reason = (KERNEL, kernel.reason) if kernel.available else choose_without_kernel(kernel.reason, probe)
    return Report(tuple(findings), engines, chosen, reason)


# One function a finding ----------------------------------------------------------------------------------------------


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def _status(key: str) -> str:
    for line in (_read("/proc/self/status") or "").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.strip()
    return ""


def _has_capability(name: str) -> bool:
    effective = int(_status("CapEff") or "0", 16)
    return bool(effective >> CAPABILITIES[name] & 1)


def _release() -> Finding:
    release = os.uname().release
    return Finding("kernel", True, f"Linux {release}; features are probed, the number decides nothing.")


def _allowed() -> Finding:
    """The system-wide switch."""
    name, setting = "io_uring allowed", _read("/proc/sys/kernel/io_uring_disabled")
    if setting in (None, "0"):
        words = "nothing in sysctl forbids io_uring" if setting is None else "kernel.io_uring_disabled is 0"
        return Finding(name, True, f"{words}: every process may set up a ring.", (IO_URING,))
    if setting == "1":
        group = _read("/proc/sys/kernel/io_uring_group") or "-1"
        member = group.lstrip("-").isdigit() and int(group) in {os.getegid(), *os.getgroups()}
        if member or _has_capability("CAP_SYS_ADMIN"):
            return Finding(name, True, "kernel.io_uring_disabled is 1, and this process is exempt.", (IO_URING,))
        return Finding(
            name, False,
            f"kernel.io_uring_disabled is 1: it takes CAP_SYS_ADMIN or the group {group} (kernel.io_uring_group); "
            "or set it to 0.", (IO_URING,),
        )  # fmt: skip
    return Finding(name, False, f"kernel.io_uring_disabled is {setting}: nobody may; set it to 0 or 1.", (IO_URING,))


def _seccomp() -> Finding:
    """Setting up a ring with pyuring; a container's filter refuses it with EPERM or ENOSYS."""
    name = "io_uring_setup"
    filtered = _status("Seccomp") == "2"
    try:
        import pyuring
    except (ImportError, OSError) as error:
        return Finding(name, True, f"Not tried: pyuring does not load ({' '.join(str(error).split())}).")
    try:
        pyuring.get_probe_info()
    except Exception as error:  # what pyuring raises depends on where it fails
        number = getattr(error, "errno", None)
        what = os.strerror(number).lower() if isinstance(number, int) and number > 0 else str(error)
        if number in (errno.EPERM, errno.ENOSYS) and filtered:
            what += (
                ": a seccomp filter refuses it, as Docker's default profile does; "
                "run the container with --security-opt seccomp=PROFILE that allows io_uring, or with epoll"
            )
        elif number == errno.ENOSYS:
            what += ": this kernel is built without io_uring"
        elif number == errno.ENOMEM:
            what += ": the limit of locked memory is too small for a ring (ulimit -l)"
        return Finding(name, False, f"A ring is refused, {what}.", (IO_URING,))
    return Finding(name, True, f"A ring can be set up{' (under a seccomp filter)' if filtered else ''}.", (IO_URING,))


def _opcodes() -> list[Finding]:
    try:
        import pyuring

        info = pyuring.get_probe_info()
    except Exception:  # told by _seccomp already
        return []

    def lacking(names: tuple[str, ...]) -> list[str]:
        numbers = {name: getattr(pyuring, f"IORING_OP_{name}", None) for name in names}
        return [
            name for name, number in numbers.items()
            if number is None or number > info.last_op or not info.opcode_mask[number]
        ]  # fmt: skip

    needed, useful = lacking(OPCODES_NEEDED), lacking(OPCODES_USEFUL)
    count = sum(info.opcode_mask)
    return [
        Finding(
            "io_uring operations", not needed,
            f"It lacks {', '.join(needed)}." if needed else f"All that are needed are there ({count} in all).",
            (IO_URING,),
        ),
        Finding(
            "io_uring extras", not useful,
            f"The kernel lacks {', '.join(useful)}: slower, otherwise the same."
            if useful else f"{', '.join(OPCODES_USEFUL)} are there.",
        ),
    ]  # fmt: skip


def _ring(probe: Mapping[str, bool | str] | None) -> list[Finding]:
    if probe is None:
        return [Finding("ring features", False, "Not probed: batchbridge.cython_ext.ring does not load.", (IO_URING,))]
    error = str(probe.get("ring_error") or "")
    if error:
        return [Finding("ring features", False, f"Not probed: {error}.", (IO_URING,))]
    return [
        Finding(
            name.replace("_", " "), bool(probe[name]),
            f"{words[0].upper()}{words[1:]}: {'yes' if probe[name] else 'no'}"
            f"{'' if probe[name] or needed else ' (slower without)'}.",
            (IO_URING,) if needed else (),
        )
        for name, (words, needed) in RING_FEATURES.items()
        if name in probe
    ]  # fmt: skip


def _memlock() -> Finding:
    """Registered buffers count as locked memory, unless the process may lock what it likes."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or _has_capability("CAP_IPC_LOCK"):
        why = "CAP_IPC_LOCK is there" if soft != resource.RLIM_INFINITY else "ulimit -l is unlimited"
        return Finding("locked memory", True, f"As much as is wanted may be locked ({why}), so all can be registered.")
    answers, objects = (BY_NAME[name].default for name in ("response_arena_size_bytes", "cache_size_bytes"))
    enough = soft >= answers + objects + RINGS_SIZE_BYTES
    wanted = f"an engine thread with the default settings would register {format_size(answers)} for handlers' answers "
    wanted += f"and up to {format_size(objects)} for its cache, beside {format_size(RINGS_SIZE_BYTES)} for its rings"
    return Finding(
        "locked memory", enough,
        f"{format_size(soft)} may be locked by this user (ulimit -l), without CAP_IPC_LOCK; {wanted}"
        + ("." if enough else ": what is beyond the limit is copied when it is sent. ulimit -l unlimited, or "
           "LimitMEMLOCK=infinity in a systemd unit, lifts it."),
    )  # fmt: skip


def _zero_copy(probe: Mapping[str, bool | str] | None) -> Finding:
    """From which size on a server would send without a copy, by what that costs here."""
    if not has_zero_copy(probe or {}):
        return judge_zero_copy(None)
    return judge_zero_copy(calibrate(CALIBRATION_BUDGET_US))


def judge_zero_copy(found: Calibration | None) -> Finding:
    """The same in words; None: zero-copy sends or registered buffers are missing."""
    name = "zero copy"
    if found is None:
        return Finding(name, False, "Everything is copied: zero-copy sends or registered buffers are missing.")
    size = format_size(found.size_bytes)
    if found.reason:
        return Finding(name, False, f"From {size} on, as is usual: {found.reason}.")
    return Finding(
        name, True,
        f"From {size} on a send without a copy is the cheaper one here (copied → without, the sender's time: "
        f"{found.words}).",
    )  # fmt: skip


def judge_running(stats: Mapping[str, Any]) -> list[Finding]:
    """What a running server has registered with the kernel, and sends without a copy, from its statistics."""
    arena, bridge, sends = stats["cache"]["arena"], stats["bridge"], stats["sends"]
    size, source = format_size(sends["zero_copy_size_bytes_min"]), sends["zero_copy_size_from"]
    how = {
        "calibration": f"from {size} on, as was measured when it started",
        "setting": f"from {size} on, as was set",
        "default": f"from {size} on, as is usual: when it started, nothing could be measured",
    }.get(source)  # fmt: skip
    findings = [
        Finding(
            "its zero copy", how is not None,
            "It copies everything: its engine, or the kernel, sends nothing else." if how is None else
            f"It sends without a copy {how}: {sends['zero_copy']:,} of {sends['pieces']:,} large sends so far.",
        )
    ]  # fmt: skip
    for name, registered, there, more in (
        ("its cache's arena", arena["registered_size_bytes"], arena["open_size_bytes"],
         f" (it may grow to {format_size(arena['size_bytes_max'])})"),
        ("its handlers' arenas", bridge["response_arena_registered_size_bytes"], bridge["response_arena_size_bytes"],
         ""),
    ):  # fmt: skip
        if not there:
            continue
        detail = f"{format_size(registered)} of {format_size(there)} are registered with the kernel{more}"
        detail += "." if registered == there or how is None else ": the rest is beyond the limit of locked memory."
        findings.append(Finding(name, registered == there, detail))
    return findings


def _kernel_side() -> list[Finding]:
    """What the kernel engine needs; it is looked at in every build, so that one knows before installing it."""
    built = _compiled("bpf") is not None
    return [
        _privileges(),
        _types(),
        _libbpf(),
        Finding(
            "kernel engine", built,
            "This build has it." if built else "This build has none: it was built without clang or libbpf.", (KERNEL,),
        ),
    ]  # fmt: skip


def _privileges() -> Finding:
    missing = [name for name in ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON") if not _has_capability(name)]
    if _has_capability("CAP_SYS_ADMIN"):  # it includes the two younger ones
        missing = [name for name in missing if name == "CAP_NET_ADMIN"]
    return Finding(
        "BPF privileges", not missing,
        f"Missing {', '.join(missing)}: run as root, or give the process these capabilities."
        if missing else "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are there.", (KERNEL,),
    )  # fmt: skip


def _types() -> Finding:
    btf = os.access("/sys/kernel/btf/vmlinux", os.R_OK)
    return Finding(
        "BTF", btf,
        "The kernel tells its types." if btf else "No readable /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF).",
        (KERNEL,),
    )  # fmt: skip


def try_kernel_side() -> Finding:
    """The whole way, on loopback: a connection is taken over, its requests come up through the ring, and one that came
    before is recognised."""
    name, requests = "kernel side tried", 4
    try:
        answers, seen = _ask_over_loopback(requests)
    except (OSError, EngineError) as error:
        return Finding(name, False, f"It does not work here: {error}.", (KERNEL,))
    if answers != [b"it works"] * requests or not seen["connections"] or not seen["hits"]:
        return Finding(name, False, f"It answers wrongly, or not by itself ({seen['records']} records).", (KERNEL,))
    return Finding(
        name, True,
        f"{requests} requests over loopback came up through the ring, and {seen['hits']} of them were recognised.",
        (KERNEL,),
    )  # fmt: skip


def try_sqpoll() -> Finding:
    """The same with a kernel thread that sends: requests are answered without user mode. No engine needs it."""
    name, requests = "kernel thread tried", 12
    core = max(os.sched_getaffinity(0))
    try:
        answers, seen = _ask_over_loopback(requests, sqpoll=core)
    except (OSError, EngineError) as error:
        return Finding(name, False, f"--sqpoll does not work here: {error}.")
    if answers != [b"it works"] * requests or not seen["answered"]:
        return Finding(name, False, f"--sqpoll answers wrongly, or not ({seen['hits']} requests were recognised).")
    return Finding(
        name, True,
        f"--sqpoll works: {seen['answered']} of {requests} requests over loopback were answered without user mode, "
        f"by a kernel thread on core {core}.",
    )  # fmt: skip


def _ask_over_loopback(requests: int, **settings: Any) -> tuple[list[bytes], Any]:
    """Asks a server of the kernel engine for the same file: the answers, and the kernel side's counters.

    Raises OSError or EngineError.
    """
    import tempfile
    from http.client import HTTPConnection, HTTPException
    from pathlib import Path

    from .config import Config
    from .server import Server

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "try").write_bytes(b"it works")
        server = Server(
            config=Config(root=folder, bind=("127.0.0.1:0",), engine=KERNEL, max_connections=64, **settings)
        )
        answers = []
        with server.running() as running:
            connection = HTTPConnection(running.url.removeprefix("http://"), timeout=SELF_TEST_PATIENCE_S)
            try:
                for _ in range(requests):
                    connection.request("GET", "/try")
                    answers.append(connection.getresponse().read())
            except HTTPException as error:
                raise OSError(f"no proper answer came ({error!r})") from error
            connection.close()
        return answers, server.stats()["kernel_side"]


def _libbpf() -> Finding:
    import ctypes

    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError:
        return Finding("libbpf", False, "libbpf.so.1 is not installed (Debian package libbpf1).", (KERNEL,))
    return Finding("libbpf", True, "libbpf.so.1 is installed.", (KERNEL,))
