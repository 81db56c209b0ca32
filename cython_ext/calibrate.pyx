"""What a send costs the thread that makes it, copied and without a copy: measured here, in a few milliseconds.

What is timed is the sending side, and no more. Over loopback the kernel copies at the receiver what was sent without a
copy, and does that within the sender's call, so a whole way over loopback says that zero copy never pays. So:

- The peer's window is full before anything is timed: what is sent stays in the socket's queue. Then the connection is
  reset, which gives the queue back. Timed are the sends, with their completions, and that end with the notifications:
  the copy and its memory on one side, references to pages and a second completion on the other.
- What cannot be timed here is a network card: it reads pages of 4 KiB from a registered buffer, and larger pieces from
  what was copied. Whoever decides leaves a margin for it.
- The clock is the processor time of the thread, so what others do meanwhile adds little. Both ways take turns, and each
  size is tried once a round; lower quartiles of the rounds are told.
- It ends by itself: rounds and time are limited, each wait has a limit, and nothing is left behind. What was locked for
  the buffer is given back before the function returns, since an engine may need it.
"""
import os

from libc.errno cimport EINTR, EIO, ENOMEM, ETIME, errno
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.string cimport memset

from batchbridge.cython_ext.ring cimport *


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    enum:
        CLOCK_MONOTONIC
        CLOCK_THREAD_CPUTIME_ID
    int clock_gettime(int, timespec *) noexcept


cdef extern from "<sys/time.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec


cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    struct linger:
        int l_onoff
        int l_linger
    int socket(int, int, int) noexcept
    int bind(int, const sockaddr *, unsigned int) noexcept
    int listen(int, int) noexcept
    int accept4(int, sockaddr *, unsigned int *, int) noexcept
    int connect(int, const sockaddr *, unsigned int) noexcept
    int getsockname(int, sockaddr *, unsigned int *) noexcept
    int setsockopt(int, int, int, const void *, unsigned int) noexcept
    ssize_t send(int, const void *, size_t, int) noexcept
    enum:
        AF_INET
        MSG_DONTWAIT
        MSG_EOR
        MSG_NOSIGNAL
        SOCK_CLOEXEC
        SOCK_STREAM
        SOL_SOCKET
        SO_LINGER
        SO_RCVTIMEO
        SO_SNDTIMEO


cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    uint32_t htonl(uint32_t) noexcept
    enum:
        INADDR_LOOPBACK


cdef extern from "<linux/sockios.h>" nogil:
    enum:
        SIOCOUTQNSD                     # bytes that were not sent yet


cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int, unsigned long, ...) noexcept


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *, size_t, int, int, int, long) noexcept
    int munmap(void *, size_t) noexcept
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void *MAP_FAILED


cdef extern from "<unistd.h>" nogil:
    int close(int) noexcept


cdef enum:
    SIZES_MAX = 8
    ROUNDS_MAX = 15
    SENDS = 4                           # of a batch: what one costs is too little for the clock
    FILLS_MAX = 64                      # pieces of FILL_SIZE_BYTES that may fill a window
    FILL_SIZE_BYTES = 65536
    BUFFER_SIZE_BYTES = 262144          # SENDS of the largest size
    SIZE_BYTES_MAX = 65536
    WAITS_MAX = 5
    WAIT_US = 1000
    INTERRUPTIONS_MAX = 16              # signals; a batch that met one is made again
    CONNECT_TIMEOUT_US = 5000           # over loopback it takes none, unless something forbids it


cdef struct Trial:
    Ring ring
    char *buffer
    int listener
    sockaddr_in address
    uint32_t notified                   # zero-copy sends of the batch that the kernel has let go of
    int fault                           # -errno of a send that failed or fell short


cdef int64_t clock_ns(int which) noexcept nogil:
    cdef timespec now
    clock_gettime(which, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


# --- what is set up and taken down -----------------------------------------------------------------------------------

cdef int limit_wait(int fd, int option) noexcept nogil:
    cdef timeval limit
    limit.tv_sec = 0
    limit.tv_usec = CONNECT_TIMEOUT_US
    return setsockopt(fd, SOL_SOCKET, option, &limit, sizeof(limit))


cdef int trial_listen(Trial *trial) noexcept nogil:
    cdef unsigned int length = sizeof(trial.address)
    trial.address.sin_family = AF_INET
    trial.address.sin_addr.s_addr = htonl(INADDR_LOOPBACK)
    trial.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if (trial.listener < 0 or limit_wait(trial.listener, SO_RCVTIMEO) < 0
            or bind(trial.listener, <sockaddr *>&trial.address, length) < 0 or listen(trial.listener, SENDS) < 0
            or getsockname(trial.listener, <sockaddr *>&trial.address, &length) < 0):
        return -errno
    return 0


cdef int trial_open(Trial *trial) noexcept nogil:
    """0 or -errno; trial_close takes down what there is in either case."""
    cdef void *memory
    cdef int result
    memset(trial, 0, sizeof(Trial))
    trial.listener = -1
    result = ring_open(&trial.ring, 16, 64)
    if result < 0:
        return result
    memory = mmap(NULL, BUFFER_SIZE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if memory == MAP_FAILED:
        return -ENOMEM
    trial.buffer = <char *>memory
    memset(memory, 120, BUFFER_SIZE_BYTES)          # pages of its own, instead of the one that is all zeros
    result = ring_buffers(&trial.ring, 1)
    if result == 0:
        result = ring_set_buffer(&trial.ring, 0, memory, BUFFER_SIZE_BYTES)
    return result if result < 0 else trial_listen(trial)


cdef void trial_close(Trial *trial) noexcept nogil:
    if trial.listener >= 0:
        close(trial.listener)
    if trial.ring.is_open and trial.buffer is not NULL:
        ring_set_buffer(&trial.ring, 0, NULL, 0)
    ring_close(&trial.ring)
    if trial.buffer is not NULL:
        munmap(trial.buffer, BUFFER_SIZE_BYTES)


cdef int connect_full(Trial *trial, int *receiver) noexcept nogil:
    """A connection whose receiver takes nothing more; its sending end, or -errno. Its close is a reset."""
    cdef linger at_once
    cdef int _fill, unsent = 0, result = 0
    cdef int sender = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)
    receiver[0] = -1
    at_once.l_onoff = 1
    at_once.l_linger = 0
    if (sender < 0 or limit_wait(sender, SO_SNDTIMEO) < 0
            or setsockopt(sender, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)) < 0
            or connect(sender, <sockaddr *>&trial.address, sizeof(trial.address)) < 0):
        result = -errno
    else:
        receiver[0] = accept4(trial.listener, NULL, NULL, SOCK_CLOEXEC)
        if receiver[0] < 0:
            result = -errno
    for _fill in range(FILLS_MAX):
        if result < 0 or unsent > 0:
            break
        if send(sender, trial.buffer, FILL_SIZE_BYTES, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 or ioctl(
                sender, SIOCOUTQNSD, &unsent) < 0:
            result = -errno
    if result == 0 and unsent <= 0:
        result = -EIO                               # whoever takes as much as that has read it
    if result == 0:
        return sender
    if sender >= 0:
        close(sender)
    if receiver[0] >= 0:
        close(receiver[0])
    return result


# --- one batch -------------------------------------------------------------------------------------------------------

cdef void take_completions(Trial *trial, int expected) noexcept nogil:
    cdef io_uring_cqe *completions[16]
    cdef unsigned int index, count = io_uring_peek_batch_cqe(&trial.ring.uring, completions, 16)
    for index in range(count):
        if completions[index].flags & IORING_CQE_F_NOTIF:
            trial.notified += 1
        elif completions[index].res != expected:
            trial.fault = completions[index].res if completions[index].res < 0 else -EIO
            if not completions[index].flags & IORING_CQE_F_MORE:
                trial.notified += 1                 # none will come
    io_uring_cq_advance(&trial.ring.uring, count)


cdef int64_t time_sends(Trial *trial, uint32_t size_bytes, bint copied) noexcept nogil:
    """Nanoseconds of the thread for SENDS sends of that size and their end; or -errno."""
    cdef io_uring_sqe *entry
    cdef int receiver = -1, index, _wait, flags = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_EOR
    cdef int sender = connect_full(trial, &receiver)
    cdef int64_t began_ns, took_ns
    if sender < 0:
        return sender
    trial.notified = SENDS if copied else 0
    trial.fault = 0
    began_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID)
    for index in range(SENDS):
        # Responses of different turns don't share a packet's record (MSG_EOR): each has one made.
        entry = ring_entry(&trial.ring)
        if copied:
            io_uring_prep_send(entry, sender, trial.buffer + index * size_bytes, size_bytes, flags)
        else:
            io_uring_prep_send_zc(entry, sender, trial.buffer + index * size_bytes, size_bytes, flags, 0)
            entry.ioprio |= <uint16_t>IORING_RECVSEND_FIXED_BUF
            entry.buf_index = 0
        ring_submit_and_wait(&trial.ring, 0)
        take_completions(trial, <int>size_bytes)
    close(sender)
    ring_submit_and_wait(&trial.ring, 0)
    take_completions(trial, <int>size_bytes)
    for _wait in range(WAITS_MAX):
        if trial.notified >= SENDS:
            break
        ring_submit_and_wait(&trial.ring, WAIT_US)
        take_completions(trial, <int>size_bytes)
    took_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - began_ns
    close(receiver)
    if trial.fault < 0:
        return trial.fault
    return took_ns if trial.notified >= SENDS else -ETIME


cdef int run_rounds(Trial *trial, const uint32_t *sizes, int size_count, int64_t *samples, int rounds,
                    int64_t until_ns) noexcept nogil:
    """Fills `samples` round by round, and returns how many rounds were ended in time, or -errno."""
    cdef int number, place, way, copied, interrupted = 0
    cdef int64_t took_ns
    for number in range(rounds):
        for place in range(size_count):
            for way in range(2):
                copied = (way ^ number) & 1
                took_ns = -EINTR
                while took_ns == -EINTR and interrupted < INTERRUPTIONS_MAX:
                    if clock_ns(CLOCK_MONOTONIC) > until_ns:
                        return number
                    took_ns = time_sends(trial, sizes[place], copied)
                    interrupted += took_ns == -EINTR
                if took_ns < 0:
                    return <int>took_ns
                samples[(place * 2 + copied) * ROUNDS_MAX + number] = took_ns
    return rounds


def measure(sizes_bytes, int rounds, int64_t budget_us):
    """Times sends of these sizes (65,536 at most), in so many rounds (15 at most) or as many as end in `budget_us`.

    Returns a dict: `rounds`, those that were ended; `costs_us`, by size a pair (copied, without a copy) in microseconds
    of the thread for one send, lower quartiles; `took_us`, by the clock; `error`, "" or why there are no costs.
    Raises ValueError for sizes or rounds beyond these limits.
    """
    cdef Trial trial
    cdef uint32_t sizes[SIZES_MAX]
    cdef int64_t samples[SIZES_MAX * 2 * ROUNDS_MAX]
    cdef int64_t began_ns = clock_ns(CLOCK_MONOTONIC)
    cdef int place, result, count = len(sizes_bytes)
    if not 0 < count <= SIZES_MAX or not all(0 < size <= SIZE_BYTES_MAX for size in sizes_bytes):
        raise ValueError(f"sizes_bytes: {sizes_bytes!r} are not 1 to {SIZES_MAX} sizes of 1 to {SIZE_BYTES_MAX} bytes")
    if not 0 < rounds <= ROUNDS_MAX:
        raise ValueError(f"rounds: {rounds} is not 1 to {ROUNDS_MAX}")
    for place, size in enumerate(sizes_bytes):
        sizes[place] = size
    with nogil:
        result = trial_open(&trial)
        if result == 0:
            result = run_rounds(&trial, sizes, count, samples, rounds, began_ns + budget_us * 1000)
        trial_close(&trial)
    costs_us = {}
    if result > 0:
        for place in range(count):
            costs_us[sizes[place]] = (quartile_us(samples + (place * 2 + 1) * ROUNDS_MAX, result),
                                      quartile_us(samples + place * 2 * ROUNDS_MAX, result))
    return {"rounds": max(result, 0), "costs_us": costs_us, "error": os.strerror(-result) if result < 0 else "",
            "took_us": (clock_ns(CLOCK_MONOTONIC) - began_ns) // 1000}


cdef quartile_us(const int64_t *samples, int count):
    """Of one send. Noise only adds (an interrupt, a cold cache), so the lower quartile is nearer to the cost than the
    median, and still no single sample decides where there are five."""
    return sorted([samples[index] for index in range(count)])[(count - 1) // 4] / 1000 / SENDS
