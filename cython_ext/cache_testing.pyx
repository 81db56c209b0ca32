"""A cache without an engine around it, shown to Python; for tests and for `bench.lookups`.

The server calls the cache's own functions and never this module. Time is what the caller says it is.
"""
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.time cimport clock_gettime, timespec

from batchbridge.cython_ext.cache cimport (
    OBJECT_FILE, OBJECT_STALE, Cache, CacheObject, cache_drop, cache_find, cache_free, cache_hold, cache_insert,
    cache_mark_visited, cache_new, cache_prefetch_index, cache_prefetch_object, cache_remove, cache_stats,
    cache_sweep, cache_usable, hash_bytes, object_copy_in, object_copy_out, object_fragments, object_new,
    object_new_fragmented, object_tags)
from batchbridge.cython_ext.fragments cimport (
    FRAGMENT_SIZE_BYTES, FRAGMENTS_MAX, Fragment, Fragments, fragment_at, fragment_of, fragment_pin, fragment_place,
    fragment_unpin, fragments_with_head)
from batchbridge.cython_ext.index cimport Entry, index_guess
from batchbridge.cython_ext.purge cimport cache_purge


cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...) noexcept


cdef enum:
    SEED = 1
    NUMBER_KEY_LENGTH = 17          # "/numbers/" and eight digits
    BATCH_MAX = 256

URL, PREFIX, TAG, ALL = range(4)


cdef extern from "<time.h>" nogil:
    int CLOCK_THREAD_CPUTIME_ID


cdef uint64_t processor_ns() noexcept nogil:
    """The thread's processor time: what else runs on the machine is not in it."""
    cdef timespec now
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef void note_withdrawal(void *context, CacheObject *object) noexcept nogil:
    with gil:
        (<Store>context).withdrawn.append(object.bytes[:object.key_length])
    object.published = 0


cdef bytes payload_of(CacheObject *object):
    cdef bytearray payload = bytearray(object.payload_length)
    object_copy_out(object, 0, object.payload_length, <char *>payload)
    return bytes(payload)


cdef uint64_t look_up(Cache *cache, const char *keys, uint32_t total, uint32_t batch_size) noexcept nogil:
    """How many of the keys, 32 bytes apart, are there."""
    cdef uint64_t hashes[BATCH_MAX]
    cdef uint64_t found = 0
    cdef uint32_t index, first = 0, count
    while first < total:
        count = min(batch_size, total - first)
        for index in range(count):
            hashes[index] = hash_bytes(keys + 32 * <size_t>(first + index), NUMBER_KEY_LENGTH, SEED)
            if count > 1:
                cache_prefetch_index(cache, hashes[index])
        if count > 1:
            for index in range(count):
                cache_prefetch_object(cache, hashes[index])
        for index in range(count):
            found += cache_find(cache, hashes[index], keys + 32 * <size_t>(first + index), NUMBER_KEY_LENGTH,
                                0) is not NULL
        first += count
    return found


cdef uint64_t read_memory(const Cache *cache, const char *keys, uint32_t total) noexcept nogil:
    """The two reads that no look-up can be without: a line of the index, and what it leads to, whose address only the
    first brings."""
    cdef uint64_t read = 0
    cdef uint32_t index
    cdef const Entry *entry
    for index in range(total):
        entry = index_guess(&cache.by_key, hash_bytes(keys + 32 * <size_t>index, NUMBER_KEY_LENGTH, SEED))
        read += entry is not NULL and entry.hash != 0
    return read


cdef class Store:
    """A cache of at most so many bytes."""
    cdef Cache *cache
    cdef list held
    cdef readonly list withdrawn

    def __cinit__(self, uint64_t size_bytes_max):
        self.held = []
        self.withdrawn = []
        self.cache = cache_new(size_bytes_max, SEED)
        if self.cache is NULL:
            raise MemoryError
        self.cache.withdraw = note_withdrawal
        self.cache.withdraw_context = <void *>self

    def __dealloc__(self):
        if self.cache is not NULL:
            self.cache.withdraw = NULL
            cache_free(self.cache)

    cdef CacheObject *get(self, bytes key, uint64_t now_us) noexcept:
        return cache_find(self.cache, hash_bytes(key, <uint32_t>len(key), SEED), key, <uint32_t>len(key), now_us)

    def insert(self, bytes key, bytes payload=b"", *, tags=(), uint64_t expires_us=0, bint is_file=False,
               bint is_fragmented=False):
        """Puts an object in; False: it was refused. Moments count from any zero; expires_us 0: never."""
        cdef bytes text = b"".join(tag + b"\0" for tag in tags)
        cdef uint64_t hash = hash_bytes(key, <uint32_t>len(key), SEED)
        cdef CacheObject *object
        if is_fragmented:
            object = object_new_fragmented(self.cache, hash, key, <uint32_t>len(key), 0, <uint32_t>len(text),
                                           len(payload), FRAGMENTS_MAX, -1)
        else:
            object = object_new(self.cache, hash, key, <uint32_t>len(key), 0, <uint32_t>len(text),
                                len(payload))
        if object is NULL or object_copy_in(object, payload) < 0:
            raise MemoryError
        memcpy(object_tags(object), <const char *>text, len(text))
        object.expires_us = expires_us
        if is_file:
            object.flags |= OBJECT_FILE
        result = cache_insert(self.cache, object)
        cache_drop(object)
        return result == 0

    def find(self, bytes key, uint64_t now_us=0):
        """An object's payload and whether it is stale, or None."""
        cdef CacheObject *object = self.get(key, now_us)
        if object is NULL:
            return None
        return payload_of(object), object.flags & OBJECT_STALE != 0

    def remove(self, bytes key):
        """Removes an object that is there."""
        cache_remove(self.cache, self.get(key, 0))

    def hold(self, bytes key):
        """Refers to an object as a send under way does; a number for drop()."""
        cdef CacheObject *object = self.get(key, 0)
        cache_hold(object)
        return <size_t>object

    def drop(self, size_t number):
        """Gives such a reference back; the payload as it was then."""
        cdef CacheObject *object = <CacheObject *><void *>number
        payload = payload_of(object)
        cache_drop(object)
        return payload

    def pin(self, size_t number, uint64_t position, bytes head=b""):
        """Pins the fragment of a held object that a byte is in, as a send does, with header lines before the first one;
        a number for unpin()."""
        cdef Fragments *fragments = object_fragments(<CacheObject *><void *>number)
        cdef uint32_t fragment_number, offset, length
        cdef Fragment *fragment
        if position == 0 and head and fragments_with_head(fragments, head, <uint32_t>len(head)) is NULL:
            return None
        fragment = fragment_of(fragments, position, &fragment_number, &offset, &length)
        fragment_pin(fragments, fragment)
        return fragment_place(fragments, fragment)

    def pinned(self, size_t number, uint32_t place, uint32_t head_length=0):
        """The bytes of a pinned fragment, with so many of the header lines before the first one."""
        cdef Fragments *fragments = object_fragments(<CacheObject *><void *>number)
        cdef Fragment *fragment = fragment_at(fragments, place)
        cdef uint64_t begins = 0, size
        if fragment.number == 0:
            begins = fragments.lead - head_length
        size = min(<uint64_t>FRAGMENT_SIZE_BYTES,
                   fragments.lead + fragments.length - <uint64_t>fragment.number * FRAGMENT_SIZE_BYTES)
        return fragment.at[begins:size]

    def unpin(self, size_t number, uint32_t place):
        """Gives a pin back."""
        cdef Fragments *fragments = object_fragments(<CacheObject *><void *>number)
        fragment_unpin(fragments, fragment_at(fragments, place))

    def publish(self, bytes key):
        """Marks an object as published; its key is in `withdrawn` once it is no longer servable by itself."""
        self.get(key, 0).published = 1

    def usable(self, bytes key, uint64_t now_us=0):
        """What cache_usable says of an object that is there."""
        return bool(cache_usable(self.cache, self.get(key, now_us)))

    def visit(self, bytes key):
        """Counts a hit from elsewhere."""
        cache_mark_visited(self.get(key, 0))

    def purge(self, int kind, bytes text=b"", bint soft=False):
        """Purges; how many objects it made unusable, or stale."""
        return cache_purge(self.cache, kind, soft, text, <uint32_t>len(text))

    def sweep(self, uint32_t lines):
        """Reclaims; whether there may be more."""
        return bool(cache_sweep(self.cache, lines))

    def stats(self):
        """The figures."""
        return cache_stats(self.cache)

    @property
    def chunks(self):
        """How many chunks of slots there are."""
        return self.cache.slots.chunk_count

    @property
    def epoch(self):
        """That of the last purge of a group."""
        return self.cache.groups.epoch

    # --- numbers instead of keys, for many of them ---

    def fill(self, uint32_t first, uint32_t count, uint32_t payload_length, bytes tag=b""):
        """Inserts objects of the numbers from `first` on; how many were taken."""
        cdef uint32_t number, taken = 0
        for number in range(first, first + count):
            taken += self.insert_number(number, payload_length, tag) == 0
        return taken

    cdef int insert_number(self, uint32_t number, uint32_t payload_length, bytes tag) except -2:
        cdef char key[32]
        cdef CacheObject *object
        cdef uint32_t tags_length = <uint32_t>len(tag) + 1 if tag else 0
        snprintf(key, sizeof(key), b"/numbers/%08u", number)
        object = object_new(self.cache, hash_bytes(key, NUMBER_KEY_LENGTH, SEED), key, NUMBER_KEY_LENGTH, 0,
                            tags_length, payload_length)
        if object is NULL:
            raise MemoryError
        if tag:
            memcpy(object_tags(object), <const char *>tag, tags_length)
        result = cache_insert(self.cache, object)
        cache_drop(object)
        return result

    def replay(self, const int32_t[::1] numbers, uint32_t payload_length):
        """Asks for each number in turn, and inserts what is not there; how often it was not."""
        cdef char key[32]
        cdef int32_t number
        cdef uint64_t misses = 0
        for number in numbers:
            snprintf(key, sizeof(key), b"/numbers/%08u", number)
            if cache_find(self.cache, hash_bytes(key, NUMBER_KEY_LENGTH, SEED), key, NUMBER_KEY_LENGTH, 0) is NULL:
                misses += 1
                self.insert_number(<uint32_t>number, payload_length, b"")
        return misses

    def lookups_ns(self, const int32_t[::1] numbers, uint32_t batch_size):
        """Looks all up, so many at a time, from key to object; processor time of one, and how many were there. With a
        size of 0 it only reads the memory that a look-up has to."""
        cdef char *keys = <char *>malloc(<size_t>len(numbers) * 32)
        cdef uint64_t took, found
        cdef uint32_t index, total = <uint32_t>len(numbers)
        if keys is NULL:
            raise MemoryError
        for index in range(total):
            snprintf(keys + 32 * <size_t>index, 32, b"/numbers/%08u", numbers[index])
        with nogil:
            took = processor_ns()
            if batch_size:
                found = look_up(self.cache, keys, total, min(batch_size, <uint32_t>BATCH_MAX))
            else:
                found = read_memory(self.cache, keys, total)
            took = processor_ns() - took
            free(keys)
        return took / max(1, total), found
