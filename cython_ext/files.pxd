# Files below the document root: found, checked, read, described. System calls, and no HTTP beyond header lines.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from batchbridge.cython_ext.cache cimport CacheObject
from batchbridge.cython_ext.codings cimport Ranking
from batchbridge.cython_ext.core cimport Engine


cdef enum FileResult:
    FILE_OBJECT = 0             # a cached object was made
    FILE_OPEN = 1               # too large to be kept: an object that is a window over its file, for one response
    FILE_DIRECTORY = 2          # a directory asked for without its last "/"
    FILE_LISTING = 3            # a directory without an index file
    FILE_COLD = 4               # a disk must be waited for first: nothing was done
    FILE_ABSENT = 404
    FILE_FORBIDDEN = 403
    FILE_BUSY = 503             # out of descriptors or memory
    FILE_FAILED = 500


cdef enum FileState:
    FILE_CHANGED = 0
    FILE_SAME = 1
    FILE_UNKNOWN = 2            # a disk must be waited for first: nothing was done


cdef enum:
    REPRESENTATION_KEY_SIZE_MAX = 8448

# All that looks at the disk waits for it only if it `may_wait`.

# What the decoded path names, in the coding that `ranking` wants most of those that there are. `key` is the path as it
# was sent, by which the cache will know the object, together with its coding. FILE_OBJECT and FILE_OPEN: an object,
# with a reference of the caller's. A small file has its payload if it could be read at once; otherwise fragments are
# read when they are needed.
cdef int file_open(Engine *engine, bint may_wait, const char *path, uint32_t path_length, const Ranking *ranking,
                   const char *key, uint32_t key_length, CacheObject **object) noexcept nogil

# Opens the file of an object not all of whose fragments were read, if it is not open. A FileState.
cdef int file_reopen(Engine *engine, bint may_wait, const char *path, uint32_t path_length,
                     CacheObject *object) noexcept nogil
# Whether the open file of an object is still as it was when the object was made.
cdef bint file_is_same(CacheObject *object) noexcept nogil

# The key of a file's object in a coding. Returns its length, or 0 where it is longer than a file's path can be.
cdef uint32_t representation_key(const char *key, uint32_t key_length, int coding, char *out) noexcept nogil

# Whether a file's object may be used without another look at the file: it was compared not long ago, is not stale, and
# nothing was told of a change since where its file lies. Where nothing is told, only time makes it worth another look.
cdef bint file_is_trusted(Engine *engine, const CacheObject *object) noexcept nogil

# A descriptor that becomes readable when something is changed in a watched directory; none where it is not above 0.
cdef int files_watch_fd(const Engine *engine) noexcept nogil

# Whether a cached object still is what the path names: same file, same time, same length, same codings beside it. If it
# is, that counts as compared now. A FileState.
cdef int file_compare(Engine *engine, bint may_wait, const char *path, uint32_t path_length,
                      CacheObject *object) noexcept nogil

# Waits for all that a look at the path can need of a disk. Any thread may call it.
cdef void file_visit(const Engine *engine, const char *path, uint32_t path_length) noexcept nogil
# Tests: lets all looks that may not wait fail, as if the kernel knew no name.
cdef void files_pretend_cold(Engine *engine, bint is_cold) noexcept nogil

# Seconds, rounded down, as Last-Modified says.
cdef int64_t object_modified_s(const CacheObject *object) noexcept nogil

# `types`: extension without its dot, in lower case, to media type, both as bytes. `codings`: of siblings, by name, the
# preferred one first. ValueError: they make no sense.
cdef files_prepare(Engine *engine, dict types, bytes default_type, tuple index_files, tuple codings, int root)
cdef void files_free(Engine *engine) noexcept nogil
