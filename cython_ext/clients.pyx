"""The clients: connections that send requests, and judge what comes back.

In a closed loop a client sends its next request when an answer has come. In an open one it is free then, and pace.pyx
gives it a request that is due. The rules:

- A request leaves by one entry without a completion of its own. That it failed is told by the receiving side, which
  always hears of it too. Pipelined requests are gathered, and leave piece by piece, so that no byte overtakes another.
- A connection's tag carries its generation: completions of an earlier connection at the same place are dropped. A
  descriptor is closed by an entry, which is carried out behind the entries that still name it.
- Each answer is read to its last byte and compared. What was wrong is counted, and the first of it remembered.
- All memory is taken before the first request leaves.
- A free client is listed once. It may have lost its connection before its turn comes, and is passed over then.
"""
from libc.errno cimport ECONNREFUSED, ECONNRESET, ENOBUFS, ENOTCONN, EPIPE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from batchbridge.cython_ext.histogram cimport histogram_add
from batchbridge.cython_ext.ring cimport *
from batchbridge.cython_ext.schedule cimport schedule_pop
from batchbridge.cython_ext.verify cimport (
    READ_MALFORMED, READ_MORE, READ_WHOLE, WRONG_BODY, WRONG_LENGTH, WRONG_STATUS, Reader, read_end, read_response,
    reader_next)


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


cdef enum:
    COMPLETIONS_AT_ONCE = 256
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
    cdef io_uring_sqe *entry
    if client.is_sending or client.out_sent == client.out_used:
        return
    entry = ring_entry(&run.ring)
    io_uring_prep_send(entry, client.fd, client.out + client.out_sent, client.out_used - client.out_sent,
                       MSG_NOSIGNAL | MSG_WAITALL)
    entry.user_data = tag(run, OPERATION_SEND, client)
    client.is_sending = 1


cdef bint send_request(Run *run, Client *client, uint64_t intended_us) noexcept nogil:
    cdef io_uring_sqe *entry
    cdef uint32_t exchange = run.picks[run.figures.issued % PICKS]
    cdef uint32_t length = run.data_length[exchange]
    cdef Owed *owed
    if run.pipeline == 1:
        entry = ring_entry(&run.ring)
        io_uring_prep_send(entry, client.fd, run.data[exchange], length, MSG_NOSIGNAL | MSG_WAITALL)
        entry.flags = <uint8_t>IOSQE_CQE_SKIP_SUCCESS
        entry.user_data = tag(run, OPERATION_SEND, client)
    else:
        if client.out_used + length > run.out_size_bytes:
            return False
        memcpy(client.out + client.out_used, run.data[exchange], length)
        client.out_used += length
    if client.owed_count == 0:
        client.moment_us = run.now_us       # the server has its time from now on
    owed = &client.owed[(client.owed_first + client.owed_count) % run.pipeline]
    owed.exchange = exchange
    owed.intended_us = intended_us
    owed.began_us = run.now_us
    client.owed_count += 1
    run.figures.issued += 1
    if run.requests_max and run.figures.issued >= run.requests_max:
        run.issuing = 0
    return True


cdef void go_on(Run *run, Client *client) noexcept nogil:
    """A connection that may have room for requests. Closed loop: sends as many as it may owe answers for."""
    if run.is_open:
        offer(run, client)
        return
    while client.owed_count < run.pipeline and run.issuing:
        if not send_request(run, client, run.now_us):
            break
    if run.pipeline > 1:
        post_out(run, client)


cdef void offer(Run *run, Client *client) noexcept nogil:
    if client.is_listed:
        return
    client.is_listed = 1
    run.free[(run.free_first + run.free_count) % run.client_count] = <uint32_t>(client - run.clients)
    run.free_count += 1


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
    client.phase = CLIENT_CONNECTS if run.is_open and not run.closes else CLIENT_OPEN
    client.moment_us = run.now_us
    run.figures.opened += 1
    entry = ring_entry(&run.ring)
    io_uring_prep_connect(entry, client.fd, <const sockaddr *>run.address, run.address_length)
    entry.user_data = tag(run, OPERATION_CONNECT, client)
    if client.phase == CLIENT_OPEN:
        entry.flags = <uint8_t>(IOSQE_CQE_SKIP_SUCCESS | IOSQE_IO_LINK)
        if run.is_open:
            send_request(run, client, schedule_pop(&run.schedule))
        else:
            go_on(run, client)
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


cdef void pause(Run *run, Client *client, uint64_t pause_us) noexcept nogil:
    client.phase = CLIENT_PAUSES
    client.moment_us = run.now_us + pause_us


cdef void open_again(Run *run, Client *client) noexcept nogil:
    cdef uint64_t pause_us
    if not run.issuing:
        client.phase = CLIENT_RESTS
    elif client.failures > run.retries:
        client.phase = CLIENT_GAVE_UP
        run.figures.hopeless += 1
    elif client.failures:
        pause_us = <uint64_t>PAUSE_US << min(<uint16_t>(client.failures - 1), <uint16_t>16)
        pause(run, client, min(pause_us, <uint64_t>PAUSE_US_MAX))
    elif run.is_open and run.closes:
        client.phase = CLIENT_RESTS
        offer(run, client)
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
    client.failures = 0
    figures.responses += 1
    figures.statuses[reader.status] += 1
    run.answered[owed.exchange * ANSWER_PLACES + reader.slot] += 1
    if reader.wrong:
        count_wrong(figures, reader, owed.exchange)
    figures.requests += run.measuring
    if not run.is_open:
        if run.measuring:
            histogram_add(&run.latencies, run.now_us - owed.began_us)
    elif run.begin_us <= owed.intended_us < run.end_us:
        # Whenever its answer comes: the slow ones of the last moments would else be left out.
        histogram_add(&run.latencies, run.now_us - owed.intended_us)
        histogram_add(&run.services, run.now_us - owed.began_us)


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
        go_on(run, client)


cdef void take_end(Run *run, Client *client) noexcept nogil:
    """The server has sent FIN."""
    cdef Owed *owed = &client.owed[client.owed_first]
    if client.phase == CLIENT_OPEN and client.owed_count:
        if read_end(&client.reader, &run.expected[owed.exchange]) != READ_WHOLE:
            fail(run, client, FAILURE_CLOSED_EARLY)
            return
        count_answer(run, client, owed)
        client.owed_count -= 1
    elif client.phase != CLIENT_ENDS:
        # It was kept open for nothing: the server's right, but no reason to connect as fast as it closes.
        close_client(run, client, True)
        pause(run, client, PAUSE_US)
        return
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
        go_on(run, client)


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
        elif client.phase == CLIENT_CONNECTS:
            client.phase = CLIENT_OPEN
            offer(run, client)
    if flags & IORING_CQE_F_BUFFER:
        ring_give_back(&run.ring, flags >> IORING_CQE_BUFFER_SHIFT)


cdef void reap(Run *run) noexcept nogil:
    """Takes the completions that are there now. Looking for more makes the kernel bring more: with thousands of clients
    and a server that keeps up there would always be some, and the clock would never be looked at."""
    cdef io_uring_cqe *completions[COMPLETIONS_AT_ONCE]
    cdef unsigned int left = io_uring_cq_ready(&run.ring.uring), count, index
    while left:
        count = io_uring_peek_batch_cqe(&run.ring.uring, completions, min(<unsigned int>COMPLETIONS_AT_ONCE, left))
        for index in range(count):
            on_completion(run, completions[index].user_data, completions[index].res, completions[index].flags)
        io_uring_cq_advance(&run.ring.uring, count)
        # Within the loop: clients that found no buffer ask again.
        ring_show_buffers(&run.ring)
        left -= count
