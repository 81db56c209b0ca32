"""io_uring as the engine uses it.

Rules: one thread sets a ring up, submits, and reaps (SINGLE_ISSUER); completions are made when that thread asks for
them (DEFER_TASKRUN), so nothing interrupts it, and what came meanwhile arrives as one batch. Functions return -errno.
"""
from libc.errno cimport EINTR, EMFILE, ENOMEM, ETIME
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memset


cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **, size_t, size_t) noexcept


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *, size_t, int, int, int, long) noexcept
    int munmap(void *, size_t) noexcept
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void *MAP_FAILED


cdef extern from "compat.h" nogil:
    void bb_prep_peer_name(io_uring_sqe *, int, void *, uint32_t) noexcept


cdef extern from "<sys/socket.h>" nogil:
    int socketpair(int, int, int, int *) noexcept
    int AF_UNIX, SOCK_STREAM


cdef extern from "<unistd.h>" nogil:
    int close(int) noexcept
    ssize_t write(int, const void *, size_t) noexcept


cdef int ring_open(Ring *ring, uint32_t entries, uint32_t completion_entries) noexcept nogil:
    cdef io_uring_params parameters
    cdef int result
    memset(ring, 0, sizeof(Ring))
    memset(&parameters, 0, sizeof(parameters))
    parameters.flags = (IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN
                        | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL)
    parameters.cq_entries = completion_entries
    result = io_uring_queue_init_params(entries, &ring.uring, &parameters)
    if result == 0:
        io_uring_register_ring_fd(&ring.uring)
        ring.is_open = True
    return result


cdef void ring_close(Ring *ring) noexcept nogil:
    if not ring.is_open:
        return      # its descriptor is 0, which is somebody else's
    io_uring_queue_exit(&ring.uring)
    ring.is_open = False
    if ring.buffers is not NULL:
        munmap(ring.buffers, <size_t>ring.buffer_count * ring.buffer_size_bytes)
    free(ring.buffer_ring)
    ring.buffers = NULL
    ring.buffer_ring = NULL


cdef int ring_provide(Ring *ring, uint32_t count, uint32_t size_bytes) noexcept nogil:
    cdef io_uring_buf_reg registration
    cdef uint32_t index
    cdef int result
    cdef void *memory = NULL
    if posix_memalign(&memory, 4096, count * 16):
        return -ENOMEM
    ring.buffer_ring = <io_uring_buf_ring *>memory
    memory = mmap(NULL, <size_t>count * size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if memory == MAP_FAILED:
        return -ENOMEM
    ring.buffers = <char *>memory
    ring.buffer_count = count
    ring.buffer_size_bytes = size_bytes
    memset(&registration, 0, sizeof(registration))
    registration.ring_addr = <size_t>ring.buffer_ring
    registration.ring_entries = count
    registration.bgid = RECEIVE_GROUP
    result = io_uring_register_buf_ring(&ring.uring, &registration, 0)
    if result < 0:
        return result
    io_uring_buf_ring_init(ring.buffer_ring)
    for index in range(count):
        ring_give_back(ring, index)
    ring_show_buffers(ring)
    return 0


cdef void ring_give_back(Ring *ring, uint32_t buffer) noexcept nogil:
    io_uring_buf_ring_add(ring.buffer_ring, ring.buffers + <size_t>buffer * ring.buffer_size_bytes,
                          ring.buffer_size_bytes, <unsigned short>buffer, <int>ring.buffer_count - 1, ring.given_back)
    ring.given_back += 1


cdef void ring_show_buffers(Ring *ring) noexcept nogil:
    if ring.given_back:
        io_uring_buf_ring_advance(ring.buffer_ring, ring.given_back)
        ring.given_back = 0


cdef int ring_buffers(Ring *ring, uint32_t count) noexcept nogil:
    return io_uring_register_buffers_sparse(&ring.uring, count) if count else 0


cdef int ring_set_buffer(Ring *ring, uint32_t number, void *at, uint64_t size_bytes) noexcept nogil:
    cdef iovec buffer
    cdef int result
    buffer.iov_base = at
    buffer.iov_len = size_bytes
    result = io_uring_register_buffers_update_tag(&ring.uring, number, &buffer, NULL, 1)
    return 0 if result == 1 else min(result, -1)


cdef io_uring_sqe *ring_entry(Ring *ring) noexcept nogil:
    cdef io_uring_sqe *entry = io_uring_get_sqe(&ring.uring)
    while entry is NULL:
        ring.system_calls += 1
        io_uring_submit(&ring.uring)
        entry = io_uring_get_sqe(&ring.uring)
    return entry


cdef int ring_submit_and_wait(Ring *ring, int64_t wait_us) noexcept nogil:
    cdef __kernel_timespec duration
    cdef io_uring_cqe *completion = NULL
    cdef int result
    ring.system_calls += 1
    if wait_us < 0:
        result = io_uring_submit_and_wait(&ring.uring, 1)
    elif wait_us == 0:
        result = io_uring_submit_and_get_events(&ring.uring)
    else:
        duration.tv_sec = wait_us // 1000000
        duration.tv_nsec = (wait_us % 1000000) * 1000
        result = io_uring_submit_and_wait_timeout(&ring.uring, &completion, 1, &duration, NULL)
    # A time-out and a signal are no failures: the loop looks at the clock, and at what Python wants, in any case.
    return 0 if result == -ETIME or result == -EINTR else result


# --- what this kernel has --------------------------------------------------------------------------------------------

cdef int one_operation(Ring *ring, int32_t *result, uint32_t *flags) noexcept nogil:
    """Submits the one entry that was prepared and takes its first completion; 0, or -ETIME after 100 ms."""
    cdef io_uring_cqe *completions[1]
    cdef int _tries
    for _tries in range(10):
        ring_submit_and_wait(ring, 10000)
        if io_uring_peek_batch_cqe(&ring.uring, completions, 1):
            result[0] = completions[0].res
            flags[0] = completions[0].flags
            io_uring_cq_advance(&ring.uring, 1)
            return 0
    return -ETIME


cdef probe_sockets(Ring *ring, dict found):
    """Tries receiving from provided buffers, zero-copy sending, and socket commands on a pair of sockets."""
    cdef int ends[2]
    cdef int32_t result = 0
    cdef uint32_t flags = 0
    cdef io_uring_sqe *entry
    cdef char address[64]
    cdef iovec registered
    if socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0:
        return
    write(ends[1], b"x", 1)
    entry = ring_entry(ring)
    io_uring_prep_recv_multishot(entry, ends[0], NULL, 0, 0)
    entry.flags = <uint8_t>IOSQE_BUFFER_SELECT
    entry.buf_group = RECEIVE_GROUP
    found["multishot_recv"] = (one_operation(ring, &result, &flags) == 0 and result == 1
                               and bool(flags & IORING_CQE_F_MORE))
    # Two bytes: the family of an unnamed end. SO_PEERNAME refuses to be asked for more than there is.
    bb_prep_peer_name(ring_entry(ring), ends[1], address, 2)
    found["socket_cmd"] = one_operation(ring, &result, &flags) == 0 and result >= 0
    registered.iov_base = ring.buffers
    registered.iov_len = ring.buffer_size_bytes
    found["registered_buffers"] = io_uring_register_buffers(&ring.uring, &registered, 1) == 0
    close(ends[0])
    close(ends[1])


cdef int32_t opcode_supported(int opcode) noexcept:
    cdef io_uring_probe *probe = io_uring_get_probe()
    cdef int supported = 0
    if probe is not NULL:
        supported = io_uring_opcode_supported(probe, opcode)
        io_uring_free_probe(probe)
    return supported


cdef extern from "<liburing.h>" nogil:
    struct io_uring_probe
    io_uring_probe *io_uring_get_probe() noexcept
    int io_uring_opcode_supported(io_uring_probe *, int) noexcept
    void io_uring_free_probe(io_uring_probe *) noexcept
    int IORING_OP_SEND_ZC


def probe() -> dict:
    """What io_uring can do here, tried and not guessed from a version.

    Keys: single_issuer, defer_taskrun, buffer_ring, multishot_accept_direct, multishot_recv, send_zc, socket_cmd,
    registered_buffers (bool each), and ring_error: "" or why there is no ring at all. Takes about a millisecond.
    """
    cdef Ring ring
    cdef int result = ring_open(&ring, 8, 32)
    found = dict.fromkeys(("single_issuer", "defer_taskrun", "buffer_ring", "multishot_accept_direct", "multishot_recv",
                           "send_zc", "socket_cmd", "registered_buffers"), False)
    found["ring_error"] = ""
    cdef int files = io_uring_register_files_sparse(&ring.uring, 8) if result == 0 else 0
    if files == -EMFILE:                # said of a limit, and not of this kernel
        ring_close(&ring)
        result = files
    if result < 0:
        import os
        found["ring_error"] = os.strerror(-result)
        return found
    found["single_issuer"] = True
    found["defer_taskrun"] = True
    found["multishot_accept_direct"] = files == 0
    found["buffer_ring"] = ring_provide(&ring, 8, 2048) == 0
    found["send_zc"] = bool(opcode_supported(IORING_OP_SEND_ZC))
    if found["buffer_ring"]:
        probe_sockets(&ring, found)
    ring_close(&ring)
    return found
