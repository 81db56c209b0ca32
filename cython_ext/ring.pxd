# io_uring as the engine uses it: a thin layer over liburing (2.3 or later). Knows no HTTP and no connections.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "<liburing.h>" nogil:
    struct __kernel_timespec:
        long long tv_sec
        long long tv_nsec

    struct io_uring_sqe:
        uint8_t flags
        uint16_t ioprio
        uint64_t user_data
        uint16_t buf_index
        uint16_t buf_group

    struct io_uring_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags

    struct io_uring_sq:
        unsigned int *kflags

    struct io_uring:
        io_uring_sq sq
        unsigned int flags
        int ring_fd

    struct io_sqring_offsets:       # bytes from the ring's first
        uint32_t head, tail, flags

    struct io_cqring_offsets:
        uint32_t head, tail, ring_mask, cqes

    struct io_uring_params:
        uint32_t sq_entries
        uint32_t cq_entries
        uint32_t flags
        uint32_t features
        io_sqring_offsets sq_off
        io_cqring_offsets cq_off

    struct io_uring_buf
    struct io_uring_buf_ring
    struct io_uring_buf_reg:
        uint64_t ring_addr
        uint32_t ring_entries
        uint16_t bgid

    int io_uring_queue_init_params(unsigned int, io_uring *, io_uring_params *) noexcept
    void io_uring_queue_exit(io_uring *) noexcept
    int io_uring_register_ring_fd(io_uring *) noexcept
    int io_uring_register_files_sparse(io_uring *, unsigned int) noexcept
    int io_uring_register_buffers(io_uring *, const iovec *, unsigned int) noexcept
    int io_uring_register_buffers_sparse(io_uring *, unsigned int) noexcept
    int io_uring_register_buffers_update_tag(io_uring *, unsigned int, const iovec *, const void *,
                                             unsigned int) noexcept
    int io_uring_register_buf_ring(io_uring *, io_uring_buf_reg *, unsigned int) noexcept
    void io_uring_buf_ring_init(io_uring_buf_ring *) noexcept
    void io_uring_buf_ring_add(io_uring_buf_ring *, void *, unsigned int, unsigned short, int, int) noexcept
    void io_uring_buf_ring_advance(io_uring_buf_ring *, int) noexcept
    io_uring_sqe *io_uring_get_sqe(io_uring *) noexcept
    int io_uring_submit(io_uring *) noexcept
    int io_uring_submit_and_wait(io_uring *, unsigned int) noexcept
    int io_uring_submit_and_wait_timeout(io_uring *, io_uring_cqe **, unsigned int, __kernel_timespec *,
                                         void *) noexcept
    int io_uring_submit_and_get_events(io_uring *) noexcept
    unsigned int io_uring_peek_batch_cqe(io_uring *, io_uring_cqe **, unsigned int) noexcept
    unsigned int io_uring_sq_ready(const io_uring *) noexcept
    unsigned int io_uring_cq_ready(const io_uring *) noexcept
    void io_uring_cq_advance(io_uring *, unsigned int) noexcept
    void io_uring_prep_multishot_accept_direct(io_uring_sqe *, int, void *, void *, int) noexcept
    void io_uring_prep_multishot_accept(io_uring_sqe *, int, void *, void *, int) noexcept
    void io_uring_prep_recv_multishot(io_uring_sqe *, int, void *, size_t, int) noexcept
    void io_uring_prep_recv(io_uring_sqe *, int, void *, size_t, int) noexcept
    void io_uring_prep_poll_multishot(io_uring_sqe *, int, unsigned int) noexcept
    void io_uring_prep_send(io_uring_sqe *, int, const void *, size_t, int) noexcept
    void io_uring_prep_send_zc(io_uring_sqe *, int, const void *, size_t, int, unsigned int) noexcept
    void io_uring_prep_read(io_uring_sqe *, int, void *, unsigned int, uint64_t) noexcept
    void io_uring_prep_write(io_uring_sqe *, int, const void *, unsigned int, uint64_t) noexcept
    void io_uring_prep_close_direct(io_uring_sqe *, unsigned int) noexcept
    void io_uring_prep_close(io_uring_sqe *, int) noexcept
    void io_uring_prep_shutdown(io_uring_sqe *, int, int) noexcept
    void io_uring_prep_cancel64(io_uring_sqe *, uint64_t, int) noexcept
    void io_uring_prep_timeout(io_uring_sqe *, __kernel_timespec *, unsigned int, unsigned int) noexcept
    void io_uring_prep_nop(io_uring_sqe *) noexcept
    unsigned int IORING_SETUP_CQSIZE, IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN
    unsigned int IORING_SETUP_TASKRUN_FLAG, IORING_SETUP_SUBMIT_ALL, IORING_SETUP_R_DISABLED
    unsigned int IORING_SQ_TASKRUN
    unsigned int IOSQE_FIXED_FILE, IOSQE_BUFFER_SELECT, IOSQE_CQE_SKIP_SUCCESS, IOSQE_IO_LINK, IOSQE_IO_HARDLINK
    unsigned int IORING_CQE_F_BUFFER, IORING_CQE_F_MORE, IORING_CQE_F_NOTIF, IORING_CQE_BUFFER_SHIFT
    unsigned int IORING_RECVSEND_FIXED_BUF
    unsigned int IORING_TIMEOUT_ABS


# A ring with its provided receive buffers.
cdef struct Ring:
    io_uring uring
    bint is_open
    io_uring_buf_ring *buffer_ring
    char *buffers
    uint32_t buffer_count           # a power of two
    uint32_t buffer_size_bytes
    int given_back                  # buffers added and not yet shown to the kernel
    uint64_t system_calls


cdef enum:
    RECEIVE_GROUP = 1               # the buffer group of `buffers`


# Sets up a ring with SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1) that only the calling thread will use. 0 or -errno.
cdef int ring_open(Ring *ring, uint32_t entries, uint32_t completion_entries) noexcept nogil

# Also of a ring that could not be opened, or is nothing but zeros.
cdef void ring_close(Ring *ring) noexcept nogil

# Provides `count` (a power of two) receive buffers of one size. 0 or -errno.
cdef int ring_provide(Ring *ring, uint32_t count, uint32_t size_bytes) noexcept nogil
cdef void ring_give_back(Ring *ring, uint32_t buffer) noexcept nogil       # until ring_show_buffers, unseen
cdef void ring_show_buffers(Ring *ring) noexcept nogil

# Makes a table for so many fixed buffers, all of them empty; and puts one in, or (NULL) takes it out: the kernel lets
# go of it when nothing is sent from it any more. 0 or -errno: ENOMEM where the limit of locked memory is reached.
cdef int ring_buffers(Ring *ring, uint32_t count) noexcept nogil
cdef int ring_set_buffer(Ring *ring, uint32_t number, void *at, uint64_t size_bytes) noexcept nogil

# A free submission entry, zeroed; submits what there is when the queue is full. Never NULL.
cdef io_uring_sqe *ring_entry(Ring *ring) noexcept nogil

# Submits, and waits for a completion: forever (-1), not at all (0), or so many microseconds.
cdef int ring_submit_and_wait(Ring *ring, int64_t wait_us) noexcept nogil
