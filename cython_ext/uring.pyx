"""The io_uring driver: multishot accept, multishot receive from provided buffers, one submit a turn.

Here is its loop, and its beginning and end. How it comes to connections is in uring_accept, what completions tell in
uring_completions, sends in uring_send, ends of connections in uring_close, and what these share in uring_operations.

Connections are direct descriptors: slots of the ring, which no other part of the process sees and no call has to look
up. Before Linux 6.7 such a socket cannot be asked for its peer's address, so there they are ordinary descriptors.
"""
import os

from libc.errno cimport EAGAIN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from batchbridge.cython_ext.accesslog cimport log_flush
from batchbridge.cython_ext.answer cimport answer_begin, answer_turn
from batchbridge.cython_ext.core cimport Engine
from batchbridge.cython_ext.engine cimport EngineThread, turn_begin, turn_end, turn_goes_on, turn_wait_us
from batchbridge.cython_ext.kernel cimport tier_consume, tier_has_news, tier_has_records, tier_sleeps, tier_woke
from batchbridge.cython_ext.openings cimport opening_by_thread
from batchbridge.cython_ext.polled cimport polled_arm, polled_settle, polled_woke
from batchbridge.cython_ext.publish cimport publish_end
from batchbridge.cython_ext.ring cimport *
from batchbridge.cython_ext.tier cimport Tier
from batchbridge.cython_ext.uring_accept cimport (
    add_listener, close_surplus, retry_accepts, start_accepting, stop_accepting)
from batchbridge.cython_ext.uring_close cimport driver_finish, driver_send_last, driver_tear_down
from batchbridge.cython_ext.uring_completions cimport (
    arm_bell, arm_files, arm_records, driver_pause, driver_read_fragment, driver_resume, driver_write_log,
    probe_suspects, reap)
from batchbridge.cython_ext.uring_operations cimport *
from batchbridge.cython_ext.uring_send cimport driver_send, driver_send_reported, forget_memory, register_memory

from batchbridge.errors import EngineError


cdef extern from "<unistd.h>" nogil:
    ssize_t write(int, const void *, size_t) noexcept


cdef enum:
    SUBMISSION_ENTRIES = 4096
    COMPLETION_ENTRIES = 65536
    SHORT_WAIT_US = 20000           # longer waits are timer entries, which cost nothing while they are not due
    HELD_WAIT_US = 1000


# --- the loop --------------------------------------------------------------------------------------------------------

cdef void arm_timer(Engine *engine, Uring *driver, int64_t wait_us) noexcept nogil:
    """Makes sure that a timer entry will end the wait in time; an earlier one that fires for nothing does no harm."""
    cdef uint64_t moment_us = engine.now_us + <uint64_t>wait_us
    cdef io_uring_sqe *entry
    if driver.timer_us and driver.timer_us <= moment_us:
        return
    driver.timer_us = moment_us
    driver.timer.tv_sec = wait_us // 1000000
    driver.timer.tv_nsec = (wait_us % 1000000) * 1000
    entry = ring_entry(&driver.ring)
    io_uring_prep_timeout(entry, &driver.timer, 0, 0)
    entry.user_data = <uint64_t>OPERATION_TIMER << 56


cdef int64_t wait_us_of(Engine *engine, const Uring *driver) noexcept nogil:
    """How long the engine may wait, bounded by the driver's own moments; -1: for ever."""
    cdef int64_t wait_us = turn_wait_us(engine)
    cdef uint64_t moment_us = NEVER_US
    if driver.accept_retry_us and not engine.draining:
        moment_us = driver.accept_retry_us
    if driver.suspect_count:
        moment_us = min(moment_us, driver.probe_us)
    if moment_us == NEVER_US:
        return wait_us
    moment_us -= min(moment_us, engine.now_us)
    return <int64_t>moment_us if wait_us < 0 else min(wait_us, <int64_t>moment_us)


cdef bint must_log(const Engine *engine) noexcept nogil:
    """Whether lines wait, so that this thread will wake by itself before long."""
    return engine.tier.can_answer and engine.log.used > 0 and not engine.log.writing


cdef int one_turn(Engine *engine, Uring *driver, int64_t wait_us) noexcept nogil:
    cdef int result
    if engine.tier is not NULL and wait_us:
        if engine.tier.is_held:
            wait_us = HELD_WAIT_US          # until the log was written, which ends the wait
        elif not tier_sleeps(engine.tier, must_log(engine)):
            wait_us = 0
        elif not engine.tier.can_answer:    # else packets that are answered in the kernel would wake this thread, too
            wait_us = polled_arm(engine, &driver.ring, &driver.polled, wait_us)
    if wait_us > SHORT_WAIT_US:
        arm_timer(engine, driver, wait_us)
        wait_us = -1
    result = ring_submit_and_wait(&driver.ring, wait_us)
    turn_begin(engine)
    engine.counters.submits = driver.ring.system_calls
    if engine.tier is not NULL:
        polled_woke(engine, &driver.ring, &driver.polled)
    reap(engine, driver)
    if engine.tier is not NULL:
        tier_woke(engine.tier)
        if engine.tier.can_answer:
            answer_turn(engine, engine.tier)
            arm_files(engine, driver)
        tier_consume(engine, engine.tier)
        polled_settle(engine, &driver.ring, &driver.polled)
        engine.more_input |= tier_has_news(engine.tier) and not engine.tier.is_held
    if driver.accept_retry_us and not engine.draining:
        retry_accepts(engine, driver)
    turn_end(engine)
    if driver.suspect_count:
        probe_suspects(engine, driver)
    return result


cdef int loop(Engine *engine, Uring *driver) noexcept nogil:
    cdef int result = 0
    start_accepting(driver)
    arm_bell(driver, engine.bell)
    if engine.tier is not NULL:
        arm_records(driver, engine.tier)
    while turn_goes_on(engine):
        if engine.draining and driver.accepting:
            stop_accepting(engine, driver)
        result = one_turn(engine, driver, wait_us_of(engine, driver))
        if result < 0 and result != -EAGAIN:
            break
    wind_up(engine, driver)
    return 0 if result == -EAGAIN else result


cdef bint has_records(const Engine *engine) noexcept nogil:
    return engine.tier is not NULL and tier_has_records(engine.tier)


cdef void wind_up(Engine *engine, Uring *driver) noexcept nogil:
    """Closes what is open and lets the log be written, for a second at most."""
    cdef uint32_t index
    cdef uint64_t until_us = engine.now_us + 1000000
    stop_accepting(engine, driver)
    close_surplus(driver)
    for index in range(engine.connections_made):
        driver_tear_down(engine, &engine.connections[index])
    while engine.now_us < until_us and (engine.open_connections or engine.log.used or engine.log.writing
                                        or engine.counters.zero_copy_pending or engine.fills_under_way
                                        or has_records(engine)):
        log_flush(engine)
        one_turn(engine, driver, 1000)


cdef void driver_ring_bell(Engine *engine, int bell) noexcept nogil:
    # Not through the ring: an eventfd has no write that could not block, so the kernel would give it to a thread.
    cdef uint64_t one = 1
    write(bell, &one, 8)


cdef class UringEngine(EngineThread):
    """The engine with the io_uring driver, and with the kernel side where `settings` say so.

    EngineError: this kernel, or a sandbox, does not let it be.
    """
    cdef object kernel_side

    def __init__(self, settings, routes, int lane_count, listeners=()):
        super().__init__(settings, routes, lane_count, listeners)
        self.kernel_side = None
        if settings.get("has_kernel_side"):
            # Not every build has it.
            from batchbridge.cython_ext.bpf import KernelSide
            self.kernel_side = KernelSide(settings["max_connections"], settings["kernel_ring_size_bytes"],
                                          [listener.fileno() for listener in listeners], settings["sqpoll"],
                                          settings["kernel_requests_min"])
            self.engine.tier = <Tier *><size_t>self.kernel_side.tier_address

    def stats(self):
        figures = super().stats()
        if self.engine.driver_data is not NULL and driver_of(self.engine).lanes_registered:
            figures["bridge"]["response_arena_registered_size_bytes"] = figures["bridge"]["response_arena_size_bytes"]
        if self.kernel_side is not None:
            figures["kernel_side"] = self.kernel_side.stats()
            if self.engine.driver_data is not NULL:
                figures["kernel_side"]["lost_wakes"] = driver_of(self.engine).polled.lost_wakes
            self.kernel_side.add_answered(figures)
        return figures

    cdef open_ring(self, Uring *driver):
        cdef Engine *engine = self.engine
        cdef uint64_t buffers = engine.limits.receive_buffers
        cdef int result = ring_open(&driver.ring, SUBMISSION_ENTRIES, COMPLETION_ENTRIES)
        if result < 0:
            raise EngineError(f"io_uring cannot be set up: {os.strerror(-result)}")
        if driver.is_direct:
            result = io_uring_register_files_sparse(&driver.ring.uring, engine.limits.connections_max)
        if result < 0:
            raise EngineError(f"io_uring: {engine.limits.connections_max} direct descriptors (max_connections): "
                              f"{os.strerror(-result)}; raise the limit of open files (ulimit -n)")
        result = ring_provide(&driver.ring, <uint32_t>buffers, engine.limits.receive_buffer_size_bytes)
        if result < 0:
            raise EngineError(f"io_uring: {buffers} receive buffers: {os.strerror(-result)}")

    cdef int run_loop(self) except -1:
        cdef Engine *engine = self.engine
        cdef Uring *driver = <Uring *>calloc(1, sizeof(Uring))
        cdef int result
        if driver is NULL:
            raise MemoryError
        engine.driver_data = driver
        driver.polled.tag = <uint64_t>OPERATION_POLLED << 56
        # The kernel side's sockets are read by plain calls, too, where its ring was full.
        driver.is_direct = self.settings["has_socket_command"] and engine.tier is NULL
        driver.slot_flag = IOSQE_FIXED_FILE if driver.is_direct else 0
        for listener in self.listeners[:LISTENERS_MAX]:
            add_listener(driver, listener.fileno(), listener.family)
        self.fill_driver()
        try:
            driver.peer_names = <char *>calloc(engine.limits.connections_max, PEER_NAME_SIZE_BYTES)
            driver.suspects = <uint32_t *>calloc(engine.limits.connections_max, sizeof(uint32_t))
            driver.is_suspect = <uint8_t *>calloc(engine.limits.connections_max, 1)
            if driver.peer_names is NULL or driver.suspects is NULL or driver.is_suspect is NULL:
                raise MemoryError
            self.open_ring(driver)
            if self.settings["has_zero_copy"]:
                register_memory(engine, driver)
            if engine.tier is not NULL and engine.tier.can_answer:
                result = answer_begin(engine, engine.tier)
                if result < 0:
                    raise EngineError(f"the kernel thread that sends cannot ring a bell: {os.strerror(-result)}")
            self.started()
            with nogil:
                result = loop(engine, driver)
        finally:
            if engine.tier is not NULL:
                publish_end(engine.tier)
            forget_memory(engine)
            ring_close(&driver.ring)
            free(driver.is_suspect)
            free(driver.suspects)
            free(driver.peer_names)
            free(driver)
            engine.driver_data = NULL
        if result < 0:
            raise EngineError(f"io_uring stopped working: {os.strerror(-result)}")
        return 0

    cdef fill_driver(self):
        cdef Engine *engine = self.engine
        engine.driver.send = driver_send
        engine.driver.send_last = driver_send_last
        engine.driver.send_reported = driver_send_reported
        engine.driver.read_fragment = driver_read_fragment
        engine.driver.look_up = opening_by_thread
        engine.driver.pause = driver_pause
        engine.driver.resume = driver_resume
        engine.driver.finish = driver_finish
        engine.driver.tear_down = driver_tear_down
        engine.driver.ring_bell = driver_ring_bell
        engine.driver.write_log = driver_write_log
