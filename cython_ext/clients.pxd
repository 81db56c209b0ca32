# The clients of the load generator: connections that send requests and judge the responses. One thread, one ring.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.ring cimport Ring
from batchbridge.cython_ext.verify cimport Expectation, Reader


cdef enum:
    CLIENTS_MAX = 32768
    PIPELINE_MAX = 1024
    PICKS = 65536                   # requests of the sequence, which is then repeated
    ANSWER_PLACES = 9               # counters of one exchange: its STATUSES_MAX statuses, and all others
    # Latencies: exact to the microsecond up to EXACT, then EXACT/2 steps for each power of two (0.1%), up to 2**36.
    EXACT = 2048
    BUCKETS = 2048 + 25 * 1024


cdef enum Phase:
    CLIENT_RESTS = 0                # no connection, and none is wanted
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
    uint64_t began_us
    uint32_t exchange


cdef struct Client:
    int fd                          # -1: none
    uint32_t generation
    uint8_t phase                   # Phase
    uint8_t is_sending              # pipelined: a piece of `out` is under way
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
    uint64_t requests
    uint64_t bytes
    uint64_t latency_sum_us
    uint64_t latency_us_max
    uint64_t loops
    uint64_t system_calls
    uint64_t cpu_ns
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
    uint64_t *latencies             # BUCKETS of them
    bint (*tick)(void *) noexcept nogil     # called ten times a second with `owner`; True ends the run
    void *owner
    # What is going on.
    Ring ring
    uint64_t now_us
    uint64_t tick_us
    uint8_t issuing                 # further requests may leave
    uint8_t measuring
    uint8_t stopping                # set it to end the run at the next tick
    Figures figures


# Runs the load to its end, on a ring of the calling thread. 0, or -errno: of the ring's set-up (then nothing was sent),
# or of a ring that stopped working.
cdef int run_clients(Run *run) noexcept nogil

cdef uint32_t bucket_of(uint64_t latency_us) noexcept nogil
# The least latency that a bucket counts; the least of the next one is beyond it.
cdef uint64_t bucket_least(uint32_t bucket) noexcept nogil
