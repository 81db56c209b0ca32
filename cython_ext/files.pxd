# Files below the document root: found, checked, read, described. System calls, and no HTTP beyond header lines.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from batchbridge.cython_ext.cache cimport CacheObject
from batchbridge.cython_ext.core cimport Engine


cdef enum FileResult:
    FILE_OBJECT = 0             # a cached object was made
    FILE_OPEN = 1               # too large to be kept: an object that is a window over its file, for one response
    FILE_DIRECTORY = 2          # a directory asked for without its last "/"
    FILE_LISTING = 3            # a directory without an index file
    FILE_ABSENT = 404
    FILE_FORBIDDEN = 403
    FILE_BUSY = 503             # out of descriptors or memory
    FILE_FAILED = 500


# What the decoded path names. `key` is the path as it was sent, by which the cache will know the object. FILE_OBJECT
# and FILE_OPEN: an object, with a reference of the caller's. A small file has its payload if it could be read at once;
# otherwise fragments are read when they are needed.
cdef int file_open(Engine *engine, const char *path, uint32_t path_length, uint64_t hash, const char *key,
                   uint32_t key_length, CacheObject **object) noexcept nogil

# Opens the file of an object not all of whose fragments were read, if it is not open. False: it is not what it was.
cdef bint file_reopen(Engine *engine, const char *path, uint32_t path_length, CacheObject *object) noexcept nogil
# Whether the open file of an object is still as it was when the object was made.
cdef bint file_is_same(CacheObject *object) noexcept nogil

# Whether a file's object may be used without another look at the file: it was compared not long ago, is not stale, and
# nothing was told of a change since where its file lies. Where nothing is told, only time makes it worth another look.
cdef bint file_is_trusted(Engine *engine, const CacheObject *object) noexcept nogil

# Whether a cached object still is what the path names: same file, same time, same length. It counts as compared now.
cdef bint file_unchanged(Engine *engine, const char *path, uint32_t path_length, CacheObject *object) noexcept nogil

# Seconds, rounded down, as Last-Modified says.
cdef int64_t object_modified_s(const CacheObject *object) noexcept nogil

cdef files_prepare(Engine *engine, dict types, bytes default_type, tuple index_files, int root)
cdef void files_free(Engine *engine) noexcept nogil
