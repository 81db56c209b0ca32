"""The ring whose entries the kernel side writes and a kernel thread submits (io_uring's SQPOLL).

The rules:

- User mode writes an entry only while the ring is set up, when nobody else does. From then on it waits, wakes and reads
  completions.
- The thread sleeps when it had nothing to do for a while, and says so (NEED_WAKEUP). Who writes an entry looks for that
  behind it; a thread about to sleep looks for entries behind saying so. So one of them sees the other.
- The thread may share user mode's core, so whoever waits for it sleeps in between.
"""
from libc.errno cimport ENOSYS, ETIME
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from batchbridge.cython_ext.ring cimport io_uring_cqe, io_uring_params


cdef extern from "shared.h" nogil:
    enum:
        BB_SENDS_MAX
        BB_SEND_COMPLETIONS_MAX
    ctypedef struct bb_send_entry:
        uint8_t opcode
    ctypedef struct bb_send_entries:
        bb_send_entry entries[1]


cdef extern from "compat.h" nogil:
    uint64_t bb_now_us() noexcept
    uint32_t bb_load_acquire(const uint32_t *) noexcept
    uint32_t bb_load_relaxed(const uint32_t *) noexcept
    void bb_store_release(uint32_t *, uint32_t) noexcept
    void bb_full_fence() noexcept
    int bb_polled_ring(io_uring_params *, uint32_t, uint32_t, void *, void *, uint32_t, uint32_t) noexcept
    void bb_ring_enter(int, uint32_t) noexcept
    int bb_ring_bell(int, int) noexcept
    int bb_pass_map_lock(int) noexcept


cdef extern from "<liburing.h>" nogil:
    unsigned int IORING_ENTER_SQ_WAKEUP, IORING_ENTER_GETEVENTS, IORING_SQ_NEED_WAKEUP, IORING_SQ_CQ_OVERFLOW
    int IORING_OP_NOP


cdef extern from "<unistd.h>" nogil:
    int close(int) noexcept


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int nanosleep(const timespec *, timespec *) noexcept


cdef enum:
    WORDS = 16                      # of a ring's head that the kernel side can reach
    IDLE_MS = 50                    # that the thread spins for without any entry: a wake-up is dearer than that is long
    LOOKS = 200                     # before a wait sleeps
    SLEEP_NS = 20000
    PATIENCE_US = 5000000           # with a thread that does nothing
    TRY_PATIENCE_US = 1000000


cdef int sender_open(Sender *sender, void *ring, void *entries, int lock, uint32_t core, uint32_t *at) noexcept nogil:
    cdef io_uring_params parameters
    cdef char *base = <char *>ring
    memset(sender, 0, sizeof(Sender))
    sender.fd = bb_polled_ring(&parameters, BB_SENDS_MAX, BB_SEND_COMPLETIONS_MAX, ring, entries, core, IDLE_MS)
    if sender.fd < 0:
        return sender.fd
    sender.lock = lock
    at[0] = parameters.sq_off.head // 4
    at[1] = parameters.sq_off.tail // 4
    at[2] = parameters.sq_off.flags // 4
    sender.head = <const uint32_t *>(base + parameters.sq_off.head)
    sender.tail = <uint32_t *>(base + parameters.sq_off.tail)
    sender.flags = <const uint32_t *>(base + parameters.sq_off.flags)
    sender.completion_head = <uint32_t *>(base + parameters.cq_off.head)
    sender.completion_tail = <const uint32_t *>(base + parameters.cq_off.tail)
    sender.completion_mask = (<const uint32_t *>(base + parameters.cq_off.ring_mask))[0]
    sender.completions = <const io_uring_cqe *>(base + parameters.cq_off.cqes)
    if max(at[0], at[1], at[2]) >= WORDS:
        sender_close(sender)
        return -ENOSYS
    return try_thread(sender, <bb_send_entries *>entries)


cdef int try_thread(Sender *sender, bb_send_entries *entries) noexcept nogil:
    """Lets the thread carry out an entry that does nothing, so that it is known to run where it was asked to."""
    cdef uint64_t until_us = bb_now_us() + TRY_PATIENCE_US
    cdef uint64_t user_data = 0
    cdef int32_t result = 0
    memset(&entries.entries[0], 0, sizeof(entries.entries[0]))
    entries.entries[0].opcode = <uint8_t>IORING_OP_NOP
    bb_store_release(sender.tail, 1)
    bb_ring_enter(sender.fd, IORING_ENTER_SQ_WAKEUP)
    while not sender_has_passed(sender, 1):
        if bb_now_us() > until_us:
            sender_close(sender)
            return -ETIME
        rest()
    # Made before the head passed.
    return 0 if sender_completion(sender, &user_data, &result) else -ETIME


cdef void sender_close(Sender *sender) noexcept nogil:
    # The kernel waits for the entry that is being carried out, and submits no other one afterwards.
    if sender.fd >= 0:
        close(sender.fd)
        sender.fd = -1


cdef int sender_bell(Sender *sender, int bell) noexcept nogil:
    return bb_ring_bell(sender.fd, bell)


cdef void rest() noexcept nogil:
    cdef timespec duration
    duration.tv_sec = 0
    duration.tv_nsec = SLEEP_NS
    nanosleep(&duration, NULL)


cdef uint64_t sender_written_behind(Sender *sender) noexcept nogil:
    bb_full_fence()
    bb_pass_map_lock(sender.lock)
    return sender_written(sender)


cdef uint64_t sender_written(Sender *sender) noexcept nogil:
    look(sender)
    return sender.passed + <uint32_t>(bb_load_acquire(sender.tail) - <uint32_t>sender.passed)


cdef void look(Sender *sender) noexcept nogil:
    """The ring's own positions have 32 bits, which are used up in some hours."""
    sender.passed += <uint32_t>(bb_load_acquire(sender.head) - <uint32_t>sender.passed)


cdef bint sender_has_passed(Sender *sender, uint64_t position) noexcept nogil:
    look(sender)
    return sender.fd < 0 or sender.passed >= position


cdef void sender_wait(Sender *sender, uint64_t position) noexcept nogil:
    cdef uint64_t until_us
    cdef int _look
    if sender_has_passed(sender, position):
        return
    sender.waits += 1
    for _look in range(LOOKS):
        if sender_has_passed(sender, position):
            return
    until_us = bb_now_us() + PATIENCE_US
    while not sender_has_passed(sender, position):
        if bb_now_us() > until_us:
            sender_close(sender)
            return
        sender_wake(sender)
        rest()


cdef void sender_wake(Sender *sender) noexcept nogil:
    if sender.fd < 0 or not bb_load_relaxed(sender.flags) & IORING_SQ_NEED_WAKEUP:
        return
    if bb_load_acquire(sender.tail) != bb_load_acquire(sender.head):
        sender.wakes += 1
        bb_ring_enter(sender.fd, IORING_ENTER_SQ_WAKEUP)


cdef bint sender_has_completions(const Sender *sender) noexcept nogil:
    return sender.completion_head[0] != bb_load_acquire(sender.completion_tail)


cdef bint sender_completion(Sender *sender, uint64_t *user_data, int32_t *result) noexcept nogil:
    cdef uint32_t head = sender.completion_head[0]
    if head == bb_load_acquire(sender.completion_tail):
        if sender.fd >= 0 and bb_load_relaxed(sender.flags) & IORING_SQ_CQ_OVERFLOW:
            bb_ring_enter(sender.fd, IORING_ENTER_GETEVENTS)
        if head == bb_load_acquire(sender.completion_tail):
            return False
    user_data[0] = sender.completions[head & sender.completion_mask].user_data
    result[0] = sender.completions[head & sender.completion_mask].res
    bb_store_release(sender.completion_head, head + 1)
    return True
