"""What the cache knows of how often things are asked for.

The rules:

- A frequency counts up to 15, and is halved after as many requests as twenty times the objects there are, or 10,000.
  Halving is done when a frequency is looked at, by the ages that have passed.
- What leaves the cache leaves its frequency here, in a set of eight by its hash; the least of them makes room.
- Newcomers have a queue of their own. How large it should be depends on the traffic: little where popularity lasts,
  much where things are asked for a few times soon after each other and then no more. So after each age its share is
  moved, by steps that become smaller, towards where more is hit; a large change of that makes the steps large again.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free


cdef enum:
    WAYS = 8
    GHOSTS_MIN = 16384
    GHOSTS_MAX = 4194304
    BYTES_PER_GHOST = 1024
    AGE_ACCESSES_MIN = 10000
    AGE_ACCESSES_PER_OBJECT = 20
    AGES_MAX = 7                    # after more of them a frequency is 0
    SHARE_AT_FIRST = 1311           # 2 %
    SHARE_MAX = 52429               # 80 %
    STEP_AT_FIRST = 4096            # 6.25 %
    STEP_MIN = 64
    HIT_SHARE_CHANGED = 3277        # 5 %
    HIT_SHARE_NOISE = 328           # 0.5 %

# A ghost: 40 bits of the hash, 8 of the frequency, 16 of the age. 0: none.
cdef uint64_t HASH_MASK = ~<uint64_t>0xFFFFFF


cdef int admission_prepare(Admission *admission, uint64_t size_bytes_max) noexcept nogil:
    cdef uint64_t ghosts = GHOSTS_MIN
    while ghosts < GHOSTS_MAX and ghosts < size_bytes_max // BYTES_PER_GHOST:
        ghosts *= 2
    admission.ghosts = <uint64_t *>calloc(ghosts, sizeof(uint64_t))
    if admission.ghosts is NULL:
        return -ENOMEM
    admission.set_count = ghosts // WAYS
    admission.newcomers_share = SHARE_AT_FIRST
    admission.step = STEP_AT_FIRST
    return 0


cdef void admission_free(Admission *admission) noexcept nogil:
    free(admission.ghosts)
    admission.ghosts = NULL


cdef void admission_count(Admission *admission, bint is_hit, uint64_t objects) noexcept nogil:
    admission.accesses += 1
    admission.hits += is_hit
    if admission.accesses >= max(<uint64_t>AGE_ACCESSES_MIN, AGE_ACCESSES_PER_OBJECT * objects):
        climb(admission)
        admission.age += 1
        admission.accesses = 0
        admission.hits = 0


cdef void climb(Admission *admission) noexcept nogil:
    """Moves the newcomers' share on if what was hit in this age says so, else back."""
    cdef uint32_t hit_share = <uint32_t>(admission.hits * SHARE_WHOLE // admission.accesses)
    cdef int64_t change = <int64_t>hit_share - admission.hit_share
    cdef int32_t size = admission.step if admission.step > 0 else -admission.step
    # To grow must pay, to shrink must not cost: the queue is no longer than it needs to be.
    cdef bint grows = change > HIT_SHARE_NOISE if admission.step > 0 else change < -HIT_SHARE_NOISE
    cdef int32_t way = 1 if grows else -1
    cdef int64_t share
    size = max(size * 4 // 5, <int32_t>STEP_MIN)
    if change >= HIT_SHARE_CHANGED or change <= -HIT_SHARE_CHANGED:
        size = STEP_AT_FIRST
    admission.step = way * size
    share = <int64_t>admission.newcomers_share + admission.step
    admission.newcomers_share = <uint32_t>min(max(share, <int64_t>SHARE_AT_FIRST), <int64_t>SHARE_MAX)
    admission.hit_share = hit_share


cdef uint8_t frequency_now(const Admission *admission, uint8_t frequency, uint16_t since) noexcept nogil:
    cdef uint16_t ages = <uint16_t>(admission.age - since)
    return frequency >> ages if ages <= AGES_MAX else 0


cdef inline uint64_t *set_of(const Admission *admission, uint64_t hash) noexcept nogil:
    return admission.ghosts + (hash & (admission.set_count - 1)) * WAYS


cdef uint8_t admission_recall(Admission *admission, uint64_t hash) noexcept nogil:
    cdef uint64_t *ghosts = set_of(admission, hash)
    cdef uint64_t ghost
    cdef int way
    for way in range(WAYS):
        ghost = ghosts[way]
        if ghost and (ghost ^ hash) & HASH_MASK == 0:
            ghosts[way] = 0
            return frequency_now(admission, <uint8_t>(ghost >> 16), <uint16_t>ghost)
    return 0


cdef void admission_remember(Admission *admission, uint64_t hash, uint8_t frequency) noexcept nogil:
    cdef uint64_t *ghosts = set_of(admission, hash)
    cdef int way, least_way = 0, least = 65536, rank
    if frequency == 0:
        return
    for way in range(WAYS):
        if ghosts[way] == 0:
            least_way = way
            break
        # Of equal ones the oldest goes.
        rank = 256 * frequency_now(admission, <uint8_t>(ghosts[way] >> 16), <uint16_t>ghosts[way]) - min(
            <int>(<uint16_t>(admission.age - <uint16_t>ghosts[way])), 255)
        if rank < least:
            least = rank
            least_way = way
    ghosts[least_way] = (hash & HASH_MASK) | <uint64_t>frequency << 16 | admission.age
