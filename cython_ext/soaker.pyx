"""The idle loop: takes every turn of a core that nobody else wants, and tells how much time that was.

What the loop lost is what others used, interrupts and softirqs included, which the kernel's accounting by ticks misses.

It reads the clock again and again. Between two readings lies either a turn of its own, some tens of nanoseconds, or
somebody else's use of the core, which is longer by far: an interrupt takes a microsecond, a process more. Only turns
are summed up. So the sum is a time, and independent of how fast the core runs, unlike a count of turns.

Rules. One writer, this loop; each word of the shared memory is written whole, so a reader sees a value that was true
within the last turn. The process dies with its parent: a loop that nobody watches would only warm the room.
"""
import mmap
import os
import sys

from libc.signal cimport SIGKILL
from libc.stdint cimport uint64_t


cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    enum:
        CLOCK_MONOTONIC
    int clock_gettime(int, timespec *) noexcept


cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_SET_NAME
        PR_SET_PDEATHSIG
    int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long) noexcept


cdef enum:
    TRIAL_TURNS = 1001              # an odd number has a middle
    GAP_NS_MIN = 400                # nothing that interrupts takes less; a turn takes less wherever the clock is fast
    TURNS_PER_GAP_MIN = 8


cdef struct Account:
    uint64_t own_ns                 # turns of the loop, summed up
    uint64_t gaps                   # times that somebody else came in between
    uint64_t gap_ns_min             # what counts as such; 0 until the loop has begun


SIZE_BYTES = sizeof(Account)

# What the process is called in lists and profiles; the kernel keeps 15 characters.
TASK_NAME = "bb-idle-loop"


cdef uint64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t> now.tv_sec * 1_000_000_000 + <uint64_t> now.tv_nsec


cdef uint64_t median_turn_ns() noexcept nogil:
    """What a turn takes here, by counting: its middle value is the same however often the trial is interrupted."""
    cdef uint64_t counts[GAP_NS_MIN]
    cdef uint64_t before = now_ns(), after
    cdef int i, _turn, seen = 0
    for i in range(GAP_NS_MIN):
        counts[i] = 0
    for _turn in range(TRIAL_TURNS):
        after = now_ns()
        counts[min(after - before, <uint64_t> GAP_NS_MIN - 1)] += 1
        before = after
    for i in range(GAP_NS_MIN):
        seen += <int> counts[i]
        if seen > TRIAL_TURNS // 2:
            return i
    return GAP_NS_MIN


cdef void run(volatile Account *account, uint64_t gap_ns_min) noexcept nogil:
    cdef uint64_t before = now_ns(), after, own_ns = 0, gaps = 0
    account.gap_ns_min = gap_ns_min
    while True:
        after = now_ns()
        if after - before < gap_ns_min:
            own_ns += after - before
            account.own_ns = own_ns
        else:
            gaps += 1
            account.gaps = gaps
        before = after


def soak(int descriptor, int cpu, int parent):
    """Runs until it is killed, on core `cpu`, with the shared memory behind `descriptor` (SIZE_BYTES or more).

    `parent` is the process that it ends with. Raises OSError where the core or the idle priority is refused.
    """
    cdef unsigned char[::1] memory
    cdef bytes name = TASK_NAME.encode()
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    prctl(PR_SET_NAME, <unsigned long> <char *> name, 0, 0, 0)
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != parent:      # it was gone before this process could ask to be told
        return
    memory = mmap.mmap(descriptor, SIZE_BYTES)
    with nogil:
        run(<volatile Account *> &memory[0], max(median_turn_ns() * TURNS_PER_GAP_MIN, <uint64_t> GAP_NS_MIN))


def main():
    """The process: DESCRIPTOR CPU PARENT are its arguments. What goes wrong is one line on standard error."""
    descriptor, cpu, parent = (int(argument) for argument in sys.argv[1:4])
    try:
        soak(descriptor, cpu, parent)
    except OSError as error:
        sys.exit(f"the idle loop cannot run on core {cpu}: {error.strerror}")
