# Directories below a root, watched for changes (inotify). Knows no files' contents, no cache, no HTTP.
#
# The kernel queues an event before the call that made the change returns. So who looks (watches_look) before using what
# is known of a file learns of every change that was completed before; nobody is woken by one.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    WATCHES_MAX = 1024
    WATCH_TABLE_SIZE = 2048     # a power of two, above WATCHES_MAX


cdef struct Watch:
    uint64_t hash
    char *path                  # ends with "/"
    uint32_t length
    int descriptor              # inotify's name of it
    uint32_t changed            # epoch of the last event
    uint16_t parent             # number of the directory around it; 0: it is the root


cdef struct Watches:
    int fd                      # -1: there is no inotify; 0: not asked for yet
    int root
    uint64_t how                # RESOLVE_ bits, of a look at a file
    uint8_t must_wait           # and whether a disk would have had to be waited for
    uint64_t seed
    uint32_t epoch              # grows with each event
    uint16_t generation         # grows when all watches are forgotten
    uint16_t count
    uint64_t looked_turn
    Watch items[1024]           # watch number n is items[n - 1]
    uint16_t by_path[2048]      # numbers
    uint16_t by_descriptor[2048]


# What is remembered of a watched file: what it was when the file was looked at. watch 0: nothing tells of its changes.
cdef struct Watched:
    uint16_t watch
    uint16_t generation
    uint32_t epoch


cdef void watches_prepare(Watches *watches, int root, uint64_t seed) noexcept nogil
cdef void watches_free(Watches *watches) noexcept nogil

# Takes in what was changed, once a turn.
cdef void watches_look(Watches *watches, uint64_t turn) noexcept nogil

# Watches the directory that a path (decoded, from "/" on) names a file in, and all around it, from before it returns.
# `watch` is 0 where it cannot: too many, no inotify, or a symbolic link on the way or at its end, whose changes
# elsewhere would not be told. False: `refuses` was given, and a disk would have to be waited for.
cdef bint watch_file(Watches *watches, bint refuses, const char *path, uint32_t length,
                     Watched *watched) noexcept nogil

# Whether nothing was told of a directory on the file's way since. True, too, where nothing is ever told.
cdef bint watch_is_quiet(const Watches *watches, Watched watched) noexcept nogil
