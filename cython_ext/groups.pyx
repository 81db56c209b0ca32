"""Tags and directories: purged by generations.

The rules:

- An object that was usable at an epoch is dead once one of its tags, its directory or one around that has been purged
  in a later one.
- A group counts its usable objects, so that a purge can tell how many it hits. A purge of a directory takes its count
  off those around it at once, and off those within it when they are next looked at (`counted_epoch`).
- A group lives as long as an object or a directory refers to it.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from batchbridge.cython_ext.index cimport (
    Entry, hash_bytes, index_find, index_free, index_insert, index_prepare, index_remove)


cdef int groups_prepare(Groups *groups, uint64_t line_count_max, uint64_t seed) noexcept nogil:
    groups.seed = seed
    groups.root = <Group *>calloc(1, sizeof(Group))
    if groups.root is NULL:
        return -ENOMEM
    groups.root.kind = GROUP_DIRECTORY
    groups.root.references = 1
    return index_prepare(&groups.index, line_count_max)


cdef void groups_free(Groups *groups) noexcept nogil:
    """All objects have left: only the root is there."""
    index_free(&groups.index)
    free(groups.root)
    groups.root = NULL


cdef uint64_t hash_of(const Groups *groups, int kind, const char *text, uint32_t length) noexcept nogil:
    return hash_bytes(text, length, groups.seed + <uint64_t>kind)


cdef Group *find(const Groups *groups, uint64_t hash, int kind, const char *text, uint32_t length) noexcept nogil:
    cdef Entry *entry = index_find(&groups.index, hash, NULL)
    cdef Group *group
    while entry is not NULL:
        group = <Group *>entry
        if group.kind == kind and group.length == length and memcmp(group.text, text, length) == 0:
            return group
        entry = index_find(&groups.index, hash, entry)
    return NULL


cdef Group *group_find(const Groups *groups, int kind, const char *text, uint32_t length) noexcept nogil:
    if kind == GROUP_DIRECTORY and length == 0:
        return groups.root
    return find(groups, hash_of(groups, kind, text, length), kind, text, length)


cdef Group *make(Groups *groups, uint64_t hash, int kind, const char *text, uint32_t length,
                 Group *parent) noexcept nogil:
    cdef Group *group = <Group *>calloc(1, sizeof(Group) + length)
    if group is NULL:
        return NULL
    group.entry.hash = hash
    group.kind = <unsigned char>kind
    group.length = length
    group.parent = parent
    group.counted_epoch = groups.epoch
    memcpy(group.text, text, length)
    if parent is not NULL:
        parent.references += 1
    index_insert(&groups.index, &group.entry)
    groups.size_bytes += sizeof(Group) + length
    groups.count += 1
    return group


cdef Group *group_take_tag(Groups *groups, const char *text, uint32_t length) noexcept nogil:
    cdef uint64_t hash = hash_of(groups, GROUP_TAG, text, length)
    cdef Group *group = find(groups, hash, GROUP_TAG, text, length)
    if group is NULL:
        group = make(groups, hash, GROUP_TAG, text, length, NULL)
    if group is not NULL:
        group.references += 1
    return group


cdef Group *group_take_directory(Groups *groups, const char *path, uint32_t length) noexcept nogil:
    cdef Group *group
    cdef Group *parent = groups.root
    cdef uint64_t hash
    cdef uint32_t ends[DIRECTORY_DEPTH_MAX]
    cdef uint32_t at, depth = 0, level
    for at in range(length):
        if path[at] == c'/' and depth < DIRECTORY_DEPTH_MAX:
            ends[depth] = at + 1
            depth += 1
    # Mostly the deepest one is there, and leads to all the others.
    level = depth
    while level:
        group = find(groups, hash_of(groups, GROUP_DIRECTORY, path, ends[level - 1]), GROUP_DIRECTORY, path,
                     ends[level - 1])
        if group is not NULL:
            parent = group
            break
        level -= 1
    parent.references += 1
    while level < depth:
        hash = hash_of(groups, GROUP_DIRECTORY, path, ends[level])
        group = make(groups, hash, GROUP_DIRECTORY, path, ends[level], parent)
        if group is not NULL:
            group.references += 1
        group_give_back(groups, parent)
        if group is NULL:
            return NULL
        parent = group
        level += 1
    return parent


cdef void group_give_back(Groups *groups, Group *group) noexcept nogil:
    cdef Group *parent
    while group is not NULL:
        group.references -= 1
        if group.references:
            return
        parent = group.parent
        index_remove(&groups.index, &group.entry)
        groups.size_bytes -= sizeof(Group) + group.length
        groups.count -= 1
        free(group)
        group = parent


cdef uint64_t group_purged(const Group *group) noexcept nogil:
    cdef uint64_t last = 0
    while group is not NULL:
        last = max(last, group.purged_epoch)
        group = group.parent
    return last


cdef uint64_t group_softened(const Group *group) noexcept nogil:
    cdef uint64_t last = 0
    while group is not NULL:
        last = max(last, group.softened_epoch)
        group = group.parent
    return last


cdef void recount(Groups *groups, Group *group) noexcept nogil:
    """Takes what purges around a group have done into its count, and into those of all around it."""
    cdef Group *around = group
    while around is not NULL:
        if group_purged(around) > around.counted_epoch:
            around.objects = 0
        around.counted_epoch = groups.epoch
        around = around.parent


cdef void group_count(Groups *groups, Group *group) noexcept nogil:
    recount(groups, group)
    while group is not NULL:
        group.objects += 1
        group = group.parent


cdef void group_uncount(Groups *groups, Group *group, uint64_t epoch) noexcept nogil:
    if group_purged(group) > epoch:
        return                      # the purge has taken it off all counts
    recount(groups, group)
    while group is not NULL:
        group.objects -= 1
        group = group.parent


cdef uint64_t group_purge(Groups *groups, Group *group, bint is_soft) noexcept nogil:
    cdef uint64_t gone
    cdef Group *around = group
    recount(groups, group)
    gone = group.objects
    groups.epoch += 1
    if is_soft:
        group.softened_epoch = groups.epoch
        return gone
    group.purged_epoch = groups.epoch
    while around is not NULL:
        around.objects -= gone
        around.counted_epoch = groups.epoch
        around = around.parent
    return gone


cdef bint is_directory_text(const char *text, uint32_t length) noexcept nogil:
    cdef uint32_t at, depth = 0
    if length == 0:
        return True
    for at in range(length):
        depth += text[at] == c'/'
        if text[at] == c'?':
            return False            # a query has no directories
    return text[length - 1] == c'/' and depth <= DIRECTORY_DEPTH_MAX
