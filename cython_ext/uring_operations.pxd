# The io_uring driver's data, and its operations, told apart by the user_data of their completions. There is no module
# behind this face: what the driver's rooms (uring_*) share is inlined into them.
#
# Every operation of a connection but a send of the scratch is counted (Connection.operations) until its last
# completion. The record is freed, and its slot reused, when the count is 0 and the descriptor closed: no completion
# ever meets a stranger.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.core cimport IS_RECEIVING, Answer, Connection, Engine
from batchbridge.cython_ext.polled cimport PolledSockets
from batchbridge.cython_ext.ring cimport (
    IOSQE_BUFFER_SELECT, IOSQE_CQE_SKIP_SUCCESS, RECEIVE_GROUP, Ring, __kernel_timespec, io_uring_prep_cancel64,
    io_uring_prep_recv_multishot, io_uring_sqe, ring_entry)


cdef enum:
    LISTENERS_MAX = 16
    SURPLUS_MAX = 4096              # as many as a listener's backlog holds
    PEER_NAME_SIZE_BYTES = 32       # room for a struct sockaddr_in6
    NEVER_US = 0x7FFFFFFFFFFFFFFF


# What a completion is of: the top byte of its user_data. Below it 24 bits of the connection's generation, and its index
# (or the number of a listener, or of an Answer).
cdef enum Operation:
    OPERATION_ACCEPT = 1
    OPERATION_PEER
    OPERATION_MEET
    OPERATION_RECEIVE
    OPERATION_SEND
    OPERATION_SEND_REPORTED
    OPERATION_SEND_ZERO_COPY
    OPERATION_CLOSE
    OPERATION_FINISH
    OPERATION_PROBE
    OPERATION_CANCEL
    OPERATION_BELL
    OPERATION_LOG
    OPERATION_TIMER
    OPERATION_RECORDS
    OPERATION_FILES
    OPERATION_FILL
    OPERATION_UNSEEN                # whose completion tells nothing
    OPERATION_POLLED


cdef struct Uring:
    Ring ring
    int listeners[LISTENERS_MAX]
    uint32_t name_lengths[LISTENERS_MAX]    # of clients' addresses: SO_PEERNAME must be asked for just that
    uint32_t listener_count
    uint32_t accepting              # bits by listener: a multishot accept is armed
    uint64_t accept_retry_us        # 0, or when to try again what failed for lack of descriptors
    uint64_t bell_value
    uint64_t timer_us               # the earliest timer entry that is armed; 0: none
    __kernel_timespec timer
    uint8_t is_watching             # a change of a file wakes this thread
    uint8_t is_direct               # connections are slots; the kernel has socket commands, which tell their peers
    uint32_t slot_flag              # IOSQE_FIXED_FILE, or 0
    uint8_t lanes_registered        # their arenas are fixed buffers, by the lanes' numbers
    uint32_t first_chunk            # the first chunk's place behind them
    char *peer_names                # PEER_NAME_SIZE_BYTES for each connection
    const char *log_text
    uint32_t log_left
    char peeked
    # Accepted, though all connections are in use: a multishot accept of ordinary descriptors ends a little late.
    int surplus[SURPLUS_MAX]
    uint32_t surplus_count
    # Connections that wait, and of which a reset may not have been told: to be asked at `probe_us`.
    uint32_t *suspects
    uint8_t *is_suspect             # by the connection's index
    uint32_t suspect_count
    uint64_t probe_us
    PolledSockets polled            # with the kernel side


cdef inline Uring *driver_of(const Engine *engine) noexcept nogil:
    return <Uring *>engine.driver_data


cdef inline uint64_t tag(int operation, const Connection *connection) noexcept nogil:
    return (<uint64_t>operation << 56) | (<uint64_t>(connection.generation & 0xFFFFFF) << 32) | connection.index


cdef inline uint64_t zero_copy_tag(const Answer *answer, uint32_t place) noexcept nogil:
    return (<uint64_t>OPERATION_SEND_ZERO_COPY << 56) | (<uint64_t>place << 32) | answer.index


cdef inline void name_entry(io_uring_sqe *entry, int operation, const Connection *connection,
                            uint32_t flags) noexcept nogil:
    entry.flags |= <uint8_t>flags
    entry.user_data = tag(operation, connection)


cdef inline void cancel(Uring *driver, const Connection *connection, int operation, uint32_t flags) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    io_uring_prep_cancel64(entry, tag(operation, connection), 0)
    name_entry(entry, OPERATION_CANCEL, connection, IOSQE_CQE_SKIP_SUCCESS | flags)


cdef inline void arm_receive(Uring *driver, Connection *connection) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    io_uring_prep_recv_multishot(entry, connection.fd, NULL, 0, 0)
    entry.buf_group = RECEIVE_GROUP
    name_entry(entry, OPERATION_RECEIVE, connection, driver.slot_flag | IOSQE_BUFFER_SELECT)
    connection.flags |= IS_RECEIVING
    connection.operations += 1
