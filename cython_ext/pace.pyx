"""The load generator's loop.

Closed: a client goes on by itself when its answer has come, so that the server's speed sets the rate. Open: requests
become due by a schedule that was drawn beforehand. The rules of the open loop:

- In each turn, all requests that are due are taken from the schedule into a queue, and leave on free connections, in
  the order of both. Where none is free they wait; their latency counts from the moment at which they were due.
- How late the loop looked at a request that was due is the client's own fault, and is counted apart.
- At the end the schedule stops; what waits still leaves in the first half of the drain. What does not is told, and
  its latency counted as what it had waited until then, so that overload does not look fast.
- The thread sleeps to the nanosecond as far as the kernel does: its timer slack (50 µs by default) is set to the least.
"""
from libc.errno cimport EAGAIN, EBUSY, EINTR, ETIME
from libc.stdint cimport uint32_t, uint64_t

from batchbridge.cython_ext.clients cimport (
    CLIENT_CONNECTS, CLIENT_ENDS, CLIENT_OPEN, CLIENT_PAUSES, CLIENT_RESTS, FAILURE_TIMED_OUT, Client, Run, fail,
    offer, open_client, post_out, reap, send_request)
from batchbridge.cython_ext.histogram cimport histogram_add
from batchbridge.cython_ext.ring cimport *
from batchbridge.cython_ext.schedule cimport WAITING_MAX, schedule_begin, schedule_next, schedule_pop, schedule_push


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *) noexcept
    int CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID


cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long) noexcept
    int PR_SET_TIMERSLACK, PR_GET_TIMERSLACK


cdef extern from "<sys/socket.h>" nogil:
    int shutdown(int, int) noexcept
    int SHUT_RDWR


cdef extern from "<unistd.h>" nogil:
    int close(int) noexcept
    ssize_t pread(int, void *, size_t, long) noexcept


cdef extern from "<fcntl.h>" nogil:
    int open(const char *, int) noexcept
    int O_RDONLY, O_CLOEXEC


cdef extern from "<stdlib.h>" nogil:
    unsigned long long strtoull(const char *, char **, int) noexcept


cdef enum:
    SUBMISSION_ENTRIES = 4096
    COMPLETION_ENTRIES = 65536
    RECEIVE_BUFFER_SIZE_BYTES = 16384
    RECEIVE_BUFFERS_MIN = 128
    RECEIVE_BUFFERS_MAX = 4096
    TICK_US = 100000                # time-outs and new attempts are looked at this often


# --- the schedule ----------------------------------------------------------------------------------------------------

cdef uint64_t due_ns(const Run *run) noexcept nogil:
    """When the schedule's next request is due, as the clock has it."""
    return run.schedule_began_us * 1000 + <uint64_t>run.schedule.due_ns


cdef void leave_out(Run *run, uint64_t moment_us, uint64_t until_us) noexcept nogil:
    """A request that is never sent: it has waited at least until then."""
    run.figures.unissued += 1
    if run.begin_us <= moment_us < run.end_us:
        histogram_add(&run.latencies, until_us - moment_us)


cdef void take_due(Run *run) noexcept nogil:
    """Moves what is due from the schedule to those that wait."""
    cdef uint64_t moment_us
    while run.scheduling:
        moment_us = due_ns(run) // 1000
        if moment_us > run.now_us or moment_us >= run.end_us:
            return
        if moment_us >= run.begin_us:
            run.figures.offered += 1
            histogram_add(&run.lateness, run.now_us - moment_us)
        if not schedule_push(&run.schedule, moment_us):
            leave_out(run, moment_us, run.end_us)
        schedule_next(&run.schedule)
        run.drawn += 1
        if run.requests_max and run.drawn >= run.requests_max:
            run.scheduling = 0


cdef void send_due(Run *run) noexcept nogil:
    """Those that wait leave on free connections, the longest free one first."""
    cdef Client *client
    while run.schedule.waiting and run.free_count and run.issuing:
        client = &run.clients[run.free[run.free_first]]
        run.free_first = (run.free_first + 1) % run.client_count
        run.free_count -= 1
        client.is_listed = 0
        if run.closes:
            if client.phase == CLIENT_RESTS:
                open_client(run, client)
        elif client.phase == CLIENT_OPEN and client.owed_count < run.pipeline:
            send_waiting(run, client)


cdef void send_waiting(Run *run, Client *client) noexcept nogil:
    cdef uint64_t moment_us = run.schedule.moments_us[run.schedule.first & (WAITING_MAX - 1)]
    if not send_request(run, client, moment_us):
        return                      # its space comes back with the completion that will list it again
    schedule_pop(&run.schedule)
    if run.pipeline > 1:
        post_out(run, client)
        if client.owed_count < run.pipeline:
            offer(run, client)


# --- time ------------------------------------------------------------------------------------------------------------

cdef uint64_t clock_ns(int clock) noexcept nogil:
    cdef timespec time
    clock_gettime(clock, &time)
    return <uint64_t>time.tv_sec * 1000000000 + <uint64_t>time.tv_nsec


cdef uint64_t core_wait_ns(const Run *run) noexcept nogil:
    """How long this thread has been ready to run and did not: the second number of its schedstat."""
    cdef char text[128]
    cdef char *rest = NULL
    cdef ssize_t length = pread(run.schedstat, text, sizeof(text) - 1, 0)
    if length <= 0:
        return 0
    text[length] = 0
    strtoull(text, &rest, 10)
    return strtoull(rest, NULL, 10)


cdef void measure(Run *run, bint on) noexcept nogil:
    """The measured time begins, or ends. Unsigned differences: what is subtracted first is added later."""
    if run.measuring == on:
        return
    run.measuring = on
    if on:
        run.figures.began_us = run.now_us
        run.figures.cpu_ns -= clock_ns(CLOCK_THREAD_CPUTIME_ID)
        run.figures.core_wait_ns -= core_wait_ns(run)
        run.figures.system_calls -= run.ring.system_calls
    else:
        run.figures.ended_us = run.now_us
        run.figures.cpu_ns += clock_ns(CLOCK_THREAD_CPUTIME_ID)
        run.figures.core_wait_ns += core_wait_ns(run)
        run.figures.system_calls += run.ring.system_calls


cdef void tick(Run *run) noexcept nogil:
    cdef uint32_t index
    cdef Client *client
    run.tick_us = run.now_us + TICK_US
    for index in range(run.client_count):
        client = &run.clients[index]
        if client.phase == CLIENT_PAUSES:
            if not run.issuing:
                client.phase = CLIENT_RESTS
            elif client.moment_us <= run.now_us:
                begin_client(run, client)
        elif ((client.phase == CLIENT_ENDS or client.phase == CLIENT_CONNECTS or client.owed_count)
                and client.moment_us + run.timeout_us <= run.now_us):
            fail(run, client, FAILURE_TIMED_OUT)
    if run.tick(run.owner):
        run.stopping = 1


cdef void begin_client(Run *run, Client *client) noexcept nogil:
    if run.is_open and run.closes:
        client.phase = CLIENT_RESTS
        offer(run, client)
    else:
        open_client(run, client)


cdef bint is_busy(const Run *run) noexcept nogil:
    cdef uint32_t index
    if run.issuing and run.schedule.waiting:
        return True
    for index in range(run.client_count):
        if run.clients[index].owed_count or run.clients[index].phase == CLIENT_ENDS:
            return True
    return False


cdef int wait(Run *run) noexcept nogil:
    """Submits, and sleeps until something is to be done: a completion, a request that is due, the next tick, the end of
    the measured time."""
    cdef __kernel_timespec duration
    cdef io_uring_cqe *completion = NULL
    cdef uint64_t until_ns = run.tick_us * 1000
    cdef uint64_t now_ns
    cdef int result
    if run.issuing and run.now_us < run.end_us:
        until_ns = min(until_ns, run.end_us * 1000)
    if run.scheduling:
        until_ns = min(until_ns, due_ns(run))
    run.ring.system_calls += 1
    now_ns = clock_ns(CLOCK_MONOTONIC)
    if until_ns <= now_ns:
        result = io_uring_submit_and_get_events(&run.ring.uring)
    else:
        duration.tv_sec = (until_ns - now_ns) // 1000000000
        duration.tv_nsec = (until_ns - now_ns) % 1000000000
        result = io_uring_submit_and_wait_timeout(&run.ring.uring, &completion, 1, &duration, NULL)
    run.now_us = clock_ns(CLOCK_MONOTONIC) // 1000
    # A full completion queue is emptied next; a time-out and a signal are no failures.
    if result == -ETIME or result == -EINTR or result == -EAGAIN or result == -EBUSY:
        return 0
    return result


# --- the run ---------------------------------------------------------------------------------------------------------

cdef void look_at_the_clock(Run *run) noexcept nogil:
    """What begins and ends by time."""
    cdef bint is_broken = run.stopping or run.figures.hopeless == run.client_count
    if run.now_us >= run.end_us or is_broken:
        measure(run, False)
        run.scheduling = 0
        # What waits in an open loop was due before the end, and is owed.
        if is_broken or not run.is_open:
            run.issuing = 0
    elif run.now_us >= run.begin_us:
        measure(run, True)
    if run.is_open and not run.scheduling and run.schedule.waiting == 0:
        run.issuing = 0


cdef int loop(Run *run) noexcept nogil:
    cdef uint64_t until_us = 0          # the drain's end
    cdef int result = 0
    while until_us == 0 or (is_busy(run) and run.now_us < until_us):
        if until_us and run.now_us >= until_us - run.drain_us // 2:
            run.issuing = 0             # so that what has left can still be answered
        result = wait(run)
        run.figures.loops += run.measuring
        if result < 0:
            return result
        take_due(run)
        look_at_the_clock(run)
        reap(run)
        send_due(run)
        if run.now_us >= run.tick_us:
            tick(run)
        if until_us == 0 and not (run.scheduling if run.is_open else run.issuing):
            until_us = run.now_us + run.drain_us
    return 0


cdef void begin(Run *run) noexcept nogil:
    cdef uint32_t index
    run.figures.first_wrong = -1
    run.now_us = clock_ns(CLOCK_MONOTONIC) // 1000
    run.tick_us = run.now_us + TICK_US
    run.begin_us = run.now_us + run.warmup_us
    run.end_us = run.begin_us + run.seconds_us
    run.schedule_began_us = run.now_us
    run.is_open = run.rate_per_s > 0
    run.scheduling = run.is_open
    run.issuing = 1
    run.drawn = 0
    run.free_first = run.free_count = 0
    run.schedule.waiting = 0
    if run.is_open:
        schedule_begin(&run.schedule, run.rate_per_s, run.is_poisson, run.seed)
    measure(run, run.warmup_us == 0)
    for index in range(run.client_count):
        if run.issuing:
            begin_client(run, &run.clients[index])


cdef int run_clients(Run *run) noexcept nogil:
    cdef uint32_t buffers = RECEIVE_BUFFERS_MIN
    cdef int slack_ns
    cdef int result = ring_open(&run.ring, SUBMISSION_ENTRIES, COMPLETION_ENTRIES)
    if result < 0:
        return result
    # Few where few are needed: they are used in turn, and those of one turn should fit the processor's cache.
    while buffers < 2 * run.client_count and buffers < RECEIVE_BUFFERS_MAX:
        buffers *= 2
    result = ring_provide(&run.ring, buffers, RECEIVE_BUFFER_SIZE_BYTES)
    if result == 0:
        slack_ns = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)
        prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
        run.schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC)
        begin(run)
        result = loop(run)
        measure(run, False)
        while run.schedule.waiting:
            leave_out(run, schedule_pop(&run.schedule), run.now_us)
        close_all(run)
        close(run.schedstat)
        prctl(PR_SET_TIMERSLACK, slack_ns, 0, 0, 0)
    ring_close(&run.ring)
    return result


cdef void close_all(Run *run) noexcept nogil:
    cdef uint32_t index
    cdef Client *client
    ring_submit_and_wait(&run.ring, 0)      # what is queued still names descriptors
    for index in range(run.client_count):
        client = &run.clients[index]
        run.figures.unanswered += client.owed_count
        if client.fd >= 0:
            shutdown(client.fd, SHUT_RDWR)
            close(client.fd)
            client.fd = -1
