# The ring whose entries the kernel side writes and a kernel thread submits (io_uring's SQPOLL), as user mode sees it.
# Knows no connections and no HTTP.
#
# A position is how many entries came before it since the ring was set up. The head passes an entry when its send has
# been tried; where that fell short, its completion is there by then.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from batchbridge.cython_ext.ring cimport io_uring_cqe


cdef struct Sender:
    int fd                          # of the ring; -1: there is none, or it was given up
    int lock                        # BPF map with the lock that entries are written under
    const uint32_t *head
    uint32_t *tail
    const uint32_t *flags
    uint32_t *completion_head
    const uint32_t *completion_tail
    const io_uring_cqe *completions
    uint32_t completion_mask
    uint64_t passed                 # the head's position, when it was last looked at
    uint64_t waits                  # for the thread, that had to be made
    uint64_t wakes                  # of the thread


# Sets the ring up in memory that the kernel side sees, with its thread on `core`, and lets that carry out an entry that
# does nothing. `at`: gets the places of head, tail and flags, in 32-bit words. 0, or -errno; -ETIME: the thread does
# nothing; -ENOSYS: the kernel side could not reach these places.
cdef int sender_open(Sender *sender, void *ring, void *entries, int lock, uint32_t core, uint32_t *at) noexcept nogil
# Whatever has not been submitted never will be.
cdef void sender_close(Sender *sender) noexcept nogil
# Completions ring this bell (an eventfd). 0 or -errno.
cdef int sender_bell(Sender *sender, int bell) noexcept nogil

# What has been written by now: behind a change that the kernel side looks at under its lock, nothing that ignores the
# change comes later.
cdef uint64_t sender_written_behind(Sender *sender) noexcept nogil
# The same without such a change.
cdef uint64_t sender_written(Sender *sender) noexcept nogil
cdef bint sender_has_passed(Sender *sender, uint64_t position) noexcept nogil
# Waits until it has, some microseconds mostly. A thread that does nothing for seconds is given up, so in any case
# nothing up to there will be sent any more when this returns.
cdef void sender_wait(Sender *sender, uint64_t position) noexcept nogil
# Wakes the thread where it sleeps and there is something to send.
cdef void sender_wake(Sender *sender) noexcept nogil

cdef bint sender_has_completions(const Sender *sender) noexcept nogil
# The next completion; False: there is none.
cdef bint sender_completion(Sender *sender, uint64_t *user_data, int32_t *result) noexcept nogil
