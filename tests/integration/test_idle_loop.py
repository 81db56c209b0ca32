"""The idle loop on a real core: it takes what nobody wants, yields to what somebody does, and dies with its maker.

The core is shared with whatever else runs here, so nothing is said of how idle it is.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchbridge.measure.cost import CoreWatch, CostError, IdleLoop
from batchbridge.measure.processes import pinned

CPU = min(os.sched_getaffinity(0))
SPIN = "while True: pass"
HOLDER = f"""
import time
from batchbridge.measure.cost import IdleLoop
loop = IdleLoop({CPU})
print(loop._process.pid, flush=True)
time.sleep(60)
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


def test_the_loop_takes_turns_and_yields_to_a_process():
    with IdleLoop(CPU) as loop:
        pid = loop._process.pid
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE and os.sched_getaffinity(pid) == {CPU}
        wait_until(lambda: loop.own_ns > 1_000_000)
        with pinned(CPU):
            other = subprocess.Popen([sys.executable, "-c", SPIN], process_group=0)
        try:
            # Of its own session and group an idle one gets three thousandths of what a normal process gets.
            wait_until(lambda: loop.idle_share(0.2) < 0.05)
        finally:
            other.kill()
            other.wait()
        assert loop.gaps > 0
    assert not is_running(pid)


def test_a_core_that_is_kept_busy_is_seen_as_busy():
    with IdleLoop(CPU) as loop, CoreWatch([CPU], loop) as watch:
        with pinned(CPU):
            other = subprocess.Popen([sys.executable, "-c", SPIN], process_group=0)
        try:
            wait_until(lambda: loop.idle_share(0.1) < 0.05)
            began_us = time.monotonic_ns() // 1000
            time.sleep(0.3)
            ended_us = time.monotonic_ns() // 1000
        finally:
            other.kill()
            other.wait()
        time.sleep(0.1)
    usage = watch.between(began_us, ended_us)
    assert usage.busy_share > 0.9 and usage.seconds == pytest.approx(0.3, abs=0.2)
    with pytest.raises(CostError):
        watch.between(began_us, ended_us + 60_000_000)


def test_the_loop_dies_with_its_maker():
    with subprocess.Popen([sys.executable, "-P", "-c", HOLDER], stdout=subprocess.PIPE) as maker:
        pid = int(maker.stdout.readline())
        assert is_running(pid)
        maker.send_signal(signal.SIGKILL)
        maker.wait()
    wait_until(lambda: not is_running(pid))


def test_a_core_that_is_not_there_is_refused():
    with pytest.raises(CostError, match="cannot run on core 100000: Invalid argument"):
        IdleLoop(100_000)
