# Readers: threads that wait for disks, so that an engine without io_uring does not. Know no engine and no HTTP.
from libc.stdint cimport int64_t, uint32_t, uint64_t


# Something to be read, or other work that may wait for a disk: whoever asks owns the record, and keeps it and what it
# refers to until it comes back.
cdef struct Job:
    Job *next
    void *owner                     # for whoever asks
    int64_t (*work)(Job *) noexcept nogil   # returns the result; NULL: the reading that follows
    int file
    char *at
    uint32_t length
    uint64_t offset
    int64_t result                  # out: bytes read, or -errno


cdef struct Readers


# Readers that ring `bell` (an eventfd) when something was read. Threads start when there is something to read. NULL: no
# memory.
cdef Readers *readers_new(int bell) noexcept nogil
# Waits for what is under way, and ends the threads; what waits still comes back with -ECANCELED.
cdef void readers_end(Readers *readers) noexcept nogil
# After readers_end.
cdef void readers_free(Readers *readers) noexcept nogil

# Gives a job away. Where no thread can be started, the caller's own thread reads.
cdef void readers_ask(Readers *readers, Job *job) noexcept nogil
# The jobs that are done, linked by `next`; NULL: none.
cdef Job *readers_collect(Readers *readers) noexcept nogil
