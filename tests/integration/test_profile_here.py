"""A real core is profiled: a process that computes in Python shows as that."""

import os
import subprocess
import sys
import time

from batchbridge.measure import profile
from batchbridge.measure.processes import pinned
from support.skips import skip_if

CPU = min(os.sched_getaffinity(0))


@skip_if(profile.why_not() is not None, "no-perf", "perf is not installed, or may not look at a whole core")
def test_a_busy_python_is_seen():
    with pinned(CPU):
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with profile.Recorder(CPU) as recorder:
            time.sleep(1.0)
            found = recorder.profile()
    finally:
        other.kill()
        other.wait()
    assert found.samples > 20, "a thousand a second, on a core that may be shared"
    assert abs(sum(found.shares.values()) - 1) < 1e-6
    assert found.shares["python"] > 0.05
