"""Purges: by URL, by prefix, by tag, and of everything.

The rules:

- A tag, or a prefix that is a directory, is a group: a purge of it is an epoch written down. Its objects are reclaimed
  later, but for the first few hundred, so that the counts of a small cache are always right.
- The objects of a URL are found through the index of URLs, and go at once.
- For any other prefix each object is looked at.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memchr, memcmp

from batchbridge.cython_ext.cache cimport (
    LINE_OBJECTS_MAX, OBJECT_FILE, Cache, CacheObject, cache_find_url, cache_line, cache_remove, cache_sweep)
from batchbridge.cython_ext.freshness cimport cache_outlived_purges, cache_soften
from batchbridge.cython_ext.groups cimport (
    GROUP_DIRECTORY, GROUP_TAG, Group, group_find, group_purge, is_directory_text)


cdef enum:
    SWEEP_LINES_AT_PURGE = 256


cdef uint64_t purge_one(Cache *cache, CacheObject *object, bint is_soft) noexcept nogil:
    """Removes or softens an object; 1, or 0 for one that was unusable already."""
    cdef bint was_usable = cache_outlived_purges(cache, object)
    if was_usable and is_soft:
        cache_soften(cache, object)
    else:
        cache_remove(cache, object)
    return was_usable


cdef bint same_host(const char *one, const char *other, uint32_t length) noexcept nogil:
    cdef uint32_t index
    cdef char byte, other_byte
    for index in range(length):
        byte = one[index]
        other_byte = other[index]
        if (byte + 32 if c'A' <= byte <= c'Z' else byte) != (
                other_byte + 32 if c'A' <= other_byte <= c'Z' else other_byte):
            return False
    return True


cdef bint is_of_host(const CacheObject *object, const char *host, uint32_t length) noexcept nogil:
    """Whether an object is for this authority. A file is for all."""
    cdef const char *own = object.bytes + object.target_length + 1
    if object.flags & OBJECT_FILE or object.key_length == object.target_length or host is NULL:
        return True
    if object.key_length < object.target_length + 1 + length + 1 or own[length]:
        return False
    return same_host(own, host, length)


cdef uint64_t purge_url(Cache *cache, bint is_soft, const char *text, uint32_t length) noexcept nogil:
    cdef const char *end = <const char *>memchr(text, 0, length)
    cdef uint32_t target_length = length if end is NULL else <uint32_t>(end - text)
    cdef const char *host = text + target_length + 1 if end is not NULL else <const char *>NULL
    cdef const char *query = <const char *>memchr(text, c'?', target_length)
    cdef CacheObject *object = cache_find_url(cache, text, target_length)
    cdef CacheObject *following
    cdef uint64_t gone = 0
    while object is not NULL:
        following = object.url_next
        if is_of_host(object, host, 0 if host is NULL else length - target_length - 1):
            gone += purge_one(cache, object, is_soft)
        object = following
    if query is NULL:
        return gone
    # A file is cached by its path, and answers whatever query is put behind it.
    length = <uint32_t>(query - text)
    object = cache_find_url(cache, text, length)
    while object is not NULL:
        following = object.url_next
        if object.flags & OBJECT_FILE:
            gone += purge_one(cache, object, is_soft)
        object = following
    return gone


cdef uint64_t purge_matching(Cache *cache, bint is_soft, const char *prefix, uint32_t length) noexcept nogil:
    """Those whose key begins so: by looking at all, if there is anything in its directory."""
    cdef CacheObject *objects[LINE_OBJECTS_MAX]
    cdef const char *query = <const char *>memchr(prefix, c'?', length)
    cdef uint64_t line, gone = 0
    cdef uint32_t path_length = length if query is NULL else <uint32_t>(query - prefix)
    cdef int count, index
    while path_length and prefix[path_length - 1] != c'/':
        path_length -= 1
    if is_directory_text(prefix, path_length) and group_find(
            &cache.groups, GROUP_DIRECTORY, prefix, path_length) is NULL:
        return 0
    for line in range(cache.by_key.line_count):
        count = cache_line(cache, line, objects)
        for index in range(count):
            if objects[index].target_length >= length and memcmp(objects[index].bytes, prefix, length) == 0:
                gone += purge_one(cache, objects[index], is_soft)
    return gone


cdef uint64_t purge_group(Cache *cache, bint is_soft, Group *group) noexcept nogil:
    cdef uint64_t gone
    if group is NULL:
        return 0
    gone = group_purge(&cache.groups, group, is_soft)
    if not is_soft and gone:
        cache.unusable += gone
        cache.sweep_again = cache.sweeping
        cache.sweeping = True
        cache_sweep(cache, SWEEP_LINES_AT_PURGE)
    return gone


cdef uint64_t cache_purge(Cache *cache, int kind, bint is_soft, const char *text, uint32_t length) noexcept nogil:
    cdef uint64_t gone
    if kind == PURGE_URL:
        gone = purge_url(cache, is_soft, text, length)
    elif kind == PURGE_TAG:
        gone = purge_group(cache, is_soft, group_find(&cache.groups, GROUP_TAG, text, length))
    elif kind == PURGE_ALL:
        gone = purge_group(cache, is_soft, cache.groups.root)
    elif is_directory_text(text, length):
        gone = purge_group(cache, is_soft, group_find(&cache.groups, GROUP_DIRECTORY, text, length))
    else:
        gone = purge_matching(cache, is_soft, text, length)
    cache.purged += gone
    return gone
