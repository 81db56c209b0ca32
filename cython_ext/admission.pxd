# Which of two objects is worth its place: how often each was asked for lately, also while it was not in the cache.
# Knows no objects: hashes and frequencies.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    FREQUENCY_MAX = 15
    SHARE_WHOLE = 65536         # shares of the cache are parts of this


cdef struct Admission:
    uint64_t *ghosts            # of objects that are not in the cache: sets of eight, each one cache line
    uint64_t set_count          # a power of two
    uint16_t age                # frequencies of an earlier age count half for each age that has passed
    uint64_t accesses           # in this age
    uint64_t hits
    uint32_t hit_share          # in the age before
    uint32_t newcomers_share    # of the cache; climbs to where most is hit
    int32_t step


cdef int admission_prepare(Admission *admission, uint64_t size_bytes_max) noexcept nogil    # 0, or -ENOMEM
cdef void admission_free(Admission *admission) noexcept nogil

# Counts a hit, or an object that was put in, among so many that are there.
cdef void admission_count(Admission *admission, bint is_hit, uint64_t objects) noexcept nogil

# A frequency that was right in the age `since`, as of now.
cdef uint8_t frequency_now(const Admission *admission, uint8_t frequency, uint16_t since) noexcept nogil

# What is known of something that comes in (0: nothing), which then is forgotten; and of something that goes.
cdef uint8_t admission_recall(Admission *admission, uint64_t hash) noexcept nogil
cdef void admission_remember(Admission *admission, uint64_t hash, uint8_t frequency) noexcept nogil
