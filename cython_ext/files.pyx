"""Files below the document root.

Every path is opened relative to the root's descriptor with openat2(RESOLVE_BENEATH) (Linux 5.6): neither ".." nor a
symbolic link leaves the root, and nothing can be exchanged between a check and its use, since the kernel resolves the
path once. A file's strong validator is made of its inode, length and time of change in nanoseconds.
"""
from libc.errno cimport (
    EACCES, EAGAIN, ELOOP, EMFILE, ENAMETOOLONG, ENFILE, ENOENT, ENOMEM, ENOTDIR, ENXIO, EPERM, EXDEV, errno)
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from batchbridge.cython_ext.cache cimport (
    OBJECT_FILE, OBJECT_STALE, CacheObject, cache_drop, hash_bytes, object_fragments, object_header, object_new,
    object_new_fragmented, object_payload)
from batchbridge.cython_ext.conditional cimport format_http_date
from batchbridge.cython_ext.core cimport Engine
from batchbridge.cython_ext.fragments cimport FRAGMENTS_MAX, Fragments, fragments_open_file, fragments_whole
from batchbridge.cython_ext.watch cimport (
    Watched, Watches, watch_file, watch_is_quiet, watches_free, watches_look, watches_prepare)


cdef extern from "compat.h" nogil:
    int bb_open_beneath(int root, const char *path, int flags) noexcept


cdef extern from "<sys/stat.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    struct stat:
        unsigned long st_dev
        unsigned long st_ino
        unsigned int st_mode
        long st_size
        timespec st_mtim
    int fstat(int, stat *) noexcept
    bint S_ISREG(unsigned int) noexcept
    bint S_ISDIR(unsigned int) noexcept


cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_CLOEXEC, O_NONBLOCK, O_NOCTTY, O_PATH


cdef extern from "<unistd.h>" nogil:
    int close(int) noexcept


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int, const iovec *, int, long, int) noexcept
    int RWF_NOWAIT


cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...) noexcept


cdef enum:
    TYPE_BUCKETS = 4096
    EXTENSION_SIZE_MAX = 16
    INDEX_FILES_MAX = 8
    PATH_SIZE_MAX = 8192
    NS_PER_S = 1000000000
    WINDOW_SLOTS = 32           # fragments of a file too large to be kept that may be on their way at a time


cdef struct Type:
    uint32_t extension_length
    uint32_t name_length
    char extension[16]
    char name[100]


cdef struct Description:
    uint32_t length
    uint32_t not_modified_length
    uint32_t etag_length
    char etag[48]
    char lines[512]


cdef struct Files:
    Type types[4096]
    Type default_type
    uint32_t index_count
    uint32_t index_lengths[8]
    char index_names[8][64]
    Watches watches


# --- media types -----------------------------------------------------------------------------------------------------

cdef Type *type_slot(Files *files, const char *extension, uint32_t length) noexcept nogil:
    """The slot of an extension: its own, or the empty one where it would be put."""
    cdef uint64_t index = hash_bytes(extension, length, 0)
    cdef Type *slot
    while True:
        slot = &files.types[index & (TYPE_BUCKETS - 1)]
        if slot.extension_length == 0 or (
                slot.extension_length == length and memcmp(slot.extension, extension, length) == 0):
            return slot
        index += 1


cdef const Type *type_of(Files *files, const char *path, uint32_t length) noexcept nogil:
    cdef char extension[EXTENSION_SIZE_MAX]
    cdef uint32_t index, count = 0
    cdef const Type *slot
    cdef char byte
    while count < length and path[length - 1 - count] != c'.' and path[length - 1 - count] != c'/':
        count += 1
    if count == 0 or count >= length or count > EXTENSION_SIZE_MAX or path[length - 1 - count] != c'.':
        return &files.default_type
    for index in range(count):
        byte = path[length - count + index]
        extension[index] = byte + 32 if c'A' <= byte <= c'Z' else byte
    slot = type_slot(files, extension, count)
    return slot if slot.extension_length else &files.default_type


cdef files_prepare(Engine *engine, dict types, bytes default_type, tuple index_files, int root):
    """Fills the tables. `types`: extension without its dot, in lower case, to media type, both as bytes."""
    cdef Files *files = <Files *>calloc(1, sizeof(Files))
    cdef Type *slot
    if files is NULL:
        raise MemoryError
    engine.files = files
    watches_prepare(&files.watches, root, engine.seed)
    for extension, name in types.items():
        if not 0 < len(extension) <= EXTENSION_SIZE_MAX or len(name) > sizeof(slot.name):
            continue
        if len(types) > TYPE_BUCKETS // 2:
            raise ValueError(f"{len(types)} media types are more than {TYPE_BUCKETS // 2}")
        slot = type_slot(files, extension, len(extension))
        set_type(slot, extension, name)
    set_type(&files.default_type, b"", default_type)
    for index, name in enumerate(index_files[:INDEX_FILES_MAX]):
        files.index_lengths[index] = len(name)
        memcpy(files.index_names[index], <const char *>name, min(<size_t>len(name), sizeof(files.index_names[0]) - 1))
        files.index_count = index + 1


cdef set_type(Type *slot, bytes extension, bytes name):
    slot.extension_length = len(extension)
    memcpy(slot.extension, <const char *>extension, len(extension))
    slot.name_length = min(len(name), sizeof(slot.name))
    memcpy(slot.name, <const char *>name, slot.name_length)


cdef void files_free(Engine *engine) noexcept nogil:
    if engine.files is not NULL:
        watches_free(&(<Files *>engine.files).watches)
    free(engine.files)
    engine.files = NULL


# --- opening ---------------------------------------------------------------------------------------------------------

cdef int result_of(int error) noexcept nogil:
    if error in (ENOENT, ENOTDIR, ENAMETOOLONG):
        return FILE_ABSENT
    if error in (EACCES, EPERM, EXDEV, ELOOP, ENXIO):       # EXDEV: it would leave the root; ENXIO: a socket
        return FILE_FORBIDDEN
    if error in (EMFILE, ENFILE, ENOMEM, EAGAIN):
        return FILE_BUSY
    return FILE_FAILED


cdef int open_path(Engine *engine, const char *path, uint32_t length, const char *name, int flags,
                   stat *facts) noexcept nogil:
    """Opens path (which begins with "/"), with `name` behind it, below the root. A descriptor, or -errno."""
    cdef char relative[PATH_SIZE_MAX + 66]
    cdef int fd, error
    if length > PATH_SIZE_MAX:
        return -ENAMETOOLONG
    snprintf(relative, sizeof(relative), b".%.*s%s", <int>length, path, name)
    if not flags & O_PATH:      # with which openat2 takes neither
        flags |= O_NONBLOCK | O_NOCTTY      # a FIFO in the root must not stop the engine
    fd = bb_open_beneath(engine.root, relative, flags | O_CLOEXEC)
    if fd < 0:
        return fd
    if fstat(fd, facts) < 0:
        error = errno
        close(fd)
        return -error
    return fd


cdef int open_index(Engine *engine, const char *path, uint32_t length, stat *facts, uint32_t *which) noexcept nogil:
    """Opens a directory's first index file there is. A descriptor, or -errno."""
    cdef Files *files = <Files *>engine.files
    cdef uint32_t index
    cdef int fd = -ENOENT
    for index in range(files.index_count):
        fd = open_path(engine, path, length, files.index_names[index], O_RDONLY, facts)
        if fd != -ENOENT:
            which[0] = index
            break
    return fd


cdef Watched watch(Engine *engine, const char *path, uint32_t length) noexcept nogil:
    """Lets the file's directories be watched, unless files are compared at each request anyway."""
    cdef Watched unwatched
    if engine.limits.file_revalidate_us == 0:
        memset(&unwatched, 0, sizeof(Watched))
        return unwatched
    return watch_file(&(<Files *>engine.files).watches, path, length)


cdef int open_file(Engine *engine, const char *path, uint32_t path_length, stat *facts,
                   const Type **kind) noexcept nogil:
    """Opens what the path names; for a directory its index file. A descriptor, or a FileResult, negated."""
    cdef Files *files = <Files *>engine.files
    cdef int fd
    cdef uint32_t which = 0
    cdef bint is_directory = path[path_length - 1] == c'/'
    if is_directory:
        fd = open_index(engine, path, path_length, facts, &which)
        if fd == -ENOENT:
            fd = open_path(engine, path, path_length, b"", O_PATH, facts)
            if fd < 0:
                return -result_of(-fd)
            close(fd)
            return -FILE_LISTING
    else:
        fd = open_path(engine, path, path_length, b"", O_RDONLY, facts)
    if fd < 0:
        return -result_of(-fd)
    if S_ISREG(facts.st_mode):
        if is_directory:
            kind[0] = type_of(files, files.index_names[which], files.index_lengths[which])
        else:
            kind[0] = type_of(files, path, path_length)
        return fd
    close(fd)
    return -FILE_DIRECTORY if S_ISDIR(facts.st_mode) and not is_directory else -FILE_FORBIDDEN


cdef int file_open(Engine *engine, const char *path, uint32_t path_length, uint64_t hash, const char *key,
                   uint32_t key_length, CacheObject **object) noexcept nogil:
    cdef stat facts
    cdef int fd
    cdef const Type *kind = NULL
    # Before the file is opened: what is changed from now on will be told.
    cdef Watched watched = watch(engine, path, path_length)
    cdef Description description
    object[0] = NULL
    fd = open_file(engine, path, path_length, &facts, &kind)
    if fd < 0:
        return -fd
    describe(&facts, kind, &description)
    object[0] = make_object(engine, fd, <uint64_t>facts.st_size, hash, key, key_length, &description)
    if object[0] is NULL:
        return FILE_BUSY
    take_description(object[0], &facts, &description)
    object[0].checked_us = engine.now_us
    object[0].watched = watched
    return FILE_OBJECT if is_kept(engine, <uint64_t>facts.st_size) else FILE_OPEN


cdef void describe(const stat *facts, const Type *kind, Description *description) noexcept nogil:
    """Header lines, and the validator in them."""
    cdef char date[30]
    format_http_date(facts.st_mtim.tv_sec, date)
    description.etag_length = <uint32_t>snprintf(
        description.etag, sizeof(description.etag), b'"%lx-%lx-%lx"', <unsigned long>facts.st_ino,
        <unsigned long>facts.st_size, <unsigned long>(facts.st_mtim.tv_sec * NS_PER_S + facts.st_mtim.tv_nsec))
    description.not_modified_length = <uint32_t>snprintf(
        description.lines, sizeof(description.lines), b"ETag: %s\r\nLast-Modified: %.29s\r\n", description.etag, date)
    description.length = description.not_modified_length + <uint32_t>snprintf(
        description.lines + description.not_modified_length,
        sizeof(description.lines) - description.not_modified_length,
        b"Content-Type: %.*s\r\nAccept-Ranges: bytes\r\n\r\n", <int>kind.name_length, kind.name)


cdef void take_description(CacheObject *object, const stat *facts, const Description *description) noexcept nogil:
    memcpy(object_header(object), description.lines, description.length)
    memcpy(object.etag, description.etag, description.etag_length)
    object.etag_length = <unsigned char>description.etag_length
    object.not_modified_length = description.not_modified_length
    object.flags |= OBJECT_FILE
    object.status = 200
    object.device = facts.st_dev
    object.inode = facts.st_ino
    object.modified_ns = facts.st_mtim.tv_sec * NS_PER_S + facts.st_mtim.tv_nsec


cdef bint is_kept(const Engine *engine, uint64_t size_bytes) noexcept nogil:
    """Whether a file is read into an object that the cache keeps: not when it is too large, nor while as much as the
    cache may hold has left it and is still being sent."""
    return (size_bytes <= engine.limits.cached_file_size_bytes_max
            and engine.cache.leaving_size_bytes + size_bytes <= engine.cache.size_bytes_max)


cdef CacheObject *make_object(Engine *engine, int fd, uint64_t size_bytes, uint64_t hash, const char *key,
                              uint32_t key_length, const Description *description) noexcept nogil:
    """An object for an open file, whose descriptor it takes or closes. NULL: there is no memory."""
    cdef CacheObject *object
    cdef uint32_t slots = FRAGMENTS_MAX if is_kept(engine, size_bytes) else WINDOW_SLOTS
    if slots == FRAGMENTS_MAX and size_bytes <= engine.limits.copied_size_bytes_max // 2:
        object = object_new(hash, key, key_length, description.length, 0, size_bytes)
        if object is NULL or size_bytes == 0 or (not engine.cache.memory.is_cold
                                                 and read_at_once(fd, object_payload(object), size_bytes)):
            close(fd)
            return object
        cache_drop(object)          # its bytes must be waited for
    object = object_new_fragmented(engine.cache, hash, key, key_length, description.length, 0, size_bytes, slots, fd)
    if object is NULL:
        close(fd)
    return object


cdef bint read_at_once(int fd, char *out, uint64_t size_bytes) noexcept nogil:
    """Reads all of a small file, if nothing has to be waited for."""
    cdef iovec whole
    whole.iov_base = out
    whole.iov_len = size_bytes
    return preadv2(fd, &whole, 1, 0, RWF_NOWAIT) == <ssize_t>size_bytes


cdef int64_t object_modified_s(const CacheObject *object) noexcept nogil:
    cdef int64_t seconds = object.modified_ns // NS_PER_S
    return seconds - (seconds * NS_PER_S > object.modified_ns)      # rounded down, before 1970 too


cdef bint file_is_trusted(Engine *engine, const CacheObject *object) noexcept nogil:
    cdef Files *files = <Files *>engine.files
    if engine.now_us - object.checked_us >= engine.limits.file_revalidate_us or object.flags & OBJECT_STALE:
        return False
    if object.watched.watch == 0:
        return True
    watches_look(&files.watches, engine.counters.loops)
    return watch_is_quiet(&files.watches, object.watched)


cdef bint is_file_of(const CacheObject *object, const stat *facts) noexcept nogil:
    return (facts.st_dev == object.device and facts.st_ino == object.inode
            and <uint64_t>facts.st_size == object.payload_length
            and facts.st_mtim.tv_sec * NS_PER_S + facts.st_mtim.tv_nsec == object.modified_ns)


cdef bint file_is_same(CacheObject *object) noexcept nogil:
    cdef stat facts
    return fstat(object_fragments(object).file, &facts) == 0 and is_file_of(object, &facts)


cdef bint file_reopen(Engine *engine, const char *path, uint32_t path_length, CacheObject *object) noexcept nogil:
    cdef Fragments *fragments = object_fragments(object)
    cdef stat facts
    cdef const Type *kind = NULL
    cdef int fd
    if fragments is NULL or fragments.file >= 0 or fragments_whole(fragments):
        return True
    fd = open_file(engine, path, path_length, &facts, &kind)
    if fd < 0:
        return False
    if not is_file_of(object, &facts):
        close(fd)
        return False
    fragments_open_file(fragments, fd)
    return True


cdef bint file_unchanged(Engine *engine, const char *path, uint32_t path_length, CacheObject *object) noexcept nogil:
    cdef stat facts
    cdef uint32_t which = 0
    cdef int fd
    cdef Watches *watches = &(<Files *>engine.files).watches
    cdef Watched watched = object.watched
    if watched.generation == watches.generation:
        watched.epoch = watches.epoch
    else:
        watched = watch(engine, path, path_length)
    if path[path_length - 1] == c'/':
        fd = open_index(engine, path, path_length, &facts, &which)
    else:
        fd = open_path(engine, path, path_length, b"", O_PATH, &facts)
    if fd < 0:
        return False
    close(fd)
    if not is_file_of(object, &facts):
        return False
    object.checked_us = engine.now_us
    object.watched = watched
    return True
