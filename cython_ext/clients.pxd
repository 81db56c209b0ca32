# The clients of the load generator: connections that send requests and judge the responses. One thread, one ring.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.histogram cimport Histogram
from batchbridge.cython_ext.ring cimport Ring
from batchbridge.cython_ext.schedule cimport Schedule
from batchbridge.cython_ext.verify cimport Expectation, Reader


cdef enum:
    CLIENTS_MAX = 32768
    PIPELINE_MAX = 1024
    PICKS = 65536                   # requests of the sequence, which is then repeated
    ANSWER_PLACES = 9               # counters of one exchange: its STATUSES_MAX statuses, and all others
    PAUSE_US = 20000                # before a new attempt to connect; doubled each time


cdef enum Phase:
    CLIENT_RESTS = 0                # no connection, and none is wanted yet
    CLIENT_CONNECTS                 # without a request that leaves at once (open loop, kept connections)
    CLIENT_OPEN
    CLIENT_ENDS                     # the last answer was read; waits for the server's FIN
    CLIENT_PAUSES                   # for the next attempt, at `moment_us`
    CLIENT_GAVE_UP


cdef enum Failure:
    FAILURE_REFUSED = 0
    FAILURE_CONNECT                 # any other reason not to connect
    FAILURE_RESET
    FAILURE_CLOSED_EARLY            # the server closed in the middle of a response, or owing one
    FAILURE_MALFORMED               # not HTTP, or bytes that nobody asked for
    FAILURE_TIMED_OUT
    FAILURE_COUNT


# A request that was sent, and whose answer has not come.
cdef struct Owed:
    uint64_t intended_us            # when it should have been sent; closed loop: when it was
    uint64_t began_us               # when it was sent
    uint32_t exchange


cdef struct Client:
    int fd                          # -1: none
    uint32_t generation
    uint8_t phase                   # Phase
    uint8_t is_sending              # pipelined: a piece of `out` is under way
    uint8_t is_listed               # among those of `free`
    uint16_t failures               # in a row, without an answer between
    uint16_t owed_first             # in `owed`, a ring of run.pipeline places
    uint16_t owed_count
    uint64_t moment_us              # of the last sign of life; CLIENT_PAUSES: of the next attempt
    Owed *owed
    char *out                       # pipelined: requests on their way
    uint32_t out_sent
    uint32_t out_used
    Reader reader


cdef struct Figures:
    uint64_t issued                 # requests sent
    uint64_t responses              # whole ones
    uint64_t unanswered             # requests whose connection ended before their answer
    uint64_t unissued               # requests of the schedule that were never sent
    uint64_t opened                 # connections
    uint64_t hopeless               # clients that gave up
    uint64_t answers_wrong
    uint64_t wrong[3]               # status, length, body
    uint64_t failures[6]            # by Failure
    uint64_t statuses[600]
    int32_t first_wrong             # exchange of the first wrong answer, -1: none
    uint16_t first_wrong_status
    uint8_t first_wrong_kind        # Wrong
    int64_t first_wrong_length
    # Of the measured time; all above are of the whole run.
    uint64_t requests               # answers
    uint64_t offered                # requests that the schedule had
    uint64_t bytes
    uint64_t loops
    uint64_t system_calls
    uint64_t cpu_ns                 # of the thread
    uint64_t core_wait_ns           # in which the thread could have run, and its core ran others
    uint64_t began_us
    uint64_t ended_us


cdef struct Run:
    # What the caller sets; memory is the caller's. Fields not named here are 0 at first.
    char address[32]                # struct sockaddr_in or _in6
    uint32_t address_length
    int family
    uint32_t client_count
    uint32_t pipeline               # requests under way on each connection
    uint32_t out_size_bytes         # of each client's `out`
    uint32_t retries                # attempts in a row before a client gives up
    uint8_t closes                  # a connection for each request
    uint64_t seconds_us
    uint64_t warmup_us
    uint64_t timeout_us
    uint64_t drain_us
    uint64_t requests_max           # 0: any number
    const char **data               # requests, by exchange
    uint32_t *data_length
    Expectation *expected
    uint32_t *picks                 # PICKS numbers of exchanges
    Client *clients                 # client_count of them, with `fd` -1, `owed` of `pipeline` places, and `out`
    uint64_t *answered              # ANSWER_PLACES for each exchange
    Histogram latencies             # from when a request should have been sent
    Histogram services              # open loop: from when it was
    Histogram lateness              # open loop: until the client looked at a request that was due
    double rate_per_s               # open loop: 0 is a closed one
    uint8_t is_poisson
    uint64_t seed
    Schedule schedule
    uint32_t *free                  # open loop: a ring of client_count places
    bint (*tick)(void *) noexcept nogil     # called ten times a second with `owner`; True ends the run
    void *owner
    # What is going on.
    Ring ring
    uint64_t now_us
    uint64_t tick_us
    int schedstat                   # the thread's file of that name; -1: this kernel has none
    uint64_t schedule_began_us
    uint64_t begin_us               # of the measured time
    uint64_t end_us
    uint64_t drawn                  # requests of the schedule so far
    uint32_t free_first             # clients that may send, in the order in which they became free; some cannot
    uint32_t free_count             # any more, which is seen when their turn comes
    uint8_t is_open                 # loop
    uint8_t scheduling              # open loop: further requests become due
    uint8_t issuing                 # further requests may leave
    uint8_t measuring
    uint8_t stopping                # set it to end the run at the next tick
    Figures figures


# Sends the next request of the sequence on an open connection that owes less than run.pipeline answers. False: there is
# no space for it until more of what was gathered has left.
cdef bint send_request(Run *run, Client *client, uint64_t intended_us) noexcept nogil
# Pipelined: lets what was gathered leave, one piece at a time, so that no byte overtakes another.
cdef void post_out(Run *run, Client *client) noexcept nogil
# Connects. Closed loop: and sends. Open loop with a connection for each request: and sends the first that waits; else
# the client is free when the connection stands.
cdef void open_client(Run *run, Client *client) noexcept nogil
# The connection, or the attempt at one, has failed; another follows unless too many have.
cdef void fail(Run *run, Client *client, int failure) noexcept nogil
# Open loop: a client that can send. Does nothing where it is listed already.
cdef void offer(Run *run, Client *client) noexcept nogil
# Takes all completions that are there.
cdef void reap(Run *run) noexcept nogil
