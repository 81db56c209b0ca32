"""The memory driver: an engine without sockets, loop or thread of its own, for test clients and for tests.

The rules:

- Nothing happens between two turns. What is fed is received in the next turn(), piece by piece as it was fed; whoever
  calls turn() is the engine's thread meanwhile, and never two threads at once.
- A client's socket is a buffer with a given room (send_limit): a send takes what fits. What is to be reported of it is
  reported one turn later, as the other drivers do.
- Bytes are read and written as late as the contract allows, and received ones overwritten as soon as it allows: so
  who lets go of memory too early, or looks at it for too long, is found out.
- With late_sends, a send of the scratch is like io_uring's: it is carried out when the next turn begins, and that it
  fell short is known only then. Without, it is like epoll's: known at once.
- A client is known by index and generation of its connection: its number is never used again, and what it was sent
  can be asked for after it was closed, until forget().
"""
import errno as errors
import time

from libc.errno cimport EAGAIN, EINTR, EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from batchbridge.cython_ext.accesslog cimport log_flush, log_written
from batchbridge.cython_ext.connection cimport (
    connection_closed, connection_lost, connection_open, connection_peer, received, received_end)
from batchbridge.cython_ext.core cimport (
    CONNECTION_LINGERS, IS_CLOSING, IS_EOF, IS_PAUSED, Answer, Connection, Engine, Fill, Opening)
from batchbridge.cython_ext.engine cimport EngineThread, turn_begin, turn_end, turn_wait_us
from batchbridge.cython_ext.openings cimport opening_carry_out, opening_over
from batchbridge.cython_ext.output cimport fragment_read, sent
from batchbridge.cython_ext.send cimport send_fell_short
from batchbridge.cython_ext.system cimport POLLIN, eventfd_read, eventfd_write, poll, pollfd, pread, write


cdef enum:
    OUTPUT_SIZE_BYTES_MIN = 4096
    OUTPUT_SIZE_BYTES_MAX = 1 << 30     # of what a client has not yet asked for: then it is cut off
    TURNS_MAX = 100000                  # of settle(): more means that something goes round in circles


cdef enum Pending:
    PENDING_NOTHING = 0
    PENDING_SEND                        # of the scratch (late_sends)
    PENDING_SEND_LAST
    PENDING_FINISH
    PENDING_SEND_REPORTED


# A client, as its socket's other end sees it. Lives as long as its MemoryClient, whatever becomes of the connection.
cdef struct Client:
    Connection *connection
    char *output                        # what has left and was not asked for yet
    uint64_t output_length
    uint64_t output_size
    int64_t room                        # bytes that the socket takes; -1: all
    int fail_errno                      # of the next send; 0: none
    uint8_t is_closed
    uint8_t is_finished                 # FIN has left
    uint8_t is_closing                  # torn down; its record is freed at the turn's end
    uint8_t pending                     # Pending: what the next turn carries out and reports
    uint8_t more
    const char *data
    uint64_t length
    uint64_t sends                      # calls of the driver that sent anything, or tried to


cdef struct Memory:
    Client **clients                    # by the connection's index; NULL: none
    Fill *fills                         # to be read in the next turn
    uint64_t fills_waiting
    Opening *openings                   # to be carried out in the next turn
    uint64_t openings_waiting
    int fail_read_errno                 # of the next reading; 0: none
    uint8_t late_sends
    uint8_t slow_disk


cdef Client *client_of(const Engine *engine, const Connection *connection) noexcept nogil:
    return (<Memory *>engine.driver_data).clients[connection.index]


# --- a socket's worth of sending -------------------------------------------------------------------------------------

cdef bint keep_output(Client *client, const char *data, uint64_t length) noexcept nogil:
    cdef uint64_t size = max(client.output_size, <uint64_t>OUTPUT_SIZE_BYTES_MIN)
    cdef char *output
    while size < client.output_length + length:
        size *= 2
    if size > OUTPUT_SIZE_BYTES_MAX:
        return False
    if size > client.output_size:
        output = <char *>realloc(client.output, size)
        if output is NULL:
            return False
        client.output = output
        client.output_size = size
    memcpy(client.output + client.output_length, data, length)
    client.output_length += length
    return True


cdef int64_t take(Client *client, const char *data, uint64_t length) noexcept nogil:
    """What send(2) would return: bytes taken, or -errno."""
    cdef int error = client.fail_errno
    client.sends += 1
    if error:
        client.fail_errno = 0
        return -error
    if client.room >= 0:
        length = min(length, <uint64_t>client.room)
        if length == 0:
            return -EAGAIN
        client.room -= <int64_t>length
    if not keep_output(client, data, length):
        return -EIO
    return <int64_t>length


cdef void send_scratch(Engine *engine, Connection *connection, int what, const char *data,
                       uint32_t length) noexcept nogil:
    """Sends the scratch's bytes; if they were all taken, what comes behind them."""
    cdef Client *client = client_of(engine, connection)
    cdef int64_t result = take(client, data, length) if length else 0
    if result != length:
        send_fell_short(engine, connection, result)
    elif what == PENDING_SEND_LAST:
        client.is_finished = 1
        driver_tear_down(engine, connection)
    elif what == PENDING_FINISH:
        client.is_finished = 1


cdef void scratch_or_later(Engine *engine, Connection *connection, int what, const char *data,
                           uint32_t length) noexcept nogil:
    cdef Client *client = client_of(engine, connection)
    if not (<Memory *>engine.driver_data).late_sends:
        send_scratch(engine, connection, what, data, length)
        return
    client.pending = <uint8_t>what
    client.data = data
    client.length = length
    if what == PENDING_SEND_LAST:
        connection.flags |= IS_CLOSING


# --- the driver's functions ------------------------------------------------------------------------------------------

cdef void driver_send(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    scratch_or_later(engine, connection, PENDING_SEND, data, length)


cdef void driver_send_last(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    scratch_or_later(engine, connection, PENDING_SEND_LAST, data, length)


cdef void driver_finish(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    scratch_or_later(engine, connection, PENDING_FINISH, data, length)


cdef void driver_send_reported(Engine *engine, Connection *connection, const char *data, uint64_t length, bint more,
                               Answer *answer, uint32_t place) noexcept nogil:
    cdef Client *client = client_of(engine, connection)
    client.pending = PENDING_SEND_REPORTED
    client.data = data
    client.length = length
    client.more = more


cdef void driver_read_fragment(Engine *engine, Fill *fill) noexcept nogil:
    cdef Memory *memory = <Memory *>engine.driver_data
    fill.next = memory.fills
    memory.fills = fill
    memory.fills_waiting += 1


cdef void driver_look_up(Engine *engine, Opening *opening) noexcept nogil:
    cdef Memory *memory = <Memory *>engine.driver_data
    opening.next_asked = memory.openings
    memory.openings = opening
    memory.openings_waiting += 1


cdef void driver_pause(Engine *engine, Connection *connection) noexcept nogil:
    # IS_PAUSED is looked at before anything that was fed is received.
    pass


cdef void driver_resume(Engine *engine, Connection *connection) noexcept nogil:
    pass


cdef void driver_tear_down(Engine *engine, Connection *connection) noexcept nogil:
    cdef Client *client = client_of(engine, connection)
    if client.is_closing:
        return
    client.is_closing = 1
    client.pending = PENDING_NOTHING
    connection_lost(engine, connection)


cdef void driver_ring_bell(Engine *engine, int bell) noexcept nogil:
    eventfd_write(bell, 1)


cdef void driver_write_log(Engine *engine, const char *text, uint32_t length) noexcept nogil:
    cdef int64_t result = length
    cdef ssize_t count
    while length:
        count = write(engine.log.fd, text, length)
        if count > 0:
            text += count
            length -= <uint32_t>count
        elif count == 0 or errno != EINTR:
            result = -errno if count < 0 else -EIO
            break
    log_written(engine, result)


# --- a turn ----------------------------------------------------------------------------------------------------------

cdef bint is_waiting(const Client *client) noexcept nogil:
    """Whether it waits for its client to take bytes."""
    return client.pending == PENDING_SEND_REPORTED and client.room == 0 and not client.fail_errno


cdef void carry_out_pending(Engine *engine, Client *client) noexcept nogil:
    cdef Connection *connection = client.connection
    cdef int what = client.pending
    if is_waiting(client):
        return
    client.pending = PENDING_NOTHING
    if what in (PENDING_SEND, PENDING_SEND_LAST, PENDING_FINISH):
        connection.flags &= ~IS_CLOSING
        send_scratch(engine, connection, what, client.data, <uint32_t>client.length)
    elif what == PENDING_SEND_REPORTED:
        sent(engine, connection, take(client, client.data, client.length))


cdef void carry_out_fills(Engine *engine, Memory *memory, int error) noexcept nogil:
    """Reads what was to be read when the turn began, or lets it fail."""
    cdef Fill *fill = memory.fills
    cdef Fill *following
    cdef int64_t result
    memory.fills = NULL
    memory.fills_waiting = 0
    while fill is not NULL:
        following = fill.next
        result = -(error if error else memory.fail_read_errno)
        memory.fail_read_errno = 0
        if result == 0:
            result = pread(fill.file, fill.reading.at + fill.done, fill.reading.length - fill.done,
                           <long>(fill.reading.offset + fill.done))
            if result < 0:
                result = -errno
        fragment_read(engine, fill, result)
        fill = following


cdef void carry_out_openings(Engine *engine, Memory *memory) noexcept nogil:
    cdef Opening *opening = memory.openings
    cdef Opening *following
    memory.openings = NULL
    memory.openings_waiting = 0
    while opening is not NULL:
        following = opening.next_asked
        opening_carry_out(opening)
        opening_over(engine, opening)
        opening = following


cdef void receive_copy(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    """Lets the engine see bytes in memory of exactly their length, and no longer than it may."""
    cdef char *copy = <char *>malloc(length)
    if copy is NULL:
        driver_tear_down(engine, connection)
        return
    memcpy(copy, data, length)
    received(engine, connection, copy, length)
    memset(copy, 0xDD, length)
    free(copy)


cdef class MemoryClient:
    cdef Client *client
    cdef list fed                       # bytes not yet received; None stands for FIN

    def __cinit__(self):
        self.client = <Client *>calloc(1, sizeof(Client))
        if self.client is NULL:
            raise MemoryError
        self.client.room = -1
        self.fed = []

    def __dealloc__(self):
        if self.client is not NULL:
            free(self.client.output)
        free(self.client)

    cdef bint is_receiving(self):
        """Whether there is something that the engine would receive now."""
        cdef Connection *connection = self.client.connection
        if not self.fed or self.client.is_closing or self.client.is_closed:
            return False
        if connection.flags & (IS_EOF | IS_CLOSING):
            return False
        # As a socket that lingers is read in any case.
        return not connection.flags & IS_PAUSED or connection.state == CONNECTION_LINGERS


cdef class MemoryEngine(EngineThread):
    """An engine whose clients are the caller: connect, feed, turn, output."""

    cdef Memory memory
    cdef dict by_number                 # MemoryClient, by number
    cdef dict living                    # those whose connection is not closed yet
    cdef readonly uint64_t clock_offset_us

    def __init__(self, settings, routes, int lane_count, listeners=()):
        super().__init__(settings, routes, lane_count, listeners)
        self.by_number = {}
        self.living = {}
        self.memory.clients = <Client **>calloc(self.engine.limits.connections_max, sizeof(Client *))
        if self.memory.clients is NULL:
            raise MemoryError
        self.fill_driver()

    cdef fill_driver(self):
        cdef Engine *engine = self.engine
        engine.driver_data = &self.memory
        engine.driver.send = driver_send
        engine.driver.send_last = driver_send_last
        engine.driver.send_reported = driver_send_reported
        engine.driver.read_fragment = driver_read_fragment
        engine.driver.look_up = driver_look_up
        engine.driver.pause = driver_pause
        engine.driver.resume = driver_resume
        engine.driver.finish = driver_finish
        engine.driver.tear_down = driver_tear_down
        engine.driver.ring_bell = driver_ring_bell
        engine.driver.write_log = driver_write_log

    def __dealloc__(self):
        free(self.memory.clients)

    cdef MemoryClient client(self, number):
        found = self.by_number.get(number)
        if found is None:
            raise KeyError(f"there is no client {number}")
        return found

    # --- clients ---

    def connect(self, int family=0, bytes address=b"", uint16_t port=0):
        """A new client; its number. `address`: 4 or 16 bytes for AF_INET or AF_INET6.

        BlockingIOError: there are max_connections already, so that it would wait in the backlog.
        """
        cdef Connection *connection
        cdef MemoryClient client
        if family and len(address) != (4 if family == 2 else 16):
            raise ValueError(f"{len(address)} bytes are no address of family {family}")
        connection = connection_open(self.engine, -1)
        if connection is NULL:
            raise BlockingIOError(errors.EAGAIN, "all connections are in use")
        if family:
            connection_peer(connection, family, port, <const char *>address)
        client = MemoryClient()
        client.client.connection = connection
        self.memory.clients[connection.index] = client.client
        number = connection.index | <uint64_t>connection.generation << 32
        self.by_number[number] = client
        self.living[number] = client
        return number

    def feed(self, number, data):
        """Sends bytes to the engine, which receives them in the next turn, and separately from those fed before.

        While it has paused the connection, they wait.
        """
        if data:
            self.client(number).fed.append(bytes(data))

    def feed_end(self, number):
        """Sends FIN behind what was fed."""
        self.client(number).fed.append(None)

    def reset(self, number):
        """Breaks the connection off, as a client that vanishes does."""
        cdef MemoryClient client = self.client(number)
        if not client.client.is_closed:
            driver_tear_down(self.engine, client.client.connection)

    def output(self, number):
        """What has left for a client since this was last asked."""
        cdef Client *client = self.client(number).client
        taken = client.output[:client.output_length]
        client.output_length = 0
        return taken

    def is_closed(self, number):
        """Whether the engine has closed the connection."""
        return self.client(number).client.is_closed != 0

    def is_finished(self, number):
        """Whether the engine has sent FIN in order. (A connection that is closed and not finished was broken off.)"""
        return self.client(number).client.is_finished != 0

    def is_paused(self, number):
        """Whether the engine receives nothing more of it for now."""
        cdef Client *client = self.client(number).client
        return not client.is_closed and client.connection.flags & IS_PAUSED != 0

    def send_count(self, number):
        """How many sends there were, with those that failed or fell short."""
        return self.client(number).client.sends

    def forget(self, number):
        """Says that nobody will ask for a client again: what is kept of it goes when its connection has gone."""
        del self.by_number[number]

    # --- faults ---

    def send_limit(self, number, size_bytes):
        """How many more bytes the client takes, in all; None: any number. Sends that find no room are short or fail
        with EAGAIN; what waits for room goes on when this is called again with more."""
        self.client(number).client.room = -1 if size_bytes is None else size_bytes

    def fail_next_send(self, number, int error):
        """Lets the next send to a client fail with an errno."""
        self.client(number).client.fail_errno = error

    def fail_next_read(self, int error):
        """Lets the next reading that is waited for fail with an errno."""
        self.memory.fail_read_errno = error

    @property
    def slow_disk(self):
        """While it is set, what must be waited for is neither read nor opened."""
        return self.memory.slow_disk != 0

    @slow_disk.setter
    def slow_disk(self, is_slow):
        self.memory.slow_disk = bool(is_slow)

    @property
    def reads_waiting(self):
        """How many readings the next turn carries out, unless the disk is slow."""
        return self.memory.fills_waiting

    @property
    def openings_waiting(self):
        """How many paths the next turn opens, unless the disk is slow."""
        return self.memory.openings_waiting

    @property
    def late_sends(self):
        """Whether sends of the scratch are carried out one turn later, as io_uring's are."""
        return self.memory.late_sends != 0

    @late_sends.setter
    def late_sends(self, is_late):
        self.memory.late_sends = bool(is_late)

    # --- turns ---

    def advance(self, uint64_t time_us):
        """Moves the engine's clock on, for time-outs, from the next turn on."""
        self.clock_offset_us += time_us
        self.set_clock_offset(self.clock_offset_us)

    def turn(self, now_us=None, bint more_input=False):
        """One turn of the loop; whether another one would do something at once.

        `now_us` sets the clock for this turn alone. `more_input` lets the engine believe that more bytes are waiting,
        on which batches depend.
        """
        cdef Engine *engine = self.engine
        cdef MemoryClient client
        if now_us is not None:
            self.set_clock_offset(<uint64_t>now_us - time.monotonic_ns() // 1000)
        turn_begin(engine)
        for client in list(self.living.values()):
            if client.client.pending != PENDING_NOTHING:
                carry_out_pending(engine, client.client)
        if not self.memory.slow_disk:
            carry_out_fills(engine, &self.memory, 0)
            carry_out_openings(engine, &self.memory)
        for client in list(self.living.values()):
            self.receive(client)
        engine.more_input = more_input
        turn_end(engine)
        self.free_closed()
        self.set_clock_offset(self.clock_offset_us)
        return self.is_busy()

    cdef receive(self, MemoryClient client):
        cdef Connection *connection = client.client.connection
        while client.is_receiving():
            piece = client.fed.pop(0)
            if piece is None:
                received_end(self.engine, connection)
            else:
                receive_copy(self.engine, connection, <const char *><bytes>piece, <uint32_t>len(piece))

    cdef free_closed(self):
        cdef MemoryClient client
        cdef Connection *connection
        for number, client in list(self.living.items()):
            if client.client.is_closing:
                connection = client.client.connection
                client.client.is_closed = 1
                client.client.connection = NULL
                connection_closed(self.engine, connection)
                self.memory.clients[connection.index] = NULL
                del self.living[number]

    cdef bint is_busy(self):
        cdef MemoryClient client
        if self.engine.held is not NULL or self.engine.dirty is not NULL:
            return True
        if (self.memory.fills is not NULL or self.memory.openings is not NULL) and not self.memory.slow_disk:
            return True
        for client in self.living.values():
            if client.is_receiving() or client.client.is_closing or (
                    client.client.pending != PENDING_NOTHING and not is_waiting(client.client)):
                return True
        return False

    def settle(self):
        """Turns until there is nothing left to do but to wait for clients, workers or the clock."""
        for _ in range(TURNS_MAX):
            if not self.turn():
                return
        raise RuntimeError(f"the engine does not come to rest: it had {TURNS_MAX} turns")

    def wait_us(self):
        """How long a driver would sleep now: 0 not at all, -1 until something happens."""
        cdef int64_t wait_us
        if self.is_busy():
            return 0
        wait_us = turn_wait_us(self.engine)
        return wait_us

    def wait_for_workers(self, double timeout_s):
        """Sleeps until a worker, or whoever else, rings the bell, then turns once. False: nobody rang in time."""
        cdef pollfd bell
        cdef uint64_t rings
        cdef int ready = 1, wait_ms = <int>(timeout_s * 1000)
        bell.fd = self.engine.bell
        bell.events = POLLIN
        # This is what tells the workers to ring; 0 means that one has answered before.
        if turn_wait_us(self.engine) != 0:
            with nogil:
                ready = poll(&bell, 1, wait_ms)
        eventfd_read(bell.fd, &rings)
        self.turn()
        return ready > 0

    def close(self):
        """Ends all connections and writes the last lines of the log."""
        cdef MemoryClient client
        for client in self.living.values():
            driver_tear_down(self.engine, client.client.connection)
        self.free_closed()
        while self.memory.fills is not NULL:
            carry_out_fills(self.engine, &self.memory, errors.ECANCELED)
        carry_out_openings(self.engine, &self.memory)
        log_flush(self.engine)
