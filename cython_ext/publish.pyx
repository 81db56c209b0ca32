"""Publishing: requests whose bytes the kernel side recognises as a whole, so that they need not be parsed again.

The rules:

- An image is one request, to the last byte, that user mode has parsed and answered from the cache (law 2). The kernel
  side only says "these bytes, again"; whether the object may still answer is decided here, each time. So neither expiry
  nor a purge has to reach into the kernel (law 3), and an image is never more than a short way of writing bytes.
  (Where the kernel side answers by itself, it gets an answer beside the image, for a while: answer.pyx.)
- A request is published when it is answered from the cache for the second time: most never are.
- Where an image is withdrawn, its place is not used again before the ring was read up to where it stood then: records
  behind that were reserved after the withdrawal, and the kernel side has looked at the generation since.
- An image has a place of the smallest size that it fits into; while a larger size has places that were never taken, it
  gets one of these rather than another image's.
- Where all places are taken, an image of its size that was not met since the hand last passed makes room, and one only
  for each that wants a place. A few are withdrawn ahead, since their places cannot be used at once.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from batchbridge.cython_ext.answer cimport (
    answer_count, answer_end, answer_join, answer_leave, answer_purged, answer_render)
from batchbridge.cython_ext.cache cimport (
    OBJECT_FILE, OBJECT_STALE, OBJECT_UNLINKED, Cache, CacheObject, cache_drop, cache_hold, cache_mark_visited,
    cache_usable, object_whole)
from batchbridge.cython_ext.connection cimport received, received_known
from batchbridge.cython_ext.core cimport Connection, Engine, Request
from batchbridge.cython_ext.files cimport file_is_trusted
from batchbridge.cython_ext.parse cimport (
    HEAD_CHUNKED, HEAD_CONDITIONAL, HEAD_CREDENTIALS, HEAD_EXPECT_CONTINUE, HEAD_KEEP_ALIVE, HEAD_LENGTH, HEAD_NO_CACHE,
    HEAD_RANGE, HEAD_UPGRADE, METHOD_GET, Head)
from batchbridge.cython_ext.tier cimport *


cdef extern from "compat.h" nogil:
    uint64_t bb_load_acquire_64(const uint64_t *) noexcept
    void bb_store_release(uint32_t *, uint32_t) noexcept
    void bb_full_fence() noexcept


cdef enum:
    PUBLISHED_BY_CONNECTION_MAX = 64    # so that one client cannot drive all others' requests out
    HAND_STEPS_MAX = 64                 # images looked at for one to withdraw
    WITHDRAWN_AHEAD = 8
    UNSUITED = (HEAD_CHUNKED | HEAD_LENGTH | HEAD_EXPECT_CONTINUE | HEAD_CONDITIONAL | HEAD_RANGE | HEAD_CREDENTIALS
                | HEAD_UPGRADE | HEAD_NO_CACHE)


cdef void publish_prepare(Tier *tier) noexcept nogil:
    cdef uint32_t *counts = [BB_SMALL_IMAGES, BB_MEDIUM_IMAGES, BB_LARGE_IMAGES]
    cdef uint32_t *sizes_bytes = [BB_SMALL_IMAGE_SIZE_BYTES, BB_MEDIUM_IMAGE_SIZE_BYTES, BB_IMAGE_SIZE_BYTES_MAX]
    cdef uint32_t first = 0, at = 0, number
    cdef int size
    cdef Places *places
    for size in range(SIZES):
        places = &tier.places[size]
        memset(places, 0, sizeof(Places))
        places.first = first
        places.count = counts[size]
        places.size_bytes = sizes_bytes[size]
        for number in range(first, first + places.count):
            tier.images[number].at = at
            at += places.size_bytes // 8
        first += places.count


# --- which -----------------------------------------------------------------------------------------------------------

cdef bint may_be_published(const Engine *engine, const Connection *connection, const Request *request) noexcept nogil:
    cdef const Head *head = request.head
    return (head.method == METHOD_GET and head.version_minor == 1 and head.flags & HEAD_KEEP_ALIVE
            and not head.flags & UNSUITED and request.object.status == 200
            and request.object.payload_length < engine.limits.copied_size_bytes_max // 2
            and object_whole(request.object)
            and BB_IMAGE_SIZE_BYTES_MIN <= head.head_length <= BB_IMAGE_SIZE_BYTES_MAX - 32
            and connection.published < PUBLISHED_BY_CONNECTION_MAX)


cdef uint64_t hash_of(const uint64_t *words, uint32_t length) noexcept nogil:
    cdef uint64_t a = length, b = 1, c = 2, d = 3
    cdef uint32_t lane
    for lane in range((length + 31) // 32):
        a = bb_fold(a, words[4 * lane])
        b = bb_fold(b, words[4 * lane + 1])
        c = bb_fold(c, words[4 * lane + 2])
        d = bb_fold(d, words[4 * lane + 3])
    return bb_fold_lanes(a, b, c, d)


cdef void publish_second(Engine *engine, Connection *connection, const Request *request) noexcept nogil:
    cdef Tier *tier = engine.tier
    cdef uint64_t words[BB_IMAGE_WORDS_MAX]
    cdef uint64_t hash
    cdef uint64_t *seen
    cdef uint32_t length = request.head.head_length
    if not may_be_published(engine, connection, request):
        return
    memset(&words[(length - 1) // 32 * 4], 0, 32)
    memcpy(words, request.data, length)
    hash = hash_of(words, length)
    seen = &tier.seen[hash % SEEN_PLACES]
    if seen[0] != hash:
        seen[0] = hash
        return
    if publish(tier, request, words, hash):
        connection.published += 1


# --- the index -------------------------------------------------------------------------------------------------------

cdef int free_slot(const Tier *tier, uint64_t hash) noexcept nogil:
    """A place of the index for a hash, among the few that are looked at; -1: all are taken, or it is published already.

    A place whose image is elsewhere by now, or withdrawn, is free, though not empty: others may lie behind it.
    """
    cdef uint32_t probe, slot, number
    cdef int found = -1
    for probe in range(BB_IMAGE_PROBES):
        slot = <uint32_t>(hash + probe) & (BB_IMAGE_SLOTS - 1)
        number = tier.image_slots[2 * slot]
        if number and tier.objects[number - 1] is not NULL and tier.published[number - 1].slot == slot:
            if tier.images[number - 1].hash == hash:
                return -1
        elif found < 0:
            found = <int>slot
        if number == 0:
            break
    return found


cdef int free_image(Tier *tier, uint32_t length) noexcept nogil:
    """A place for an image of this length; -1: none now."""
    cdef int size, fitting = 0
    cdef Places *places
    while fitting < SIZES - 1 and length > tier.places[fitting].size_bytes:
        fitting += 1
    for size in range(fitting, SIZES):
        places = &tier.places[size]
        if places.made < places.count:
            places.made += 1
            return <int>(places.first + places.made - 1)
    return used_place(tier, &tier.places[fitting])


cdef int used_place(Tier *tier, Places *places) noexcept nogil:
    cdef uint32_t number
    if places.withdrawn_count < WITHDRAWN_AHEAD:
        make_room(tier, places)
    if places.withdrawn_count == 0:
        return -1
    number = tier.withdrawn[places.first + places.withdrawn_first]
    if tier.consumed < tier.published[number].reusable_at:
        return -1                       # nor can those that were withdrawn later be used yet
    places.withdrawn_first = (places.withdrawn_first + 1) % places.count
    places.withdrawn_count -= 1
    return <int>number


cdef void make_room(Tier *tier, Places *places) noexcept nogil:
    """Lets the hand go on to an image that was not met since it last passed, and withdraws it."""
    cdef uint32_t _step, number
    cdef Published *published
    for _step in range(HAND_STEPS_MAX):
        number = places.first + places.hand
        places.hand = (places.hand + 1) % places.count
        if tier.objects[number] is NULL:
            continue
        published = &tier.published[number]
        if not published.was_visited and not (tier.can_answer and answer_count(tier, number, tier.objects[number])):
            withdraw(tier, number)
            return
        published.was_visited = 0


cdef bint publish(Tier *tier, const Request *request, const uint64_t *words, uint64_t hash) noexcept nogil:
    cdef int slot = free_slot(tier, hash)
    cdef int number
    cdef uint32_t length = request.head.head_length
    cdef bb_image *image
    cdef Published *published
    if slot < 0:
        return False
    number = free_image(tier, length)
    if number < 0:
        return False
    image = &tier.images[number]
    published = &tier.published[number]
    tier.objects[number] = request.object
    cache_hold(request.object)
    published.slot = <uint32_t>slot
    published.was_visited = 0
    published.head = request.head[0]
    if tier.can_answer:
        answer_join(tier, <uint32_t>number, request.object)
    image.length = length
    image.hash = hash
    memcpy(image_words(tier, <uint32_t>number), words, (length + 31) // 32 * 32)
    bb_store_release(&image.generation, next_generation(published))
    bb_store_release(&tier.image_slots[2 * slot], <uint32_t>number + 1)
    bb_store_release(&tier.words.image_count, tier.words.image_count + 1)
    return True


cdef uint32_t next_generation(Published *published) noexcept nogil:
    published.generation += 1
    if published.generation == 0:
        published.generation = 1
    return published.generation


cdef Places *places_of(Tier *tier, uint32_t number) noexcept nogil:
    cdef int size = 0
    while size < SIZES - 1 and number >= tier.places[size + 1].first:
        size += 1
    return &tier.places[size]


cdef void withdraw(Tier *tier, uint32_t number) noexcept nogil:
    cdef Published *published = &tier.published[number]
    cdef Places *places = places_of(tier, number)
    bb_store_release(&tier.images[number].generation, 0)
    bb_full_fence()
    if tier.can_answer:
        answer_leave(tier, number, tier.objects[number])
    # The index keeps pointing here, until its place is needed: what lies behind must still be found.
    published.reusable_at = bb_load_acquire_64(tier.producer)
    cache_drop(tier.objects[number])
    tier.objects[number] = NULL
    tier.withdrawn[places.first + (places.withdrawn_first + places.withdrawn_count) % places.count] = number
    places.withdrawn_count += 1
    bb_store_release(&tier.words.image_count, tier.words.image_count - 1)


cdef void withdraw_all(Tier *tier, Cache *survivors) noexcept nogil:
    """All images; but, where a cache is given, for those whose objects it still finds."""
    cdef uint32_t number
    cdef int size
    cdef CacheObject *object
    for size in range(SIZES):
        for number in range(tier.places[size].first, tier.places[size].first + tier.places[size].made):
            object = tier.objects[number]
            if object is not NULL and not (survivors is not NULL and is_findable(survivors, object)):
                withdraw(tier, number)


cdef void publish_purged(Cache *cache, Tier *tier) noexcept nogil:
    withdraw_all(tier, cache)
    if tier.can_answer:
        answer_purged(tier)


cdef void publish_end(Tier *tier) noexcept nogil:
    if tier.can_answer:
        answer_end(tier)
    withdraw_all(tier, NULL)
    publish_prepare(tier)


# --- what is recognised ----------------------------------------------------------------------------------------------

cdef bint is_findable(Cache *cache, CacheObject *object) noexcept nogil:
    return not object.flags & OBJECT_UNLINKED and cache_usable(cache, object)


cdef bint may_answer(Engine *engine, CacheObject *object) noexcept nogil:
    """The same as a lookup would say, without one."""
    if not is_findable(engine.cache, object) or (object.expires_us and object.expires_us <= engine.now_us):
        return False
    return file_is_trusted(engine, object) if object.flags & OBJECT_FILE else not object.flags & OBJECT_STALE


cdef void recognised(Engine *engine, Connection *connection, const bb_hit *hit, uint32_t length) noexcept nogil:
    cdef Tier *tier = engine.tier
    cdef Published *published = &tier.published[hit.image]
    cdef CacheObject *object = tier.objects[hit.image]
    cdef const char *data = <const char *>image_words(tier, hit.image)
    if object is not NULL and published.generation == hit.generation:
        published.was_visited = 1
        if may_answer(engine, object):
            cache_mark_visited(object)
            engine.cache.hits += 1
            tier.known += 1
            received_known(engine, connection, data, length, &published.head, object)
            if tier.can_answer:
                answer_render(engine, tier, hit.image)
            return
        if object.flags & OBJECT_UNLINKED:
            withdraw(tier, hit.image)
    # Its place is not used for another one before this record was read, so the bytes are still there.
    received(engine, connection, data, length)
