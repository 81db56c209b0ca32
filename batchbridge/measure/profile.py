"""Where the server's core spends its time, by sampling: the cross-check of what a request costs.

``perf`` looks at the core a thousand times a second. Each sample is a stack; from its innermost frame outwards, the
first one that a rule knows says what the sample was for. Samples of the idle task and of the idle loop are left out, so
the shares are of busy time.

The clock that samples cannot interrupt code that has interrupts disabled: such time shows where they are enabled again.
So the shares are good to a few hundredths.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from ..cython_ext.soaker import TASK_NAME
from ..errors import BatchBridgeError
from .results import PROFILE_PARTS

__all__ = ["Frame", "Profile", "ProfileError", "Recorder", "Sample", "part_of", "samples_of", "split", "why_not"]

FREQUENCY_HZ = 997  # not 1,000: nothing that happens every millisecond is seen each time, or never
START_PATIENCE_S = 10.0
SCRIPT_PATIENCE_S = 120.0
UNKNOWN_SHOWN = 10

KERNEL, USER = "kernel", "user"
IDLE = "idle"


class ProfileError(BatchBridgeError):
    """The core cannot be profiled here. One sentence."""


class Frame(NamedTuple):
    """One call of a stack."""

    symbol: str
    object: str
    """The file, or as perf calls the kernel and its modules: in brackets."""

    @property
    def is_kernel(self) -> bool:
        """Whether it runs in the kernel."""
        if self.symbol.startswith("bpf_prog_"):  # perf gives each program an object of its own
            return True
        return self.object.startswith("[") and self.object not in ("[unknown]", "[vdso]", "[vsyscall]", "[stack]")


class Sample(NamedTuple):
    """A stack of at least one frame, the innermost first, and the name of the task that was interrupted."""

    task: str
    frames: tuple[Frame, ...]


class Rule(NamedTuple):
    """A frame whose symbol (in the kernel) or object (in user mode) matches is for this part."""

    part: str
    where: str
    pattern: re.Pattern[str]


def _rule(part: str, where: str, patterns: str) -> Rule:
    return Rule(part, where, re.compile("|".join(f"(?:{pattern})" for pattern in patterns.split())))


#: The first that matches a frame decides. Kernel symbols are matched from their beginning, objects anywhere.
RULES = (
    _rule(IDLE, KERNEL, r"""
        default_idle arch_cpu_idle do_idle (pv_)?native_safe_halt acpi_(safe_halt|idle) intel_idle mwait_idle poll_idle
        cpu_idle_poll cpuidle_
    """),
    _rule("ipi", KERNEL, r"""
        _*x2apic_send_IPI _*x?2?apic_(send|mem_wait|icr) native_send_call_func native_smp_send_resched _*send_ipi
        _*(kvm|pv)_send_ipi send_call_function arch_send_call_function _*smp_call_function _*flush_smp_call_function
        generic_(exec|smp) (asm_)?_*sysvec_(call_f|resched) rps_trigger_softirq net_rps_ scheduler_ipi
        ipi_(handler|send) do_handle_IPI gic_ipi
    """),
    _rule("bpf", KERNEL, r"""
        _*bpf_(?!lsm|cgroup) _*htab_ array_map_ trampoline_ sk_psock_ sock_(map|hash)_ tcp_bpf_ strp_
    """),
    _rule("io_uring", KERNEL, r"""
        _*io_(?!schedule|apic|ctl|delay|serial) __(do|se|x64|arm64)_sys_io_uring tctx_task_work uring_
    """),
    _rule("tcp_ip", KERNEL, r"""
        _*tcp_ _*ip6?_ _*ipv[46]_ _*inet6?_ _*net_(rx|tx)_ _*netif_ _*napi_ process_backlog enqueue_to_backlog get_rps_
        _*dev_(queue|hard|gro|xmit|direct) dev_ veth_ loopback_ eth_ _*xmit_ validate_xmit _*gro_ _*skb_ _*kfree_skb
        _*(free|alloc|copy|build|clone|consume|napi_consume|napi_alloc)_skb _*sock_ _*sk_ _*lock_sock _*release_sock
        sockfs_ security_sock _*sys_(send|recv|accept|connect|shutdown|socket) reqsk_ mptcp_ _*datagram zerocopy_
        __(do|se|x64|arm64)_sys_(send|recv|accept|connect|shutdown|socket) _*(nf|nft|ipt)_ _*qdisc sch_ fq_ pfifo
        noqueue neigh_ _*csum_ simple_copy_to_iter do_(tcp|sock|ip)_[gs]etsockopt _*sys_[gs]etsockopt
    """),
    # Before Python's: a compiled module of ours has its suffix too.
    _rule("engine", USER, r"batchbridge/cython_ext/(?!worker\.|messages\.) /liburing\.so"),
    _rule("python", USER, r"""
        /libpython3 /python3?[0-9.]*$ \.cpython-\d+ batchbridge/cython_ext/ site-packages/ /lib-dynload/
    """),
)  # fmt: skip

_FRAME = re.compile(r"^\s+[0-9a-f]+ (?P<symbol>.+) \((?P<object>[^()]*)\)$")


@dataclass(frozen=True)
class Profile:
    """What the samples of a core were for."""

    samples: int
    """Of busy time."""
    shares: dict[str, float]
    """By `PROFILE_PARTS`; they add up to 1, unless there is no sample."""
    unknown: list[tuple[str, int]] = field(default_factory=list)
    """The commonest innermost frames of "other": (symbol and object, samples)."""


def samples_of(script: str) -> Iterator[Sample]:
    """The samples of what ``perf script -F comm,tid,ip,sym,dso`` prints. Lines that are none of it are passed over."""
    task, frames = "", list[Frame]()
    for line in script.splitlines():
        if found := _FRAME.match(line.replace(" (deleted))", ")")):
            frames.append(Frame(found["symbol"], found["object"]))
            continue
        if frames:
            yield Sample(task, tuple(frames))
            frames = []
        if line.strip():
            task = line.strip().rsplit(maxsplit=1)[0]
    if frames:
        yield Sample(task, tuple(frames))


def part_of(sample: Sample, server: str | None = None) -> str:
    """What a sample was for: one of `PROFILE_PARTS`, or "idle".

    A stack of the kernel is judged by the kernel's frames alone: time in it is not its caller's. What interrupts the
    idle loop is busy, the loop itself is not. `server` is the file name of a server's program that is not ours; that is
    its engine.
    """
    is_kernel = sample.frames[0].is_kernel
    if sample.task == TASK_NAME and not is_kernel:
        return IDLE
    for frame in sample.frames:
        if frame.is_kernel != is_kernel:
            break
        if (part := _part_of_frame(frame, server)) is not None:
            return part
    return "other"


def _part_of_frame(frame: Frame, server: str | None) -> str | None:
    if not frame.is_kernel and server is not None and Path(frame.object).name == server:
        return "engine"
    for rule in RULES:
        if rule.where == KERNEL and frame.is_kernel and rule.pattern.match(frame.symbol):
            return rule.part
        if rule.where == USER and not frame.is_kernel and rule.pattern.search(frame.object):
            return rule.part
    return None


def split(samples: Iterable[Sample], server: str | None = None) -> Profile:
    """The shares of busy time; `server` as for `part_of`."""
    counts, unknown = Counter[str](), Counter[str]()
    for sample in samples:
        part = part_of(sample, server)
        counts[part] += 1
        if part == "other":
            unknown[f"{sample.frames[0].symbol} ({sample.frames[0].object})"] += 1
    busy = sum(count for part, count in counts.items() if part != IDLE)
    shares = {part: counts[part] / busy if busy else 0.0 for part in PROFILE_PARTS}
    return Profile(busy, shares, unknown.most_common(UNKNOWN_SHOWN))


def why_not() -> str | None:
    """Why no profile can be had here, in a sentence; None: it can."""
    if shutil.which("perf") is None:
        return "perf is not installed, so the cost is not cross-checked by a profile"
    try:
        with tempfile.NamedTemporaryFile() as scratch:
            command = ["perf", "record", "-q", "-e", "cpu-clock", "-a", "-o", scratch.name, "--", "true"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=START_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"perf cannot be run here: {error}"
    if done.returncode:
        told = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return f"perf may not look at a whole core here: {told[0] if told else done.returncode}"
    return None


class Recorder:
    """Samples one core from its beginning to its end; then `profile` tells what they were for. Raises ProfileError."""

    def __init__(self, cpu: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="batchbridge-profile-")
        self._data = Path(self._folder.name, "perf.data")
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY_HZ), "-a", "-C", str(cpu), "-g"]
        try:
            self._process = subprocess.Popen(
                [*command, "-o", str(self._data)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, process_group=0,
            )  # fmt: skip
        except OSError as error:
            self._folder.cleanup()
            raise ProfileError(f"perf cannot be run: {(error.strerror or str(error)).lower()}") from None

    def profile(self, server: str | None = None) -> Profile:
        """Ends the recording, and tells. Takes some seconds. Raises ProfileError."""
        self._process.send_signal(signal.SIGINT)
        try:
            _, errors = self._process.communicate(timeout=START_PATIENCE_S)
            if not self._data.exists() or not self._data.stat().st_size:
                told = errors.decode(errors="replace").strip().splitlines()
                raise ProfileError(f"perf recorded nothing: {told[0] if told else self._process.returncode}")
            script = subprocess.run(
                ["perf", "script", "-i", str(self._data), "-F", "comm,tid,ip,sym,dso"],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=SCRIPT_PATIENCE_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ProfileError("perf did not end in time") from None
        if script.returncode:
            told = script.stderr.decode(errors="replace").strip().splitlines()
            raise ProfileError(f"perf cannot read what it recorded: {told[0] if told else script.returncode}")
        return split(samples_of(script.stdout.decode(errors="replace")), server)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._folder.cleanup()
