"""Closed-loop clients: each sends its next request when an answer has come, so that the server's speed sets the rate.

The rules:

- A request leaves by one entry without a completion of its own. That it failed is told by the receiving side, which
  always hears of it too. Pipelined requests are gathered, and leave piece by piece, so that no byte overtakes another.
- A connection's tag carries its generation: completions of an earlier connection at the same place are dropped. A
  descriptor is closed by an entry, which is carried out behind the entries that still name it.
- Each answer is read to its last byte and compared. What was wrong is counted, and the first of it remembered.
- All memory is taken before the first request leaves.
- When to send is issue()'s callers' business, so an open loop needs another caller and no other clients.
"""
from libc.errno cimport EAGAIN, EBUSY, ECONNREFUSED, ECONNRESET, ENOBUFS, ENOTCONN, EPIPE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from batchbridge.cython_ext.ring cimport *
from batchbridge.cython_ext.verify cimport (
    READ_MALFORMED, READ_MORE, READ_WHOLE, WRONG_BODY, WRONG_LENGTH, WRONG_STATUS, Reader, read_end, read_response,
    reader_next)


cdef extern from "compat.h" nogil:
    uint64_t bb_now_us() noexcept


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *) noexcept
    int CLOCK_THREAD_CPUTIME_ID


cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr
    int socket(int, int, int) noexcept
    int setsockopt(int, int, int, const void *, unsigned int) noexcept
    int shutdown(int, int) noexcept
    int SOCK_STREAM, SOCK_CLOEXEC, MSG_NOSIGNAL, MSG_WAITALL, SHUT_RDWR


cdef extern from "<liburing.h>" nogil:
    void io_uring_prep_connect(io_uring_sqe *, int, const sockaddr *, unsigned int) noexcept
    unsigned int io_uring_sq_space_left(const io_uring *) noexcept


cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP


cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY


cdef extern from "<unistd.h>" nogil:
    int close(int) noexcept


cdef enum:
    SUBMISSION_ENTRIES = 4096
    COMPLETION_ENTRIES = 65536
    COMPLETIONS_AT_ONCE = 256
    RECEIVE_BUFFER_SIZE_BYTES = 16384
    RECEIVE_BUFFERS_MIN = 128
    RECEIVE_BUFFERS_MAX = 4096
    TICK_US = 100000                # time-outs and new attempts are looked at this often
    PAUSE_US = 20000                # before a new attempt to connect; doubled each time
    PAUSE_US_MAX = 1000000


cdef enum Operation:
    OPERATION_CONNECT = 1
    OPERATION_SEND
    OPERATION_RECEIVE
    OPERATION_CLOSE


# --- entries ---------------------------------------------------------------------------------------------------------

cdef uint64_t tag(const Run *run, int operation, const Client *client) noexcept nogil:
    return (<uint64_t>operation << 56) | (<uint64_t>(client.generation & 0xFFFFFF) << 32) | <uint32_t>(
        client - run.clients)


cdef void arm_receive(Run *run, Client *client) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&run.ring)
    io_uring_prep_recv_multishot(entry, client.fd, NULL, 0, 0)
    entry.buf_group = RECEIVE_GROUP
    entry.flags = <uint8_t>IOSQE_BUFFER_SELECT
    entry.user_data = tag(run, OPERATION_RECEIVE, client)


cdef void post_out(Run *run, Client *client) noexcept nogil:
    """Pipelined: lets the gathered requests leave, one piece at a time, so that no byte overtakes another."""
    cdef io_uring_sqe *entry
    if client.is_sending or client.out_sent == client.out_used:
        return
    entry = ring_entry(&run.ring)
    io_uring_prep_send(entry, client.fd, client.out + client.out_sent, client.out_used - client.out_sent,
                       MSG_NOSIGNAL | MSG_WAITALL)
    entry.user_data = tag(run, OPERATION_SEND, client)
    client.is_sending = 1


cdef void issue(Run *run, Client *client) noexcept nogil:
    """Sends as many requests as the connection may owe answers for."""
    cdef io_uring_sqe *entry
    cdef Owed *owed
    cdef uint32_t exchange, length
    while client.owed_count < run.pipeline and run.issuing:
        exchange = run.picks[run.figures.issued % PICKS]
        length = run.data_length[exchange]
        if run.pipeline == 1:
            entry = ring_entry(&run.ring)
            io_uring_prep_send(entry, client.fd, run.data[exchange], length, MSG_NOSIGNAL | MSG_WAITALL)
            entry.flags = <uint8_t>IOSQE_CQE_SKIP_SUCCESS
            entry.user_data = tag(run, OPERATION_SEND, client)
        else:
            if client.out_used + length > run.out_size_bytes:
                break
            memcpy(client.out + client.out_used, run.data[exchange], length)
            client.out_used += length
        owed = &client.owed[(client.owed_first + client.owed_count) % run.pipeline]
        owed.exchange = exchange
        owed.began_us = run.now_us
        client.owed_count += 1
        run.figures.issued += 1
        if run.requests_max and run.figures.issued >= run.requests_max:
            run.issuing = 0
    if run.pipeline > 1:
        post_out(run, client)


# --- a connection's life ---------------------------------------------------------------------------------------------

cdef void open_client(Run *run, Client *client) noexcept nogil:
    cdef io_uring_sqe *entry
    cdef int one = 1
    client.fd = socket(run.family, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if client.fd < 0:
        fail(run, client, FAILURE_CONNECT)
        return
    setsockopt(client.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    # A link does not reach over a submission, which a full queue would force between the two.
    if io_uring_sq_space_left(&run.ring.uring) < 4:
        io_uring_submit(&run.ring.uring)
    client.phase = CLIENT_OPEN
    client.moment_us = run.now_us
    run.figures.opened += 1
    entry = ring_entry(&run.ring)
    io_uring_prep_connect(entry, client.fd, <const sockaddr *>run.address, run.address_length)
    entry.flags = <uint8_t>(IOSQE_CQE_SKIP_SUCCESS | IOSQE_IO_LINK)
    entry.user_data = tag(run, OPERATION_CONNECT, client)
    issue(run, client)
    arm_receive(run, client)        # waits for data from whenever the connection stands


cdef void close_client(Run *run, Client *client, bint is_over) noexcept nogil:
    """Forgets a connection. is_over: the server has sent its FIN, so nothing in the kernel still waits for bytes."""
    cdef io_uring_sqe *entry
    if not is_over:
        shutdown(client.fd, SHUT_RDWR)      # ends the receive that is armed, which else would keep the socket alive
    entry = ring_entry(&run.ring)
    io_uring_prep_close(entry, client.fd)
    entry.flags = <uint8_t>IOSQE_CQE_SKIP_SUCCESS
    entry.user_data = <uint64_t>OPERATION_CLOSE << 56
    client.fd = -1
    run.figures.unanswered += client.owed_count
    client.owed_first = client.owed_count = 0
    client.out_sent = client.out_used = 0
    client.is_sending = 0
    client.generation += 1
    client.reader.head_length = 0
    reader_next(&client.reader)
    client.phase = CLIENT_RESTS


cdef void open_again(Run *run, Client *client) noexcept nogil:
    cdef uint64_t pause_us
    if not run.issuing:
        client.phase = CLIENT_RESTS
    elif client.failures > run.retries:
        client.phase = CLIENT_GAVE_UP
        run.figures.hopeless += 1
    elif client.failures:
        pause_us = <uint64_t>PAUSE_US << min(<uint16_t>(client.failures - 1), <uint16_t>16)
        client.phase = CLIENT_PAUSES
        client.moment_us = run.now_us + min(pause_us, <uint64_t>PAUSE_US_MAX)
    else:
        open_client(run, client)


cdef void fail(Run *run, Client *client, int failure) noexcept nogil:
    """The connection is of no use any more; another one takes its place, after a pause, unless too many failed."""
    run.figures.failures[failure] += 1
    client.failures += 1
    if client.fd >= 0:
        close_client(run, client, False)
    open_again(run, client)


cdef void count_answer(Run *run, Client *client, const Owed *owed) noexcept nogil:
    """A whole response; the reader knows what was wrong with it."""
    cdef Figures *figures = &run.figures
    cdef Reader *reader = &client.reader
    cdef uint64_t latency_us
    client.failures = 0
    figures.responses += 1
    figures.statuses[reader.status] += 1
    run.answered[owed.exchange * ANSWER_PLACES + reader.slot] += 1
    if reader.wrong:
        count_wrong(figures, reader, owed.exchange)
    if not run.measuring:
        return
    latency_us = run.now_us - owed.began_us
    figures.requests += 1
    figures.latency_sum_us += latency_us
    figures.latency_us_max = max(figures.latency_us_max, latency_us)
    run.latencies[bucket_of(latency_us)] += 1


cdef void count_wrong(Figures *figures, const Reader *reader, uint32_t exchange) noexcept nogil:
    figures.answers_wrong += 1
    figures.wrong[0] += (reader.wrong & WRONG_STATUS) != 0
    figures.wrong[1] += (reader.wrong & WRONG_LENGTH) != 0
    figures.wrong[2] += (reader.wrong & WRONG_BODY) != 0
    if figures.first_wrong < 0:
        figures.first_wrong = <int32_t>exchange
        figures.first_wrong_status = reader.status
        figures.first_wrong_kind = reader.wrong
        figures.first_wrong_length = max(reader.body_read, reader.length)


cdef void take_bytes(Run *run, Client *client, char *data, uint32_t length) noexcept nogil:
    cdef Owed *owed
    cdef uint32_t taken
    cdef int event = READ_MORE
    client.moment_us = run.now_us
    if run.measuring:
        run.figures.bytes += length
    while length:
        if client.owed_count == 0:
            fail(run, client, FAILURE_MALFORMED)
            return
        owed = &client.owed[client.owed_first]
        taken = read_response(&client.reader, &run.expected[owed.exchange], data, length, &event)
        if event == READ_MALFORMED:
            fail(run, client, FAILURE_MALFORMED)
            return
        if event == READ_MORE:
            return
        data += taken
        length -= taken
        count_answer(run, client, owed)
        client.owed_first = <uint16_t>((client.owed_first + 1) % run.pipeline)
        client.owed_count -= 1
        if run.closes or client.reader.closes:
            # What was sent behind it stays unanswered, as the server has said.
            client.phase = CLIENT_ENDS
            run.figures.unanswered += client.owed_count
            client.owed_count = 0
        reader_next(&client.reader)
    if client.phase == CLIENT_OPEN:
        issue(run, client)


cdef void take_end(Run *run, Client *client) noexcept nogil:
    """The server has sent FIN."""
    cdef Owed *owed = &client.owed[client.owed_first]
    if client.phase == CLIENT_OPEN and client.owed_count:
        if read_end(&client.reader, &run.expected[owed.exchange]) != READ_WHOLE:
            fail(run, client, FAILURE_CLOSED_EARLY)
            return
        count_answer(run, client, owed)
        client.owed_count -= 1
    close_client(run, client, True)
    open_again(run, client)


# --- completions -----------------------------------------------------------------------------------------------------

cdef int failure_of(int error) noexcept nogil:
    if error == ECONNREFUSED:
        return FAILURE_REFUSED
    return FAILURE_RESET if error == ECONNRESET or error == EPIPE else FAILURE_CONNECT


cdef void on_receive(Run *run, Client *client, int result, uint32_t flags) noexcept nogil:
    cdef uint32_t generation = client.generation
    if result > 0:
        take_bytes(run, client, run.ring.buffers + <size_t>(flags >> IORING_CQE_BUFFER_SHIFT)
                   * run.ring.buffer_size_bytes, <uint32_t>result)
    if flags & IORING_CQE_F_MORE or client.generation != generation:
        return
    if result > 0 or result == -ENOBUFS:
        arm_receive(run, client)
    elif result == 0:
        take_end(run, client)
    elif result != -ENOTCONN:       # it is not connected: that entry's completion says why
        fail(run, client, failure_of(-result))


cdef void on_sent(Run *run, Client *client, int result) noexcept nogil:
    if run.pipeline == 1 or result <= 0:
        return
    client.is_sending = 0
    client.out_sent += <uint32_t>result
    if client.out_sent == client.out_used:
        client.out_sent = client.out_used = 0
    if client.phase == CLIENT_OPEN:
        issue(run, client)


cdef void on_completion(Run *run, uint64_t user_data, int result, uint32_t flags) noexcept nogil:
    cdef int operation = <int>(user_data >> 56)
    cdef Client *client = &run.clients[<uint32_t>user_data]
    if operation == OPERATION_CLOSE:
        return
    if client.fd >= 0 and (client.generation & 0xFFFFFF) == (user_data >> 32 & 0xFFFFFF):
        if operation == OPERATION_RECEIVE:
            on_receive(run, client, result, flags)
        elif operation == OPERATION_SEND:
            on_sent(run, client, result)
        elif result < 0:
            fail(run, client, failure_of(-result))
    if flags & IORING_CQE_F_BUFFER:
        ring_give_back(&run.ring, flags >> IORING_CQE_BUFFER_SHIFT)


cdef void reap(Run *run) noexcept nogil:
    cdef io_uring_cqe *completions[COMPLETIONS_AT_ONCE]
    cdef unsigned int count, index
    while True:
        count = io_uring_peek_batch_cqe(&run.ring.uring, completions, COMPLETIONS_AT_ONCE)
        if count == 0:
            break
        for index in range(count):
            on_completion(run, completions[index].user_data, completions[index].res, completions[index].flags)
        io_uring_cq_advance(&run.ring.uring, count)
    ring_show_buffers(&run.ring)


# --- time ------------------------------------------------------------------------------------------------------------

cdef uint64_t thread_cpu_ns() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return <uint64_t>time.tv_sec * 1000000000 + <uint64_t>time.tv_nsec


cdef void measure(Run *run, bint on) noexcept nogil:
    """The measured time begins, or ends. Unsigned differences: what is subtracted first is added later."""
    if run.measuring == on:
        return
    run.measuring = on
    if on:
        run.figures.began_us = run.now_us
        run.figures.cpu_ns -= thread_cpu_ns()
        run.figures.system_calls -= run.ring.system_calls
    else:
        run.figures.ended_us = run.now_us
        run.figures.cpu_ns += thread_cpu_ns()
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
                open_client(run, client)
        elif (client.phase == CLIENT_ENDS or client.owed_count) and client.moment_us + run.timeout_us <= run.now_us:
            fail(run, client, FAILURE_TIMED_OUT)
    if run.tick(run.owner):
        run.stopping = 1


cdef bint is_busy(const Run *run) noexcept nogil:
    cdef uint32_t index
    for index in range(run.client_count):
        if run.clients[index].owed_count or run.clients[index].phase == CLIENT_ENDS:
            return True
    return False


cdef int64_t wait_us(const Run *run, uint64_t end_us) noexcept nogil:
    """Until the next tick, or until the measured time ends."""
    cdef uint64_t until_us = min(run.tick_us, end_us) if run.issuing else run.tick_us
    return <int64_t>(until_us - run.now_us) if until_us > run.now_us else 1


cdef int loop(Run *run) noexcept nogil:
    cdef uint64_t begin_us = run.now_us + run.warmup_us
    cdef uint64_t end_us = begin_us + run.seconds_us
    cdef uint64_t until_us = 0          # the drain's end
    cdef int result = 0
    while until_us == 0 or (is_busy(run) and run.now_us < until_us):
        result = ring_submit_and_wait(&run.ring, wait_us(run, end_us))
        run.now_us = bb_now_us()
        run.figures.loops += run.measuring
        if result < 0 and result != -EAGAIN and result != -EBUSY:
            return result
        if run.now_us >= end_us or run.stopping or run.figures.hopeless == run.client_count:
            run.issuing = 0
            measure(run, False)
        elif run.now_us >= begin_us:
            measure(run, True)
        reap(run)
        if run.now_us >= run.tick_us:
            tick(run)
        if not run.issuing and until_us == 0:
            until_us = run.now_us + run.drain_us
    return 0


cdef int run_clients(Run *run) noexcept nogil:
    cdef uint32_t buffers = RECEIVE_BUFFERS_MIN
    cdef uint32_t index
    cdef int result = ring_open(&run.ring, SUBMISSION_ENTRIES, COMPLETION_ENTRIES)
    if result < 0:
        return result
    # Few where few are needed: they are used in turn, and those of one turn should fit the processor's cache.
    while buffers < 2 * run.client_count and buffers < RECEIVE_BUFFERS_MAX:
        buffers *= 2
    result = ring_provide(&run.ring, buffers, RECEIVE_BUFFER_SIZE_BYTES)
    if result == 0:
        run.figures.first_wrong = -1
        run.now_us = bb_now_us()
        run.tick_us = run.now_us + TICK_US
        run.issuing = 1
        measure(run, run.warmup_us == 0)
        for index in range(run.client_count):
            if run.issuing:
                open_client(run, &run.clients[index])
        result = loop(run)
        measure(run, False)
        close_all(run)
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


# --- latencies -------------------------------------------------------------------------------------------------------

cdef uint32_t bucket_of(uint64_t latency_us) noexcept nogil:
    cdef uint32_t shift = 0
    while latency_us >> shift >= EXACT:
        shift += 1
    return min(<uint32_t>(BUCKETS - 1), <uint32_t>(shift * (EXACT // 2) + (latency_us >> shift)))


cdef uint64_t bucket_least(uint32_t bucket) noexcept nogil:
    cdef uint32_t shift = 0 if bucket < EXACT else bucket // (EXACT // 2) - 1
    return <uint64_t>(bucket - shift * (EXACT // 2)) << shift
