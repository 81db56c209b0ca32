"""A kernel side made of memory, for tests of what an engine does with one: a memory engine's connections get rows.

What arrives is treated as kernel_side/indicate.bpf.h does: it goes up by the ring, or stays in the socket. When it is
in the socket is the test's to say, by writing it there; in a kernel that lacks memory that may be later than what
comes next.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from batchbridge.cython_ext.core cimport Connection, Engine
from batchbridge.cython_ext.engine cimport EngineThread
from batchbridge.cython_ext.kernel cimport tier_consume, tier_sleeps
from batchbridge.cython_ext.publish cimport hash_of, publish_end
from batchbridge.cython_ext.rows cimport tier_cookie_known, tier_free, tier_left, tier_prepare
from batchbridge.cython_ext.spills cimport tier_pause, tier_resume
from batchbridge.cython_ext.tier cimport *


cdef enum:
    RING_SIZE_BYTES = 1 << 22       # as much as a test may write: it is not used a second time
    RECORD_HEADER_SIZE_BYTES = 8


cdef void pause(Engine *engine, Connection *connection) noexcept nogil:
    if connection.row and engine.tier is not NULL:
        tier_pause(engine.tier, connection)


cdef void resume(Engine *engine, Connection *connection) noexcept nogil:
    if connection.row and engine.tier is not NULL:
        tier_resume(engine.tier, connection)


cdef class MemorySide:
    """The kernel side of `thread`, a memory engine, with so many rows. Rows are taken by their number."""
    cdef Tier tier
    cdef EngineThread thread
    cdef uint64_t consumed
    cdef uint64_t produced

    def __cinit__(self, EngineThread thread, uint32_t rows=16):
        cdef Tier *tier = &self.tier
        self.thread = thread
        tier.row_count = rows
        tier.rows = <bb_row *>calloc(rows, sizeof(bb_row))
        tier.free_rows = <bb_free_rows *>calloc(1, sizeof(bb_free_rows))
        tier.words = <bb_words *>calloc(1, sizeof(bb_words))
        tier.images = <bb_image *>calloc(BB_IMAGES_MAX, sizeof(bb_image))
        tier.image_space = <bb_image_space *>calloc(1, sizeof(bb_image_space))
        tier.image_slots = <uint32_t *>calloc(BB_IMAGE_SLOTS, 8)
        tier.records = <char *>calloc(1, RING_SIZE_BYTES)
        tier.record_mask = RING_SIZE_BYTES - 1
        tier.consumer = &self.consumed
        tier.producer = &self.produced
        if (tier.rows is NULL or tier.free_rows is NULL or tier.words is NULL or tier.images is NULL
                or tier.image_space is NULL or tier.image_slots is NULL or tier.records is NULL
                or tier_prepare(tier, thread.engine.limits.connections_max) == -ENOMEM):
            raise MemoryError
        thread.engine.tier = tier
        thread.engine.driver.pause = pause
        thread.engine.driver.resume = resume

    def __dealloc__(self):
        tier_free(&self.tier)
        free(self.tier.rows)
        free(self.tier.free_rows)
        free(self.tier.words)
        free(self.tier.images)
        free(self.tier.image_space)
        free(self.tier.image_slots)
        free(self.tier.records)

    def close(self):
        """Lets the engine go on without: before it is freed."""
        publish_end(&self.tier)
        self.thread.engine.tier = NULL

    cdef bb_row *row(self, uint32_t number) except NULL:
        if number >= self.tier.row_count:
            raise IndexError(f"there is no row {number}")
        return &self.tier.rows[number]

    cdef Connection *connection(self, number):
        return &self.thread.engine.connections[<uint32_t>(number & 0xFFFFFFFF)]

    cdef write(self, uint32_t number, int kind, uint32_t length, const void *data, size_t size_bytes):
        """A record of the row, with what follows it."""
        cdef bb_record record
        cdef char *at = self.tier.records + self.produced
        cdef size_t whole = sizeof(bb_record) + size_bytes
        if self.produced + RECORD_HEADER_SIZE_BYTES + whole + 8 > RING_SIZE_BYTES:
            raise OverflowError("more records than a test's ring has room for")
        record.row = number
        record.type = <uint32_t>kind
        record.up = self.tier.rows[number].up
        record.length = length
        record.cookie = self.tier.rows[number].cookie
        (<uint32_t *>at)[0] = <uint32_t>whole
        memcpy(at + RECORD_HEADER_SIZE_BYTES, &record, sizeof(bb_record))
        if size_bytes:
            memcpy(at + RECORD_HEADER_SIZE_BYTES + sizeof(bb_record), data, size_bytes)
        self.produced += (whole + RECORD_HEADER_SIZE_BYTES + 7) & ~<size_t>7

    # --- what the kernel does ---

    def open(self, uint32_t number):
        """A connection is established, and takes the row."""
        cdef bb_row *row = self.row(number)
        cdef bb_peer peer
        peer.family = 2
        peer.port = 4711
        row.cookie += 1000 + number
        row.up = row.spill = row.closed = 0
        self.write(number, BB_OPENED, sizeof(bb_peer), &peer, sizeof(bb_peer))

    def arrive(self, uint32_t number, bytes data, bint fin=False, bint is_full=False):
        """Bytes have come, and FIN behind them; whether they went up by the ring. Where not (since it `is_full`, or for
        another reason), they are to be written into the row's socket, sooner or later."""
        cdef bb_row *row = self.row(number)
        cdef uint32_t length = <uint32_t>len(data)
        if row.spill != row.spill_seen or (length and row.pause) or is_full:
            if row.spill == row.spill_seen:
                row.spill_at = row.up
                row.spill += 1
                self.tier.words.spills += 1
                self.write(number, BB_SPILLED, 0, NULL, 0)
            row.up += length + fin
            return False
        self.write(number, BB_END if fin else BB_BYTES, length, <const char *>data, length)
        row.up += length + fin
        return True

    def find(self, bytes request):
        """The number of the image that these bytes are, as kernel_side/images.bpf.h looks for it; -1: they are none."""
        cdef Tier *tier = &self.tier
        cdef uint64_t words[BB_IMAGE_WORDS_MAX]
        cdef uint32_t length = <uint32_t>len(request), probe, number
        cdef uint64_t hash
        cdef const bb_image *image
        if not BB_IMAGE_SIZE_BYTES_MIN <= length <= BB_IMAGE_SIZE_BYTES_MAX - 32:
            return -1
        memset(&words[(length - 1) // 32 * 4], 0, 32)
        memcpy(words, <const char *>request, length)
        hash = hash_of(words, length)
        for probe in range(BB_IMAGE_PROBES):
            number = tier.image_slots[2 * (<uint32_t>(hash + probe) & (BB_IMAGE_SLOTS - 1))]
            if number == 0:
                break
            image = &tier.images[number - 1]
            if (image.generation and image.hash == hash and image.length == length
                    and memcmp(image_words(tier, number - 1), words, (length + 31) // 32 * 32) == 0):
                return number - 1
        return -1

    def recognise(self, uint32_t number, uint32_t image):
        """A whole request has come, whose bytes are the image's."""
        cdef bb_row *row = self.row(number)
        cdef bb_hit hit
        if image >= BB_IMAGES_MAX or self.tier.images[image].generation == 0:
            raise IndexError(f"there is no image {image}")
        hit.image = image
        hit.generation = self.tier.images[image].generation
        self.write(number, BB_HIT, self.tier.images[image].length, &hit, sizeof(bb_hit))
        row.up += self.tier.images[image].length

    def end(self, uint32_t number):
        """TCP lets go of the row's socket."""
        self.row(number).closed = 1
        self.write(number, BB_CLOSED, 0, NULL, 0)

    # --- what the driver does ---

    def accept(self, client, uint32_t number, int fd):
        """The memory engine's client is the row's connection, with `fd` as its socket."""
        cdef Connection *connection = self.connection(client)
        connection.fd = fd
        self.tier.cookies[connection.index] = self.row(number).cookie
        tier_cookie_known(&self.tier, connection)

    def leave(self, client):
        """The connection is closed."""
        tier_left(&self.tier, self.connection(client))

    def consume(self):
        """Takes what has come up, as in a turn; whether the engine could sleep then."""
        with nogil:
            tier_consume(self.thread.engine, &self.tier)
        is_idle = tier_sleeps(&self.tier, False)
        self.tier.words.sleeps = 0
        return is_idle

    # --- figures ---

    @property
    def requests_min(self):
        """What connections must bring on average to be taken over."""
        return self.tier.requests_min

    @requests_min.setter
    def requests_min(self, uint32_t count):
        self.tier.requests_min = count

    @property
    def leaves_connections(self):
        """Whether new connections are not to be taken over."""
        return self.tier.words.leaves_connections != 0

    def is_paused(self, uint32_t number):
        """Whether the row's bytes are to stay in its socket."""
        return self.row(number).pause != 0

    @property
    def rows_free(self):
        """Rows that were given back, or never taken."""
        return self.tier.free_rows.tail - self.tier.free_rows.head

    @property
    def images(self):
        """How many are published."""
        return self.tier.words.image_count

    @property
    def known(self):
        """Requests that were recognised, and answered without being parsed."""
        return self.tier.known

    @property
    def gaps_awaited(self):
        """Records that had to be kept."""
        return self.tier.gaps_awaited
