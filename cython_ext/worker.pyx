"""A handler worker: takes batches from its lane, calls handlers, gives responses back.

The rules:

- One entry into the interpreter a batch; while there is no batch the worker sleeps without the GIL, on its bell.
- Batches for native handlers are run where they are found, without the GIL: a sleeping worker runs them and sleeps on.
- One bad item spoils nothing: bad bodies are answered before the handler is called; what a handler leaves unanswered
  gets 500; a raise, where the route lets it, makes the unanswered items run again one by one, so that only the culprit
  fails.
- A worker never ends a batch with an item unanswered, whatever a handler does.
"""
import asyncio
import logging

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc

from batchbridge.cython_ext.bridge cimport Dispatch, lane_dispatch_taken, lane_next_dispatch, lane_view
from batchbridge.cython_ext.engine cimport EngineThread, SharedMemory
from batchbridge.cython_ext.lane_end cimport LaneEnd, lane_end_batch
from batchbridge.cython_ext.messages cimport Batch, Request, open_batch
from batchbridge.cython_ext.native cimport NATIVE_NOTHING, NATIVE_OTHER, NativeRoutes, native_run
from batchbridge.cython_ext.parse cimport METHOD_GET, METHOD_HEAD, METHOD_OPTIONS

from batchbridge.cython_ext.native import REFUSALS
from batchbridge.cython_ext.response import BYTES_HEADERS
from batchbridge.errors import BatchSizeError, HTTPError

logger = logging.getLogger("batchbridge.handlers")

cdef bytes ARRAY_HEADERS = BYTES_HEADERS


cdef extern from "compat.h" nogil:
    void bb_store_relaxed(uint32_t *, uint32_t) noexcept
    uint32_t bb_load_acquire(const uint32_t *) noexcept
    void bb_full_fence() noexcept


cdef extern from "<unistd.h>" nogil:
    ssize_t read(int, void *, size_t) noexcept
    ssize_t write(int, const void *, size_t) noexcept


cdef class Worker:
    """One handler worker of an engine, with the handlers it may be asked to run.

    `routes`: a list of batchbridge.handlers.Handler, by the engine's numbers.
    """
    cdef LaneEnd end
    cdef NativeRoutes natives
    cdef readonly list routes
    cdef public object state
    cdef object loop                            # for coroutines, where no event loop runs

    def __init__(self, EngineThread engine, int number, list routes):
        cdef SharedMemory memory = engine.lanes[number]
        cdef LaneEnd end = LaneEnd.__new__(LaneEnd)
        lane_view(&end.worker.lane, memory.address, engine.engine.lanes[number].block_count,
                  engine.worker_bells[number], engine.engine.bell)
        end.worker.slabs = engine.engine.slabs
        end.worker.response_size_bytes_max = engine.engine.limits.response_size_bytes_max
        end.memories = (memory, engine.slabs)
        self.end = end
        self.routes = routes
        self.state = None
        self.natives = NativeRoutes(routes, engine.engine.limits.batch_size_max)
        self.natives.native.worker = &end.worker
        self.natives.native.owner = <void *>self
        self.natives.native.report = report

    # --- batches ---

    def next_batch(self):
        """The next batch for a Python handler that the engine has given this worker, or None.

        Batches for native handlers before it are run here.
        """
        cdef Dispatch *dispatch = lane_next_dispatch(&self.end.worker.lane)
        cdef Batch batch
        if dispatch is not NULL and self.natives.native.routes[dispatch.route].function is not NULL:
            with nogil:
                native_run(&self.natives.native)
            dispatch = lane_next_dispatch(&self.end.worker.lane)
        if dispatch is NULL:
            return None
        batch = open_batch(self.end, dispatch, self.routes[dispatch.route], self.state)
        batch.number = dispatch.route
        lane_dispatch_taken(&self.end.worker.lane)
        self.end.worker.lane.shared.batches += 1
        self.end.worker.lane.shared.items += batch.size
        return batch

    def end_batch(self, Batch batch):
        """Ends a batch: what is unanswered gets 500, with one line in the log that names the handler."""
        cdef uint32_t place
        if batch.unanswered:
            self.end.worker.lane.shared.items_unanswered += batch.unanswered
            batch.route.log_unanswered(batch.unanswered)
            for place in range(batch.size):
                batch.answer_status(place, 500)
        lane_end_batch(&self.end.worker, batch.slab.index, batch.number)
        # They refer to the batch: with them it, and its slab, would wait for the cyclic collector.
        batch.requests = None

    def admit(self, Batch batch):
        """Decodes the bodies where the route asks for it; bad ones are answered here, and leave the batch."""
        cdef uint32_t place
        cdef list good = []
        decode = batch.route.decode_body
        for place in range(batch.size):
            request = batch.request_at(place)
            try:
                (<Request>request).known_value = decode(request)
                good.append(place)
            except HTTPError as error:
                batch.answer_failure(place, error)
        if len(good) < batch.size:
            batch.order = good
        return len(good) > 0

    def settle(self, Batch batch, result):
        """Takes what a handler returned. BatchSizeError, TypeError, ValueError: it is not one entry an item."""
        cdef uint32_t place
        cdef Py_ssize_t index, count
        if result is None:
            return
        if settle_array(batch, result):
            return
        count = len(batch)
        try:
            size = len(result)
        except TypeError:
            raise TypeError(f"the handler of {batch.route.path} returned {type(result).__name__}, which is neither "
                            "None nor a sequence with one entry an item") from None
        if size != count or isinstance(result, (str, bytes, dict)):
            raise BatchSizeError(f"the handler of {batch.route.path} returned {size} entries for a batch of {count}"
                                 if size != count else
                                 f"the handler of {batch.route.path} returned one {type(result).__name__} for a batch")
        for index in range(count):
            place = index if batch.order is None else batch.order[index]
            entry = result[index]
            if batch.answered[place]:
                continue
            if isinstance(entry, BaseException):
                batch.answer_failure(place, entry)
                continue
            try:
                batch.answer(place, entry)
            except Exception as error:      # whatever a strange entry does is its own item's failure
                batch.answer_failure(place, error)

    def failed(self, Batch batch, error):
        """What becomes of a batch whose handler raised; True: its unanswered items are to run again, one by one."""
        if (isinstance(error, BatchSizeError) or not isinstance(error, Exception) or len(batch) == 1
                or not self.may_isolate(batch)):
            self.fail_unanswered(batch, error)
            return False
        return True

    cdef fail_unanswered(self, Batch batch, error):
        """The unanswered items fail by `error`, which is logged once."""
        cdef uint32_t place
        if not isinstance(error, HTTPError):
            batch.route.log_failure(error)
        for place in range(batch.size):
            if batch.answered[place]:
                continue
            if isinstance(error, HTTPError):
                batch.answer_failure(place, error)
            else:
                batch.answer_status(place, 500)

    cdef bint may_isolate(self, Batch batch):
        """Whether running items again does no harm: the route says so, or all their methods are safe."""
        cdef uint32_t place
        if batch.route.policy.on_error != "isolate":
            return False
        if batch.route.policy.idempotent:
            return True
        for place in range(batch.size):
            if batch.items[place].method not in (METHOD_GET, METHOD_HEAD, METHOD_OPTIONS):
                return False
        return True

    def parts(self, Batch batch):
        """The unanswered items of a batch, each as a batch of its own."""
        cdef uint32_t place
        cdef Batch part
        parts = []
        for place in range(batch.size):
            if batch.answered[place] or (batch.order is not None and place not in batch.order):
                continue
            part = Batch.__new__(Batch)
            part.end = batch.end
            part.slab = batch.slab
            part.items = batch.items + place
            part.first = batch.first + place
            part.size = 1
            part.unanswered = 1
            part.reason_number = batch.reason_number
            part.state = batch.state
            part.route = batch.route
            part.whole = batch
            part.show_after = batch.show_after
            part.varies = batch.varies
            part.answered = <unsigned char *>calloc(1, 1)
            if part.answered is NULL:
                raise MemoryError
            if batch.requests is not None and batch.requests[place] is not None:
                part.request_at(0).known_value = (<Request>batch.requests[place]).known_value
            parts.append(part)
        return parts

    def merge(self, Batch batch, Batch part):
        """A part is through: what it left unanswered gets 500, and the whole batch knows of it."""
        cdef uint32_t place = part.first - batch.first
        if part.unanswered:
            self.end.worker.lane.shared.items_unanswered += 1
            part.route.log_unanswered(1)
            part.answer_status(0, 500)
        batch.answered[place] = 1
        batch.unanswered -= 1
        part.requests = None

    cdef call(self, Batch batch):
        """What the handler returns; a coroutine is run to its end here, where there is no event loop (test client)."""
        result = batch.route.function(batch)
        if not batch.route.is_async:
            return result
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
        return self.loop.run_until_complete(result)

    def run_batch(self, Batch batch):
        """Calls the handler, and sees to it that each item is answered."""
        route = batch.route
        try:
            if route.decode_body is None or self.admit(batch):
                self.settle(batch, self.call(batch))
        except BaseException as error:      # SystemExit, too: a handler must not end its worker
            if self.failed(batch, error):
                for part in self.parts(batch):
                    self.run_part(batch, part)
        finally:
            self.end_batch(batch)

    def run_part(self, Batch batch, Batch part):
        """Calls the handler for one item."""
        try:
            self.settle(part, self.call(part))
        except BaseException as error:
            self.failed(part, error)
        finally:
            self.merge(batch, part)

    # --- on a thread of its own ---

    def run(self):
        """Runs batches until close() was called and none is left."""
        self.end.worker.lane.shared.gil_entries += 1
        while True:
            batch = self.next_batch()
            if batch is not None:
                self.run_batch(batch)
                batch = None            # a slab is reused when nothing refers to its batch
            elif self.end.worker.lane.shared.closing:
                return
            else:
                self.sleep()
                self.end.worker.lane.shared.gil_entries += 1

    def sleep(self):
        """Waits, without the GIL, until the engine has a batch for a Python handler or closes the lane.

        What comes for native handlers meanwhile is run.
        """
        cdef uint64_t rung
        with nogil:
            while native_run(&self.natives.native) == NATIVE_NOTHING:
                if bb_load_acquire(&self.end.worker.lane.shared.closing):
                    break
                if self.going_to_sleep():
                    read(self.end.worker.lane.worker_bell, &rung, 8)
                bb_store_relaxed(&self.end.worker.lane.shared.worker_sleeps, 0)

    cdef bint going_to_sleep(self) noexcept nogil:
        """Says so first and looks once more then, so that no bell is missed."""
        bb_store_relaxed(&self.end.worker.lane.shared.worker_sleeps, 1)
        bb_full_fence()
        return (lane_next_dispatch(&self.end.worker.lane) is NULL
                and bb_load_acquire(&self.end.worker.lane.shared.closing) == 0)

    def prepare_sleep(self):
        """For an event loop that waits on `bell` itself: False when there is work already."""
        if self.going_to_sleep():
            return True
        bb_store_relaxed(&self.end.worker.lane.shared.worker_sleeps, 0)
        return False

    def awake(self):
        """The event loop was woken."""
        bb_store_relaxed(&self.end.worker.lane.shared.worker_sleeps, 0)
        self.end.worker.lane.shared.gil_entries += 1

    @property
    def bell(self):
        """The eventfd that the engine rings."""
        return self.end.worker.lane.worker_bell

    @property
    def closed(self):
        """Whether close() was called."""
        return self.end.worker.lane.shared.closing != 0

    def close(self):
        """Lets run() end when no batch is left."""
        cdef uint64_t one = 1
        if self.loop is not None:
            self.loop.close()
            self.loop = None
        bb_store_relaxed(&self.end.worker.lane.shared.closing, 1)
        bb_full_fence()
        write(self.end.worker.lane.worker_bell, &one, 8)

    # --- on the engine's thread ---

    def inline_entry(self):
        """The address of the C function that the engine calls with this worker to run what it has dispatched."""
        return <uintptr_t><void *>run_inline


cdef void run_inline(void *worker) noexcept nogil:
    if native_run(&(<Worker>worker).natives.native) == NATIVE_OTHER:
        with gil:
            run_all(<Worker>worker)


cdef run_all(Worker worker):
    worker.end.worker.lane.shared.gil_entries += 1
    while True:
        batch = worker.next_batch()
        if batch is None:
            return
        worker.run_batch(batch)


cdef void report(void *owner, uint32_t route, uint32_t unanswered, uint32_t refused, int refusal) noexcept nogil:
    with gil:
        report_faults(<Worker>owner, route, unanswered, refused, refusal)


cdef report_faults(Worker worker, uint32_t route, uint32_t unanswered, uint32_t refused, int refusal):
    """A native handler did something wrong: lines in the log that name it."""
    worker.end.worker.lane.shared.gil_entries += 1
    handler = worker.routes[route]
    if refused:
        handler.log_refused(refused, REFUSALS[refusal])
    if unanswered:
        handler.log_unanswered(unanswered)


cdef bint settle_array(Batch batch, result) except -1:
    """A handler that returns an array (anything with a buffer of as many rows as the batch has items): each row's bytes
    are one answer, without an object for any of them. False: it is no such thing."""
    cdef Py_ssize_t count, row, index
    cdef uint32_t place
    cdef const unsigned char[::1] view
    if not hasattr(result, "__array_interface__"):
        return False
    # Texts and objects are entries, not rows of bytes; and where a header is to be added, each row is answered in full.
    if batch.varies or result.ndim == 0 or result.dtype.kind not in "biufcmMV":
        return False
    count = len(batch)
    if len(result) != count:
        raise BatchSizeError(f"the handler of {batch.route.path} returned {len(result)} rows for a batch of {count}")
    if result.nbytes == 0:
        return settle_empty(batch, count)
    view = memoryview(as_bytes(result))
    row = view.shape[0] // count
    for index in range(count):
        place = index if batch.order is None else batch.order[index]
        if not batch.answered[place]:
            batch.answer_plain(place, <const char *>&view[0] + index * row, row, ARRAY_HEADERS)
    return True


cdef bint settle_empty(Batch batch, Py_ssize_t count) except -1:
    """Rows of no bytes: empty answers."""
    cdef Py_ssize_t index
    cdef uint32_t place
    for index in range(count):
        place = index if batch.order is None else batch.order[index]
        if not batch.answered[place]:
            batch.answer_plain(place, b"", 0, ARRAY_HEADERS)
    return True


cdef as_bytes(array):
    import numpy

    return numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8)
