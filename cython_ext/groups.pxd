# Groups of cache objects that a purge names: tags, and directories (all whose path begins with "/a/b/").
#
# A purge of a group writes down when it was (an epoch), and is done: an object that is older than the last purge of one
# of its groups is dead, wherever it is found. So a purge costs the same whatever the group's size (law 3).
#
# Directories form a tree below the root, whose text is empty and which holds all objects. A purge of one counts for
# those within it.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from batchbridge.cython_ext.index cimport Entry, Index


cdef enum GroupKind:
    GROUP_TAG = 0
    GROUP_DIRECTORY = 1


cdef enum:
    DIRECTORY_DEPTH_MAX = 16        # what lies deeper belongs to its sixteenth directory


cdef struct Group:
    Entry entry
    Group *parent                   # of a directory; NULL: the root, or a tag
    uint64_t purged_epoch           # of the last purge; 0: never
    uint64_t softened_epoch         # of the last soft one
    uint64_t counted_epoch          # until when purges around it are in `objects`
    uint64_t objects                # usable ones
    uint32_t references             # of objects, and of directories within it
    uint32_t length
    uint8_t kind
    char text[1]


cdef struct Groups:
    Index index
    Group *root
    uint64_t epoch                  # of the last purge, hard or soft
    uint64_t size_bytes             # of all groups but the root
    uint64_t count
    uint64_t seed


cdef int groups_prepare(Groups *groups, uint64_t line_count_max, uint64_t seed) noexcept nogil      # 0, or -ENOMEM
cdef void groups_free(Groups *groups) noexcept nogil

# The group of a text if there is one, else NULL.
cdef Group *group_find(const Groups *groups, int kind, const char *text, uint32_t length) noexcept nogil

# The group, made where it was not there, with a reference for the caller; a path is taken for the deepest directory
# that it names a thing in. NULL: no memory.
cdef Group *group_take_tag(Groups *groups, const char *text, uint32_t length) noexcept nogil
cdef Group *group_take_directory(Groups *groups, const char *path, uint32_t length) noexcept nogil
cdef void group_give_back(Groups *groups, Group *group) noexcept nogil

# The last purges of a group or of what is around it.
cdef uint64_t group_purged(const Group *group) noexcept nogil
cdef uint64_t group_softened(const Group *group) noexcept nogil

# An object comes into the group and all around it; one that was usable at `epoch` leaves them.
cdef void group_count(Groups *groups, Group *group) noexcept nogil
cdef void group_uncount(Groups *groups, Group *group, uint64_t epoch) noexcept nogil

# Begins a new epoch; how many objects became unusable (soft: must be revalidated). Objects that died by another of
# their groups, and were not reclaimed yet, are counted once more.
cdef uint64_t group_purge(Groups *groups, Group *group, bint is_soft) noexcept nogil

# Whether there may be a directory of exactly this text, which ends with "/": others are no group.
cdef bint is_directory_text(const char *text, uint32_t length) noexcept nogil
