"""The arena as tests see it: addresses are offsets from its beginning.

The server calls the arena's own functions and never this module.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from batchbridge.cython_ext.arena cimport (
    ARENA_BLOCK_SIZE_BYTES, ARENA_UNIT_SIZE_BYTES, NO_CHUNK, Arena, arena_free, arena_give, arena_prepare,
    arena_registered_chunk, arena_take)

BLOCK_SIZE_BYTES = ARENA_BLOCK_SIZE_BYTES
UNIT_SIZE_BYTES = ARENA_UNIT_SIZE_BYTES


cdef bint note_opened(void *context, uint32_t chunk, char *at, uint64_t size_bytes) noexcept nogil:
    with gil:
        (<LoneArena>context).opened.append(chunk)
        return (<LoneArena>context).registers


cdef void note_closing(void *context, uint32_t chunk) noexcept nogil:
    with gil:
        (<LoneArena>context).closed.append(chunk)


cdef class LoneArena:
    """An arena of at least so many bytes."""
    cdef Arena arena
    cdef readonly list opened           # chunks, in the order in which they were opened
    cdef readonly list closed           # registered chunks that were closed
    cdef public bint registers          # whether chunks are registered when they are opened

    def __cinit__(self, uint64_t size_bytes, bint registers=True):
        self.opened = []
        self.closed = []
        self.registers = registers
        if arena_prepare(&self.arena, size_bytes) < 0:
            raise MemoryError
        self.arena.context = <void *>self
        self.arena.opened = note_opened
        self.arena.closing = note_closing

    def __dealloc__(self):
        arena_free(&self.arena)

    def take(self, uint32_t size_bytes, int fill=0):
        """Takes a piece and fills it with a byte; where it begins, or None: there is no room."""
        cdef char *at = arena_take(&self.arena, size_bytes)
        if at is NULL:
            return None
        memset(at, fill, size_bytes)
        return at - self.arena.base

    def give(self, uint64_t offset):
        """Gives a piece back; False: it was not taken."""
        return arena_give(&self.arena, self.arena.base + offset) == 0

    def bytes_at(self, uint64_t offset, uint32_t size_bytes):
        """What is written there."""
        return self.arena.base[offset:offset + size_bytes]

    def registered_chunk(self, uint64_t offset):
        """The chunk that an address lies in, where it is registered; else None."""
        chunk = arena_registered_chunk(&self.arena, self.arena.base + offset)
        return None if chunk == <uint32_t>NO_CHUNK else chunk

    def stats(self):
        """Its figures."""
        return {"size_bytes": self.arena.size_bytes, "units": self.arena.units, "pieces": self.arena.pieces,
                "chunks_open": self.arena.chunks_open, "chunks_registered": self.arena.chunks_registered,
                "chunk_size_bytes": self.arena.chunk_size_bytes, "refused": self.arena.refused,
                "faults": self.arena.faults, "pages": self.arena.pages}
