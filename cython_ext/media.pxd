# Media types by file name extension.
from libc.stdint cimport uint32_t


cdef struct MediaType:
    uint32_t extension_length
    uint32_t name_length
    char extension[16]
    char name[100]


cdef struct MediaTypes:
    MediaType items[4096]
    MediaType fallback


# `names`: extension without its dot, in lower case, to media type, both as bytes; those that are too long are left out.
# ValueError: there are too many.
cdef media_prepare(MediaTypes *types, dict names, bytes fallback)
# That of a file's path or name.
cdef const MediaType *media_of(MediaTypes *types, const char *path, uint32_t length) noexcept nogil
