"""The load generator: many clients on one thread, without the GIL, at a few microseconds a request.

Closed or open loop (pace.pyx); what sends, receives and judges is in clients.pyx and verify.pyx. Here is what Python
sees of it: requests with what is expected of their responses, the run, and its figures.
"""
import os
import random
import re
import resource
import socket

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from batchbridge.cython_ext.clients cimport (
    ANSWER_PLACES, CLIENTS_MAX, FAILURE_COUNT, PICKS, PIPELINE_MAX, Client, Owed, Run)
from batchbridge.cython_ext.histogram cimport BUCKETS, Histogram, bucket_least
from batchbridge.cython_ext.pace cimport run_clients
from batchbridge.cython_ext.schedule cimport WAITING_MAX
from batchbridge.cython_ext.verify cimport (
    STATUSES_MAX, WRONG_LENGTH, WRONG_STATUS, Expectation)

from batchbridge.cython_ext.histogram import percentile


cdef extern from "<sys/socket.h>" nogil:
    int AF_INET6


cdef enum:
    OUT_SIZE_BYTES_MIN = 65536      # of a client's pipelined requests on their way, where one request is not larger
    RETRIES_MAX = 10000
    RATE_PER_S_MAX = 10000000
    DESCRIPTORS_SPARE = 64          # of a process, beside those of the clients


FAILURE_NAMES = ("refused", "connect", "reset", "closed_early", "malformed", "timed_out")
WRONG_NAMES = ("status", "length", "body")

ARRIVALS = ("poisson", "constant")

LATENCY_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


# --- what is asked ---------------------------------------------------------------------------------------------------

class Exchange:
    """A request, and what its response has to be.

    `data`: the whole request as it goes over the wire. `weight`: its share of all requests is this by the sum of all
    weights. `statuses`: those that are right; `body`, or `length` and `crc32` (as zlib has it), are compared where the
    first of them comes. `name`: how reports call it. Raises ValueError for what makes no sense.

    Without `statuses` it is 200, and `is_status_given` is false.
    """

    __slots__ = ("data", "weight", "statuses", "body", "length", "crc32", "name", "is_status_given")

    def __init__(self, data, *, weight=1.0, statuses=None, body=None, length=None, crc32=None, name=None):
        self.data = bytes(data)
        self.weight = float(weight)
        self.is_status_given = statuses is not None
        self.statuses = tuple(statuses) if self.is_status_given else (200,)
        self.body = body if body is None else bytes(body)
        self.length = len(self.body) if self.body is not None else length
        self.crc32 = crc32
        self.name = name or self.data.partition(b"\r\n")[0].decode("latin-1")
        if b"\r\n\r\n" not in self.data:
            raise ValueError(f"{self.name!r} is no request: its header lines do not end")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"the weight of {self.name!r} is {weight}, which is not above 0")
        if not 1 <= len(self.statuses) <= STATUSES_MAX or not all(200 <= status < 600 for status in self.statuses):
            raise ValueError(f"{self.statuses} are not one to {STATUSES_MAX} statuses from 200 to 599")

    def __repr__(self):
        return f"<Exchange {self.name!r}>"

    def closing(self):
        """The request's bytes with a line that asks the server to close the connection, where there was none."""
        line, _, rest = self.data.partition(b"\r\n")
        head = rest.partition(b"\r\n\r\n")[0]
        if line.endswith(b"HTTP/1.0") or re.search(rb"(?im)^connection:[^\r]*\bclose\b", head):
            return self.data
        return line + b"\r\nConnection: close\r\n" + rest


def sequence(exchanges, seed):
    """The order of requests, as numbers of exchanges: each as often as its weight says, shuffled by `seed`."""
    total = sum(exchange.weight for exchange in exchanges)
    order = []
    for number, exchange in enumerate(exchanges):
        order += [number] * max(1, int(exchange.weight / total * PICKS))
    # What rounding has left over goes to the heaviest, which it changes least.
    heaviest = max(range(len(exchanges)), key=lambda number: exchanges[number].weight)
    order += [heaviest] * (PICKS - len(order))
    random.Random(seed).shuffle(order)
    return order[:PICKS]


def allow_descriptors(needed):
    """Raises this process's limit of open files, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard))


# --- the run ---------------------------------------------------------------------------------------------------------

cdef bint take_buckets(Histogram *histogram):
    """Makes a histogram empty; False: there is no memory."""
    histogram.count = histogram.sum_us = histogram.max_us = 0
    histogram.buckets = <uint64_t *>calloc(BUCKETS, sizeof(uint64_t))
    return histogram.buckets is not NULL


cdef list pairs_of(const Histogram *histogram):
    """The largest time of each bucket, and how many it counts."""
    cdef uint32_t bucket
    if histogram.buckets is NULL:
        return []
    return [(bucket_least(bucket + 1) - 1, histogram.buckets[bucket])
            for bucket in range(BUCKETS) if histogram.buckets[bucket]]


cdef dict figures_of(const Histogram *histogram):
    """Percentiles (each the largest time of its bucket, but no more than there was), maximum and mean."""
    pairs = pairs_of(histogram)
    found = {name: min(percentile(pairs, share), histogram.max_us) for name, share in LATENCY_SHARES.items()}
    return {**found, "max": histogram.max_us, "mean": histogram.sum_us / max(histogram.count, 1)}


cdef bint on_tick(void *owner) noexcept nogil:
    with gil:
        return (<Load>owner).check_signals()


cdef class Load:
    """Load on one server: `connections` clients, each with up to `pipeline` requests under way, for `seconds`.

    Closed loop: a client sends its next request when an answer has come. With `rate_per_s` an open loop: requests are
    due at moments that were drawn beforehand (from `seed`), with the same gap between all ("constant") or exponential
    ones ("poisson"); they leave on the connection that is free for longest, or wait for one, and their latency counts
    from the moment at which they were due.

    `exchanges` come in an order that `seed` fixes. `close`: a connection for each request, which then asks for it.
    `warmup_s` goes before the measured time, `drain_s` at most after it, in which what was sent is still answered.
    `requests_max` ends the run after so many requests. A response of which nothing comes for `timeout_s`, a connection
    that fails or is refused, is counted, and the client connects anew, until `retries` attempts in a row have failed.
    Raises ValueError for what makes no sense, OSError for a host that has no address.
    """

    cdef Run run_data
    cdef readonly list exchanges
    cdef readonly dict settings
    cdef object interruption
    cdef list requests              # keeps the bytes alive that the run points to
    cdef bint is_running

    def __init__(self, host, port, exchanges, connections=64, seconds=5.0, *, warmup_s=0.0, requests_max=0, close=False,
                 pipeline=1, seed=1, timeout_s=10.0, drain_s=5.0, retries=10, rate_per_s=None,
                 arrivals="poisson"):
        self.exchanges = list(exchanges)
        if not 1 <= len(self.exchanges) <= PICKS:
            raise ValueError(f"{len(self.exchanges)} exchanges are not 1 to {PICKS}")
        if not 1 <= connections <= CLIENTS_MAX:
            raise ValueError(f"connections: {connections} is not 1 to {CLIENTS_MAX}")
        if not 1 <= pipeline <= PIPELINE_MAX:
            raise ValueError(f"pipeline: {pipeline} is not 1 to {PIPELINE_MAX}")
        if close and pipeline > 1:
            raise ValueError("pipelining needs a connection that goes on")
        if not 0 <= retries <= RETRIES_MAX:
            raise ValueError(f"retries: {retries} is not 0 to {RETRIES_MAX}")
        if seconds <= 0 or timeout_s <= 0 or warmup_s < 0 or drain_s < 0 or requests_max < 0:
            raise ValueError("seconds and timeout_s must be above 0, and the other figures not below")
        if rate_per_s is not None and not 0 < rate_per_s <= RATE_PER_S_MAX:
            raise ValueError(f"rate_per_s: {rate_per_s} is not above 0 and up to {RATE_PER_S_MAX}")
        if arrivals not in ARRIVALS:
            raise ValueError(f"arrivals: {arrivals!r} is neither of {', '.join(ARRIVALS)}")
        self.settings = {"host": host, "port": port, "connections": connections, "seconds": seconds,
                         "warmup_s": warmup_s, "requests_max": requests_max, "close": close, "pipeline": pipeline,
                         "seed": seed, "timeout_s": timeout_s, "drain_s": drain_s, "retries": retries,
                         "rate_per_s": rate_per_s, "arrivals": arrivals}
        self.set_address(host, port)

    cdef set_address(self, host, port):
        """struct sockaddr_in or sockaddr_in6: family, port, then the address at byte 4 or 8."""
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        packed = socket.inet_pton(family, where[0])
        text = int(family).to_bytes(2, "little") + where[1].to_bytes(2, "big")
        if family == AF_INET6:
            text += bytes(4) + packed + where[3].to_bytes(4, "little")
        else:
            text += packed + bytes(8)
        memcpy(self.run_data.address, <const char *>text, len(text))
        self.run_data.address_length = <uint32_t>len(text)
        self.run_data.family = int(family)

    cdef bint check_signals(self) noexcept:
        """Ctrl-C ends the run; run() raises it when its memory is free again."""
        try:
            PyErr_CheckSignals()
        except BaseException as error:
            self.interruption = error
            return True
        return False

    def stop(self):
        """Ends the run within a tenth of a second; from another thread."""
        self.run_data.stopping = 1

    @property
    def responses(self):
        """Responses so far; also while it runs."""
        return self.run_data.figures.responses

    def run(self):
        """Runs to the end and returns the figures, see results().

        Raises OSError where the ring cannot be set up. An exception of a signal (KeyboardInterrupt) ends the run and
        is raised then; results() still tells what was measured.
        """
        cdef int result
        if self.is_running:
            raise RuntimeError("this load runs already")
        self.is_running = True
        self.interruption = None
        try:
            self.prepare()
            with nogil:
                result = run_clients(&self.run_data)
        finally:
            self.is_running = False
        if result < 0:
            raise OSError(-result, f"load: {os.strerror(-result)}")
        if self.interruption is not None:
            raise self.interruption
        return self.results()

    cdef prepare(self):
        cdef Run *run = &self.run_data
        cdef uint32_t index, size_bytes_max
        settings = self.settings
        self.release()
        memset(&run.figures, 0, sizeof(run.figures))
        run.stopping = 0
        run.client_count = settings["connections"]
        run.pipeline = settings["pipeline"]
        run.retries = settings["retries"]
        run.closes = settings["close"]
        run.requests_max = settings["requests_max"]
        run.seconds_us = int(settings["seconds"] * 1e6)
        run.warmup_us = int(settings["warmup_s"] * 1e6)
        run.timeout_us = int(settings["timeout_s"] * 1e6)
        run.drain_us = int(settings["drain_s"] * 1e6)
        run.rate_per_s = settings["rate_per_s"] or 0
        run.is_poisson = settings["arrivals"] == "poisson"
        run.seed = settings["seed"] & 0xFFFFFFFFFFFFFFFF
        run.tick = on_tick
        run.owner = <void *>self
        self.requests = [exchange.closing() if run.closes else exchange.data for exchange in self.exchanges]
        size_bytes_max = max(len(data) for data in self.requests)
        # Twice the largest, so that one can be gathered while another is on its way.
        run.out_size_bytes = 0 if run.pipeline == 1 else max(2 * size_bytes_max, <uint32_t>OUT_SIZE_BYTES_MIN)
        self.take_memory()
        self.fill_exchanges()
        for index, number in enumerate(sequence(self.exchanges, settings["seed"])):
            run.picks[index] = number
        allow_descriptors(2 * run.client_count + DESCRIPTORS_SPARE)

    cdef take_memory(self):
        cdef Run *run = &self.run_data
        cdef uint32_t index
        cdef Owed *owed = <Owed *>calloc(<size_t>run.client_count * run.pipeline, sizeof(Owed))
        cdef char *out = <char *>calloc(run.client_count, run.out_size_bytes) if run.out_size_bytes else NULL
        run.clients = <Client *>calloc(run.client_count, sizeof(Client))
        run.data = <const char **>calloc(len(self.exchanges), sizeof(char *))
        run.data_length = <uint32_t *>calloc(len(self.exchanges), sizeof(uint32_t))
        run.expected = <Expectation *>calloc(len(self.exchanges), sizeof(Expectation))
        run.answered = <uint64_t *>calloc(len(self.exchanges), ANSWER_PLACES * sizeof(uint64_t))
        run.picks = <uint32_t *>calloc(PICKS, sizeof(uint32_t))
        run.free = <uint32_t *>calloc(run.client_count, sizeof(uint32_t))
        run.schedule.moments_us = <uint64_t *>calloc(WAITING_MAX if run.rate_per_s else 1, sizeof(uint64_t))
        has_histograms = all([take_buckets(&run.latencies), take_buckets(&run.services), take_buckets(&run.lateness)])
        if run.clients is not NULL and owed is not NULL:
            run.clients[0].owed = owed
            run.clients[0].out = out
        else:
            free(owed)
            free(out)
            owed = NULL
        if (owed is NULL or (run.out_size_bytes and out is NULL) or run.data is NULL or run.data_length is NULL
                or run.expected is NULL or run.answered is NULL or run.picks is NULL or run.free is NULL
                or run.schedule.moments_us is NULL or not has_histograms):
            raise MemoryError
        for index in range(run.client_count):
            run.clients[index].fd = -1
            run.clients[index].owed = owed + <size_t>index * run.pipeline
            run.clients[index].out = out + <size_t>index * run.out_size_bytes if out is not NULL else NULL

    cdef fill_exchanges(self):
        cdef Run *run = &self.run_data
        cdef uint32_t index
        cdef Expectation *expected
        for index, exchange in enumerate(self.exchanges):
            run.data[index] = <const char *><bytes>self.requests[index]
            run.data_length[index] = <uint32_t>len(self.requests[index])
            expected = &run.expected[index]
            for place, status in enumerate(exchange.statuses):
                expected.statuses[place] = <uint16_t>status
            expected.status_count = len(exchange.statuses)
            expected.is_head = exchange.data.startswith(b"HEAD ")
            expected.length = -1 if exchange.length is None else exchange.length
            expected.has_crc = exchange.crc32 is not None
            expected.crc = exchange.crc32 or 0
            expected.body = <const char *><bytes>exchange.body if exchange.body is not None else NULL

    cdef release(self):
        cdef Run *run = &self.run_data
        if run.clients is not NULL:
            free(run.clients[0].owed)
            free(run.clients[0].out)
        free(run.clients)
        free(run.data)
        free(run.data_length)
        free(run.expected)
        free(run.answered)
        free(run.picks)
        free(run.free)
        free(run.schedule.moments_us)
        free(run.latencies.buckets)
        free(run.services.buckets)
        free(run.lateness.buckets)
        run.clients = NULL
        run.data = NULL
        run.data_length = NULL
        run.expected = NULL
        run.answered = NULL
        run.picks = NULL
        run.free = NULL
        run.schedule.moments_us = NULL
        run.latencies.buckets = run.services.buckets = run.lateness.buckets = NULL

    def __dealloc__(self):
        self.release()

    # --- figures ---

    def histogram(self):
        """Latencies of the measured requests: (microseconds, count), the largest of each bucket, in rising order.

        That is at most 0.1% above the latency of any request in the bucket.
        """
        return pairs_of(&self.run_data.latencies)

    def answered(self):
        """How often each exchange was answered, by status, in the order of `exchanges`; 0 stands for all statuses that
        were not expected. Of the whole run."""
        cdef uint32_t index, place
        found = []
        for index, exchange in enumerate(self.exchanges if self.run_data.answered is not NULL else ()):
            counts = {}
            for place, status in enumerate((*exchange.statuses, 0)):
                place = place if status else STATUSES_MAX
                if self.run_data.answered[index * ANSWER_PLACES + place]:
                    counts[status] = self.run_data.answered[index * ANSWER_PLACES + place]
            found.append(counts)
        return found

    def first_wrong(self):
        """The first wrong answer, in words; empty: there was none."""
        cdef Run *run = &self.run_data
        if run.figures.answers_wrong == 0:
            return ""
        exchange = self.exchanges[run.figures.first_wrong]
        if run.figures.first_wrong_kind & WRONG_STATUS:
            wanted = " or ".join(map(str, exchange.statuses))
            return f"{exchange.name}: status {run.figures.first_wrong_status} instead of {wanted}"
        if run.figures.first_wrong_kind & WRONG_LENGTH:
            return f"{exchange.name}: {run.figures.first_wrong_length} bytes instead of {exchange.length}"
        return f"{exchange.name}: the body is not the right one"

    def results(self):
        """The figures of the run, as plain data.

        Of the measured time: seconds, began_us and ended_us (of CLOCK_MONOTONIC), requests (answered), requests_per_s,
        bytes (received), latency_us (p50, p90, p99, p999, max, mean), client (cpu_s, core_wait_s, idle_share,
        system_calls, loops); it is idle when it neither runs nor waits for its core.
        Of the whole run: sent, responses, unanswered, statuses, wrong (answers; by status, length and body),
        wrong_example, errors (connections that failed, by kind), connections (opened, gave_up), unissued.

        Open loop, else None: offered_per_s, requests that were due in the measured time; latency_us is of these,
        whenever they were answered, and of unissued ones until the end; service_us, of the answered from when they
        were sent; late_us (p99, max), how long after its moment the client looked at a request, which is its own fault.
        """
        cdef Run *run = &self.run_data
        cdef uint32_t index
        seconds = max(run.figures.ended_us - run.figures.began_us, 1) / 1e6
        requests = run.figures.requests
        lateness = figures_of(&run.lateness)
        busy_s = (run.figures.cpu_ns + run.figures.core_wait_ns) / 1e9
        return {
            "seconds": seconds,
            "began_us": run.figures.began_us,
            "ended_us": run.figures.ended_us,
            "requests": requests,
            "requests_per_s": requests / seconds,
            "offered_per_s": run.figures.offered / seconds if run.is_open else None,
            "bytes": run.figures.bytes,
            "latency_us": figures_of(&run.latencies),
            "service_us": figures_of(&run.services) if run.is_open else None,
            "late_us": {"p99": lateness["p99"], "max": lateness["max"]} if run.is_open else None,
            "client": {"cpu_s": run.figures.cpu_ns / 1e9, "core_wait_s": run.figures.core_wait_ns / 1e9,
                       "idle_share": max(0.0, 1 - busy_s / seconds),
                       "system_calls": run.figures.system_calls, "loops": run.figures.loops},
            "sent": run.figures.issued,
            "responses": run.figures.responses,
            "unanswered": run.figures.unanswered,
            "unissued": run.figures.unissued,
            "statuses": {index: run.figures.statuses[index] for index in range(600) if run.figures.statuses[index]},
            "wrong": {"answers": run.figures.answers_wrong,
                      **{name: run.figures.wrong[index] for index, name in enumerate(WRONG_NAMES)}},
            "wrong_example": self.first_wrong(),
            "errors": {FAILURE_NAMES[index]: run.figures.failures[index] for index in range(FAILURE_COUNT)},
            "connections": {"opened": run.figures.opened, "gave_up": run.figures.hopeless},
        }
