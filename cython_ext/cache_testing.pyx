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
    cache_sweep, cache_usable, hash_bytes, object_new, object_payload, object_tags)
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

    def insert(self, bytes key, bytes payload=b"", *, tags=(), uint64_t expires_us=0, bint is_file=False):
        """Puts an object in; False: it was refused. Moments count from any zero; expires_us 0: never."""
        cdef bytes text = b"".join(tag + b"\0" for tag in tags)
        cdef CacheObject *object = object_new(self.cache, hash_bytes(key, <uint32_t>len(key), SEED), key,
                                              <uint32_t>len(key), 0, <uint32_t>len(text), len(payload))
        if object is NULL:
            raise MemoryError
        memcpy(object_tags(object), <const char *>text, len(text))
        memcpy(object_payload(object), <const char *>payload, len(payload))
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
        return object_payload(object)[:object.payload_length], object.flags & OBJECT_STALE != 0

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
        payload = object_payload(object)[:object.payload_length]
        cache_drop(object)
        return payload

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
        """Looks all up, so many at a time, from key to object; processor time of one, and how many were there."""
        cdef char *keys = <char *>malloc(<size_t>len(numbers) * 32)
        cdef uint64_t took, found
        cdef uint32_t index, total = <uint32_t>len(numbers)
        if keys is NULL:
            raise MemoryError
        for index in range(total):
            snprintf(keys + 32 * <size_t>index, 32, b"/numbers/%08u", numbers[index])
        with nogil:
            took = processor_ns()
            found = look_up(self.cache, keys, total, min(max(batch_size, 1), <uint32_t>BATCH_MAX))
            took = processor_ns() - took
            free(keys)
        return took / max(1, total), found
