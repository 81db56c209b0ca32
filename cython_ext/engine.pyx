"""One engine: one thread, one loop, shared by all drivers.

The rules:

- The engine's thread holds the GIL only to be started, to be ended, and while a handler runs on it (inline).
- Python never touches what the engine's thread uses, but for single words (policies, the table, flags) and counters,
  which it may read a little too early or too late. What must happen on the thread (a purge) is a command: Python stores
  it, rings the bell, and waits until it was carried out.
- "I sleep" is written before the last look for work (see bridge.pyx), so an engine that sleeps is always woken.
"""
import os
import threading

cimport cython
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from batchbridge.cython_ext.accesslog cimport log_close, log_flush, log_open, log_tick
from batchbridge.cython_ext.answer cimport answer_done, answer_promise
from batchbridge.cython_ext.bridge cimport (
    BATCH_SIZE_BUCKETS, REASON_COUNT, RESPONSE_BLOCK_SIZE_BYTES, Item, Lane, lane_size_bytes, lane_view,
    policy_from_dict, slabs_view)
from batchbridge.cython_ext.cache cimport cache_free, cache_new, cache_stats
from batchbridge.cython_ext.connection cimport (
    close_idle, connections_free, connections_prepare, recycle, run_held, sweep)
from batchbridge.cython_ext.core cimport (
    LANES_MAX, NO_ROUTE, OUTCOME_BATCH, OUTCOME_COUNT, OUTCOME_REMOTE, ROUTES_MAX, Answer, Connection, Deferred, Engine,
    Route)
from batchbridge.cython_ext.deferred cimport defer_free
from batchbridge.cython_ext.dispatch cimport collect_answers, dispatch_batches, expire_deferred
from batchbridge.cython_ext.files cimport files_free, files_prepare, files_pretend_cold
from batchbridge.cython_ext.fills cimport fills_free
from batchbridge.cython_ext.heads cimport heads_prepare, heads_tick
from batchbridge.cython_ext.http cimport http_protocol
from batchbridge.cython_ext.moments cimport earliest
from batchbridge.cython_ext.openings cimport openings_collect, openings_end, openings_free
from batchbridge.cython_ext.publish cimport publish_purged
from batchbridge.cython_ext.purge cimport cache_purge
from batchbridge.cython_ext.route cimport compile_template, route_free
from batchbridge.cython_ext.send cimport flush

from batchbridge.cython_ext.bridge import REASON_NAMES


cdef extern from "compat.h" nogil:
    uint64_t bb_now_us() noexcept
    int64_t bb_wall_s() noexcept
    void bb_store_relaxed(uint32_t *, uint32_t) noexcept
    uint32_t bb_load_acquire(const uint32_t *) noexcept
    void bb_full_fence() noexcept


cdef extern from "<sys/mman.h>" nogil:
    int memfd_create(const char *, unsigned int) noexcept
    void *mmap(void *, size_t, int, int, int, long) noexcept
    int munmap(void *, size_t) noexcept
    int PROT_READ, PROT_WRITE, MAP_SHARED
    unsigned int MFD_CLOEXEC
    void *MAP_FAILED


cdef extern from "<unistd.h>" nogil:
    int ftruncate(int, long) noexcept
    int close(int) noexcept
    ssize_t write(int, const void *, size_t) noexcept


cdef enum:
    BLOCKS_MAX = 4096               # of records (answers, deferred)
    SCRATCH_SIZE_BYTES = 2097152
    LOG_AGE_US = 200000


OUTCOME_NAMES = ("hit", "file", "batch", "remote", "local", "error_4xx", "error_5xx", "client_gone")
METHOD_NAMES = ("", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE")


# --- the turn of the loop --------------------------------------------------------------------------------------------

cdef uint64_t clock_us(const Engine *engine) noexcept nogil:
    return bb_now_us() + engine.clock_offset_us


cdef bint turn_goes_on(Engine *engine) noexcept nogil:
    if engine.stopping:
        return False
    return not engine.draining or engine.open_connections > 0


cdef int64_t turn_wait_us(Engine *engine) noexcept nogil:
    cdef uint64_t moment
    cdef uint32_t index
    cdef Lane *lane
    # more_input: a batch may be waiting for it, and must not wait for longer if nothing comes after all (law 8).
    # A command: its bell may have been heard together with that of the one before.
    if engine.held is not NULL or engine.dirty is not NULL or engine.more_input or engine.has_command:
        return 0
    for index in range(engine.lane_count):
        bb_store_relaxed(&engine.lanes[index].shared.engine_sleeps, 1)
    bb_full_fence()
    for index in range(engine.lane_count):
        lane = engine.lanes[index]
        if lane.completion_head != bb_load_acquire(&lane.shared.completion_tail):
            return 0
    moment = earliest(engine.next_deadline_us, engine.batch_deadline_us)
    if engine.log.used and not engine.log.writing:
        moment = earliest(moment, engine.log.oldest_us + LOG_AGE_US)
    if moment == 0:
        return -1
    moment -= min(moment, clock_us(engine))
    return <int64_t>moment


cdef void turn_begin(Engine *engine) noexcept nogil:
    cdef uint32_t index
    cdef int64_t wall_s
    for index in range(engine.lane_count):
        bb_store_relaxed(&engine.lanes[index].shared.engine_sleeps, 0)
    engine.now_us = clock_us(engine)
    engine.counters.loops += 1
    wall_s = bb_wall_s()
    if wall_s != engine.wall_s:
        engine.wall_s = wall_s
        heads_tick(engine)
        log_tick(engine)
    if engine.has_command:
        engine.has_command = 0
        engine.run_command(engine.command_owner)


cdef void run_command(void *owner) noexcept nogil:
    with gil:
        (<EngineThread>owner).carry_out()


cdef void turn_end(Engine *engine) noexcept nogil:
    cdef Connection *connection
    openings_collect(engine)
    if engine.next_deadline_us and engine.next_deadline_us <= engine.now_us:
        sweep(engine)
        expire_deferred(engine)
    collect_answers(engine)
    run_held(engine)
    while dispatch_batches(engine) and engine.is_inline:
        engine.run_inline(engine.inline_worker)
        engine.now_us = clock_us(engine)
        collect_answers(engine)
        run_held(engine)
    if engine.draining:
        close_idle(engine)
    while engine.dirty is not NULL:
        connection = engine.dirty
        engine.dirty = connection.next_dirty
        if connection.row and engine.tier.can_answer:
            answer_promise(engine.tier, connection)
            flush(engine, connection)
            answer_done(engine.tier, connection)
        else:
            flush(engine, connection)
        recycle(engine, connection)
    if engine.log.used and engine.log.oldest_us + LOG_AGE_US <= engine.now_us:
        log_flush(engine)
    # The other scratch was left one loop ago: whatever fell short of it was reported in this one.
    engine.scratch_active = 1 - engine.scratch_active
    engine.scratch_used = 0


# --- shared memory ---------------------------------------------------------------------------------------------------

cdef class SharedMemory:
    """Memory that several threads or processes map, all zero at first; pages cost nothing before they are touched."""

    def __cinit__(self, uint64_t size_bytes):
        cdef void *address
        self.fd = memfd_create(b"batchbridge", MFD_CLOEXEC)
        if self.fd < 0:
            raise OSError(errno, f"no shared memory: {os.strerror(errno)}")
        if ftruncate(self.fd, <long>size_bytes) < 0:
            raise OSError(errno, f"no {size_bytes} bytes of shared memory: {os.strerror(errno)}")
        address = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        if address == MAP_FAILED:
            raise OSError(errno, f"cannot map {size_bytes} bytes of shared memory: {os.strerror(errno)}")
        self.address = <char *>address
        self.size_bytes = size_bytes

    def __dealloc__(self):
        if self.address is not NULL:
            munmap(self.address, self.size_bytes)
        if self.fd >= 0:
            close(self.fd)


# --- the engine as Python sees it ------------------------------------------------------------------------------------

@cython.no_gc_clear
cdef class EngineThread:
    """One engine. Subclasses bring a driver. Not public: batchbridge.server makes and starts it.

    `settings` is a dict: what batchbridge.server.engine_settings builds from the configuration. `routes` is a list of
    dicts, one a route: path, methods, policy (a BatchPolicy as a dict), coalesce, vary, array_size_bytes, outcome,
    is_fallback. `lane_count` workers will be given batches.
    """

    def __cinit__(self, settings, routes, int lane_count, listeners=()):
        self.engine = <Engine *>calloc(1, sizeof(Engine))
        if self.engine is NULL:
            raise MemoryError
        self.engine.root = -1
        self.engine.log.fd = -1
        self.engine.bell = -1
        self.engine.fallback_route = NO_ROUTE
        self.engine.remote_route = NO_ROUTE
        self.engine.listing_route = NO_ROUTE
        self.reply_bell = -1

    def __init__(self, settings, routes, int lane_count, listeners=()):
        self.settings = settings
        self.listeners = list(listeners)
        self.lock = threading.Lock()
        self.ready = threading.Event()
        self.engine.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.reply_bell = os.eventfd(0, os.EFD_CLOEXEC)
        self.set_limits(settings)
        self.set_table(settings["table"])
        self.set_memory(settings)
        self.set_routes(routes)
        self.set_lanes(settings, lane_count)
        self.engine.run_command = run_command
        self.engine.command_owner = <void *>self
        turn_begin(self.engine)

    cdef set_limits(self, settings):
        cdef Engine *engine = self.engine
        engine.limits.head.head_size_bytes = settings["head_size_bytes_max"]
        engine.limits.head.target_size_bytes = settings["target_size_bytes_max"]
        engine.limits.head.header_count = settings["header_count_max"]
        engine.limits.connections_max = settings["max_connections"]
        engine.limits.body_size_bytes_max = settings["body_size_bytes_max"]
        engine.limits.pipelined_requests_max = settings["pipelined_requests_max"]
        engine.limits.ranges_max = settings["ranges_max"]
        engine.limits.batch_size_max = settings["batch_size_max"]
        engine.limits.receive_buffers = settings["receive_buffers"]
        engine.limits.receive_buffer_size_bytes = settings["receive_buffer_size_bytes"]
        engine.limits.response_size_bytes_max = settings["response_size_bytes_max"]
        engine.limits.cached_file_size_bytes_max = settings["cached_file_size_bytes_max"]
        engine.limits.zero_copy_size_bytes_min = settings["zero_copy_size_bytes_min"]
        engine.limits.copied_size_bytes_max = settings["copied_size_bytes_max"]
        engine.limits.access_log_buffer_size_bytes = settings["access_log_buffer_size_bytes"]
        engine.limits.input_size_bytes_max = settings["input_size_bytes_max"]
        engine.limits.idle_timeout_us = <uint64_t>(settings["idle_timeout_s"] * 1e6)
        engine.limits.header_timeout_us = <uint64_t>(settings["header_timeout_s"] * 1e6)
        engine.limits.body_timeout_us = <uint64_t>(settings["body_timeout_s"] * 1e6)
        engine.limits.send_timeout_us = <uint64_t>(settings["send_timeout_s"] * 1e6)
        engine.limits.linger_timeout_us = <uint64_t>(settings["linger_timeout_s"] * 1e6)
        engine.limits.file_revalidate_us = <uint64_t>(settings["file_revalidate_s"] * 1e6)

    def set_table(self, table):
        """Takes a table of (state, event) to state, by names; also while the engine runs."""
        if self.protocol is None:
            self.protocol = self.settings.get("protocol") or http_protocol()
            self.protocol.fill(&self.engine.machine, table)
            return
        for (source, event), target in table.items():
            state, number = self.protocol.state_number(source), self.protocol.event_number(event)
            self.engine.machine.next_state[state][number] = <uint8_t>self.protocol.state_number(target)

    cdef set_memory(self, settings):
        cdef Engine *engine = self.engine
        cdef int index
        cdef uint64_t slab_size_bytes, request_size_bytes
        server_name = settings["server_name"].encode("latin-1")
        if len(server_name) > sizeof(engine.server_line) - 11:
            raise ValueError(f"server_name: {len(server_name)} bytes are more than {sizeof(engine.server_line) - 11}")
        heads_prepare(engine, server_name)
        seed = os.urandom(8)
        memcpy(&engine.seed, <const char *>seed, 8)
        engine.root = settings["root_fd"]
        files_prepare(engine, settings["types"], settings["default_type"], settings["index_files"],
                      settings["precompressed"], engine.root)
        engine.cache = cache_new(settings["cache_size_bytes"], engine.seed)
        # One response more than the scratch's own bounds need, so that it is never too small for any.
        engine.scratch_size_bytes = max(<uint32_t>SCRATCH_SIZE_BYTES, 4 * (
            engine.limits.copied_size_bytes_max + engine.limits.head.head_size_bytes + 262144))
        for index in range(2):
            engine.scratch[index] = <char *>malloc(engine.scratch_size_bytes)
        engine.deferred_blocks = <Deferred **>calloc(BLOCKS_MAX, sizeof(Deferred *))
        engine.answer_blocks = <Answer **>calloc(BLOCKS_MAX, sizeof(Answer *))
        if (engine.cache is NULL or engine.scratch[0] is NULL or engine.scratch[1] is NULL
                or engine.deferred_blocks is NULL or engine.answer_blocks is NULL or connections_prepare(engine) < 0
                or log_open(engine, settings["access_log_fd"], engine.limits.access_log_buffer_size_bytes) < 0):
            raise MemoryError
        # Room for several of the largest requests, or for one where they are very large: offsets have 32 bits.
        request_size_bytes = <uint64_t>engine.limits.body_size_bytes_max + engine.limits.head.head_size_bytes
        slab_size_bytes = 65536 + engine.limits.batch_size_max * sizeof(Item) + max(
            <uint64_t>1 << 20, request_size_bytes if request_size_bytes > 1 << 26 else 4 * request_size_bytes)
        slab_size_bytes = (slab_size_bytes + 4095) & ~<uint64_t>4095
        self.slabs = SharedMemory(slab_size_bytes * <uint64_t>settings["handler_queue_slabs"])
        slabs_view(&engine.slabs, self.slabs.address, settings["handler_queue_slabs"], <uint32_t>slab_size_bytes,
                   engine.limits.batch_size_max)

    cdef set_routes(self, routes):
        cdef Route *route
        cdef int number
        self.routes = []
        if len(routes) > ROUTES_MAX:
            raise ValueError(f"{len(routes)} routes are more than {ROUTES_MAX}")
        for number, given in enumerate(routes):
            route = &self.engine.routes[number]
            self.engine.route_count = number + 1
            self.routes.append(given["path"])
            policy_from_dict(&route.policy, given["policy"])
            route.is_fallback = bool(given.get("kind"))
            route.outcome = OUTCOME_REMOTE if given.get("kind") == "remote" else OUTCOME_BATCH
            route.coalesce = bool(given["policy"]["coalesce"])
            route.array_size_bytes = given.get("array_size_bytes", 0)
            if given.get("kind") == "remote":
                self.engine.remote_route = number
            elif given.get("kind") == "listing":
                self.engine.listing_route = number
            elif given.get("kind") == "fallback":
                self.engine.fallback_route = number
            else:
                compile_template(route, given["path"])
            for method in given["methods"]:
                if method not in METHOD_NAMES[1:]:
                    raise ValueError(f"the method {method!r} is not one of {', '.join(METHOD_NAMES[1:])}")
                route.methods |= <uint32_t>(1 << METHOD_NAMES.index(method))
            self.set_vary(route, [name.lower().encode("ascii") for name in given.get("vary", ())])

    cdef set_vary(self, Route *route, list names):
        text = b"".join(names)
        if len(names) > 8:
            raise ValueError(f"{len(names)} headers to vary by are more than 8")
        if not names:
            return
        route.vary_text = <char *>malloc(len(text))
        if route.vary_text is NULL:
            raise MemoryError
        memcpy(route.vary_text, <const char *>text, len(text))
        at = 0
        for name in names:
            route.vary[route.vary_count].offset = at
            route.vary[route.vary_count].length = len(name)
            route.vary_count += 1
            at += len(name)

    cdef set_lanes(self, settings, int lane_count):
        cdef Lane *lane
        cdef uint64_t blocks_offset, arena_offset
        cdef uint32_t block_count = max(
            2, <uint32_t>(settings["response_arena_size_bytes"] // RESPONSE_BLOCK_SIZE_BYTES))
        cdef SharedMemory memory
        self.lanes = []
        self.worker_bells = []
        if lane_count > LANES_MAX:
            raise ValueError(f"{lane_count} handler workers are more than {LANES_MAX}")
        self.engine.lane_batches_max = settings["lane_batches_max"]
        for _ in range(lane_count):
            memory = SharedMemory(lane_size_bytes(block_count, &blocks_offset, &arena_offset))
            self.lanes.append(memory)
            self.worker_bells.append(os.eventfd(0, os.EFD_CLOEXEC))
            lane = <Lane *>calloc(1, sizeof(Lane))
            if lane is NULL:
                raise MemoryError
            lane_view(lane, memory.address, block_count, self.worker_bells[-1], self.engine.bell)
            self.engine.lanes[self.engine.lane_count] = lane
            self.engine.lane_count += 1

    def __dealloc__(self):
        cdef uint32_t index
        cdef Engine *engine = self.engine
        if engine is NULL:
            return
        if engine.connections is not NULL:
            connections_free(engine)
        fills_free(engine)
        openings_free(engine)
        cache_free(engine.cache)
        files_free(engine)
        log_close(engine)
        if engine.deferred_blocks is not NULL:
            defer_free(engine)
        free(engine.deferred_blocks)
        if engine.answer_blocks is not NULL:
            for index in range(BLOCKS_MAX):
                free(engine.answer_blocks[index])
        free(engine.answer_blocks)
        for index in range(engine.lane_count):
            close(engine.lanes[index].worker_bell)
            free(engine.lanes[index])
        for index in range(engine.route_count):
            route_free(&engine.routes[index])
        free(engine.scratch[0])
        free(engine.scratch[1])
        if engine.bell >= 0:
            close(engine.bell)
        if self.reply_bell >= 0:
            close(self.reply_bell)
        free(engine)

    # --- running it ---

    cdef int run_loop(self) except -1:
        raise NotImplementedError("a driver's subclass runs the loop")

    def run(self):
        """Runs until stop(), or until drain() has nothing left to do. Call it on a thread of its own."""
        self.running = True
        try:
            self.run_loop()
        finally:
            self.running = False
            with nogil:
                openings_end(self.engine)
            self.carry_out()
            self.ready.set()

    def started(self):
        """A driver says that its loop begins."""
        self.ready.set()

    def set_inline_worker(self, worker):
        """Lets handlers run on the engine's own thread: `worker` is a worker.Worker of lane 0."""
        self.inline_worker = worker
        self.engine.is_inline = 1
        self.engine.inline_worker = <void *>worker
        self.engine.run_inline = <void (*)(void *) noexcept nogil><void *><size_t>worker.inline_entry()

    def ring_bell(self):
        """Wakes the engine."""
        cdef uint64_t one = 1
        write(self.engine.bell, &one, 8)

    def drain(self):
        """Accepts nothing more, closes idle connections, answers what is under way; run() then returns."""
        self.engine.draining = 1
        self.ring_bell()

    def stop(self):
        """Lets run() return at once; what is under way is lost."""
        self.engine.stopping = 1
        self.ring_bell()

    cdef set_clock_offset(self, uint64_t offset_us):
        """Tests: sets the engine's clock ahead of the machine's, also for what handlers see of it."""
        cdef uint32_t index
        self.engine.clock_offset_us = offset_us
        for index in range(self.engine.lane_count):
            self.engine.lanes[index].shared.clock_offset_us = offset_us

    # --- commands ---

    cdef carry_out(self):
        """Carries out the command that was stored, if there is one, and tells whoever waits for it."""
        cdef uint64_t one = 1
        if self.command == 0:
            return
        self.engine.generation += 1
        self.command_result = cache_purge(self.engine.cache, self.command - 1, self.command_is_soft,
                                          <const char *>self.command_text, <uint32_t>len(self.command_text))
        if self.engine.tier is not NULL:
            with nogil:
                publish_purged(self.engine.cache, self.engine.tier)
        self.command = 0
        write(self.reply_bell, &one, 8)

    def purge(self, int kind, bytes text, bint soft=False):
        """Purges the engine's cache; how many objects went. When it returns, none of them is found any more (law 3).

        `soft`: they are stale instead, which is to say that the next request revalidates or renews them.
        """
        with self.lock:
            self.command_text = text
            self.command_is_soft = soft
            self.command = 1 + kind
            if self.running:
                self.engine.has_command = 1
                self.ring_bell()
            else:
                self.carry_out()
            os.read(self.reply_bell, 8)
            return self.command_result

    def pretend_cold(self, bint is_cold):
        """Tests: lets what is read of files be waited for, as if the page cache had nothing."""
        self.engine.cache.memory.is_cold = is_cold

    def pretend_cold_names(self, bint is_cold):
        """Tests: lets files be waited for before they are opened, as if the kernel knew no name."""
        files_pretend_cold(self.engine, is_cold)

    def set_policy(self, int route, policy):
        """Stores a route's policy (a BatchPolicy as a dict), in effect from the next batch."""
        policy_from_dict(&self.engine.routes[route].policy, policy)
        self.engine.routes[route].coalesce = bool(policy["coalesce"])
        self.engine.routes[route].expiry_us = 0

    # --- figures ---

    def stats(self):
        """Counters, as nested dicts; read while the engine runs, so sums may be off by what happens meanwhile."""
        cdef Engine *engine = self.engine
        cdef uint32_t index
        lanes = {"gil_entries": 0, "batches": 0, "items": 0, "items_unanswered": 0, "answers_refused": 0,
                 "response_arena_size_bytes": 0}
        for index in range(engine.lane_count):
            lanes["gil_entries"] += engine.lanes[index].shared.gil_entries
            lanes["batches"] += engine.lanes[index].shared.batches
            lanes["items"] += engine.lanes[index].shared.items
            lanes["items_unanswered"] += engine.lanes[index].shared.items_unanswered
            lanes["answers_refused"] += engine.lanes[index].shared.answers_refused
            lanes["response_arena_size_bytes"] += (
                <uint64_t>engine.lanes[index].block_count * RESPONSE_BLOCK_SIZE_BYTES)
        return {
            "requests": {"read": engine.counters.requests,
                         "outcomes": {OUTCOME_NAMES[index]: engine.counters.outcomes[index]
                                      for index in range(OUTCOME_COUNT)}},
            "connections": {"accepted": engine.counters.accepted, "open": engine.open_connections,
                            "closed": engine.counters.closed, "refused": engine.counters.refused,
                            "timed_out": engine.counters.timed_out},
            "bytes": {"received": engine.counters.bytes_received, "sent": engine.counters.bytes_sent,
                      "input_waiting": engine.input_size_bytes},
            "bridge": {**lanes, "deferred": engine.counters.items_deferred,
                       "in_user_mode": engine.deferred_in_use, "coalesced": engine.counters.items_coalesced,
                       "dropped_expired": engine.counters.items_dropped_expired,
                       "dropped_disconnected": engine.counters.items_dropped_gone,
                       "late": engine.counters.items_late, "body_copies": engine.counters.body_copies,
                       "slabs_in_use": engine.slabs.in_use,
                       "response_arena_registered_size_bytes": 0},
            "routes": {self.routes[index]: self.route_stats(index) for index in range(engine.route_count)},
            "cache": cache_stats(engine.cache),
            "sends": {"short": engine.counters.short_sends, "pieces": engine.counters.pieces,
                      "zero_copy": engine.counters.zero_copy_sends,
                      "zero_copy_pending": engine.counters.zero_copy_pending},
            "fills": {"under_way": engine.fills_under_way},
            "openings": {"later": engine.counters.openings, "under_way": engine.openings_under_way},
            "log": {"lines": engine.counters.log_lines, "lines_lost": engine.counters.log_lines_lost},
            "engine": {"loops": engine.counters.loops, "submits": engine.counters.submits,
                       "table_faults": engine.counters.table_faults},
        }

    cdef route_stats(self, uint32_t index):
        cdef Route *route = &self.engine.routes[index]
        cdef int number
        return {"batches": route.batches, "items": route.items, "queued": route.waiting,
                "in_flight": route.batches_in_flight, "queue_full": route.queue_full,
                "effective_delay_us": route.policy.effective_delay_us,
                "reasons": {REASON_NAMES[number]: route.reasons[number] for number in range(REASON_COUNT)},
                "batch_size_histogram": [route.batch_sizes[number] for number in range(BATCH_SIZE_BUCKETS)]}
