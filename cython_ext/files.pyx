"""Files below the document root.

A file's strong validator is made of its inode, length and time of change in nanoseconds. How it is opened, and its
siblings that hold the same in a content coding (`page.html.br`), is in representations.pyx. The original must be there:
it says what the file's type is, and answers who wants no coding. The siblings lie in the original's directory, so
whatever changes in it makes all of them worth another look.

Who looks at the disk is told (FILE_COLD, FILE_UNKNOWN) where it would have to wait for it, unless it may wait; then it
is as if it had not looked.
"""
from libc.errno cimport (
    EACCES, EAGAIN, ELOOP, EMFILE, ENAMETOOLONG, ENFILE, ENOENT, ENOMEM, ENOTDIR, ENXIO, EPERM, EXDEV)
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strlen

from batchbridge.cython_ext.cache cimport (
    OBJECT_FILE, OBJECT_STALE, OBJECT_VARIES, CacheObject, cache_drop, hash_bytes, object_fragments, object_header,
    object_new, object_new_fragmented, object_payload)
from batchbridge.cython_ext.codings cimport (
    CODING_COUNT, CODING_IDENTITY, Ranking, choose_coding, coding_name, coding_suffix)
from batchbridge.cython_ext.core cimport Engine
from batchbridge.cython_ext.dates cimport format_http_date
from batchbridge.cython_ext.fragments cimport FRAGMENTS_MAX, Fragments, fragments_open_file, fragments_whole
from batchbridge.cython_ext.media cimport MediaType, MediaTypes, media_of, media_prepare
from batchbridge.cython_ext.representations cimport (
    MUST_WAIT, S_ISDIR, S_ISREG, Representations, Root, fstat, open_below, open_original, open_siblings, root_prepare,
    stat, take_file, visit)
from batchbridge.cython_ext.watch cimport (
    Watched, Watches, watch_file, watch_is_quiet, watches_free, watches_look, watches_prepare)


cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_PATH


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
    NS_PER_S = 1000000000
    LINES_SIZE_MAX = 512            # of an object's header lines
    WINDOW_SLOTS = 32               # fragments of a file too large to be kept that may be on their way at a time

# Two representations never have the same entity tag, not even where they are one file by two names.
cdef const char *ETAG_SUFFIXES[4]
ETAG_SUFFIXES[:] = [b"", b"-b", b"-z", b"-g"]


cdef struct Files:
    MediaTypes types
    Root root
    Watches watches


# --- settings --------------------------------------------------------------------------------------------------------

cdef files_prepare(Engine *engine, dict types, bytes default_type, tuple index_files, tuple codings, int root):
    cdef Files *files = <Files *>calloc(1, sizeof(Files))
    if files is NULL:
        raise MemoryError
    engine.files = files
    root_prepare(&files.root, root, index_files, codings)
    watches_prepare(&files.watches, root, engine.seed)
    media_prepare(&files.types, types, default_type)
    memcpy(engine.codings, files.root.codings, sizeof(engine.codings))
    engine.coding_count = files.root.coding_count


cdef void files_free(Engine *engine) noexcept nogil:
    if engine.files is not NULL:
        watches_free(&(<Files *>engine.files).watches)
    free(engine.files)
    engine.files = NULL


# --- opening ---------------------------------------------------------------------------------------------------------

cdef int result_of(int error) noexcept nogil:
    if error == -MUST_WAIT:
        return FILE_COLD
    if error in (ENOENT, ENOTDIR, ENAMETOOLONG):
        return FILE_ABSENT
    if error in (EACCES, EPERM, EXDEV, ELOOP, ENXIO):       # EXDEV: it would leave the root; ENXIO: a socket
        return FILE_FORBIDDEN
    if error in (EMFILE, ENFILE, ENOMEM, EAGAIN):
        return FILE_BUSY
    return FILE_FAILED


cdef bint watch(Engine *engine, bint may_wait, const char *path, uint32_t length, Watched *watched) noexcept nogil:
    """Lets the file's directories be watched, unless files are compared at each request anyway. False: a disk would
    have to be waited for."""
    cdef Files *files = <Files *>engine.files
    if engine.limits.file_revalidate_us == 0:
        memset(watched, 0, sizeof(Watched))
        return True
    return watch_file(&files.watches, not may_wait and files.root.can_refuse, path, length, watched)


cdef void file_visit(const Engine *engine, const char *path, uint32_t path_length) noexcept nogil:
    visit(&(<const Files *>engine.files).root, path, path_length)


cdef void files_pretend_cold(Engine *engine, bint is_cold) noexcept nogil:
    (<Files *>engine.files).root.is_cold = is_cold


cdef uint32_t representation_key(const char *key, uint32_t key_length, int coding, char *out) noexcept nogil:
    cdef const char *name = coding_name(coding)
    cdef uint32_t name_length = <uint32_t>strlen(name)
    if key_length + 1 + name_length > REPRESENTATION_KEY_SIZE_MAX:
        return 0
    memcpy(out, key, key_length)
    if coding == CODING_IDENTITY:
        return key_length
    # Keys of answers end with a NUL: none is like this.
    out[key_length] = 0
    memcpy(out + key_length + 1, name, name_length)
    return key_length + 1 + name_length


# --- objects ---------------------------------------------------------------------------------------------------------

cdef int file_open(Engine *engine, bint may_wait, const char *path, uint32_t path_length, const Ranking *ranking,
                   const char *key, uint32_t key_length, CacheObject **object) noexcept nogil:
    cdef Files *files = <Files *>engine.files
    cdef Representations them
    cdef const stat *facts = &them.facts[<int>CODING_IDENTITY]
    cdef char own_key[REPRESENTATION_KEY_SIZE_MAX]
    cdef int fd, coding = CODING_IDENTITY
    cdef uint32_t own_length
    cdef const MediaType *kind
    cdef bint is_directory = path[path_length - 1] == c'/'
    cdef Watched watched
    object[0] = NULL
    # Before the file is opened: what is changed from now on will be told.
    if not watch(engine, may_wait, path, path_length, &watched):
        return FILE_COLD
    fd = open_original(&files.root, may_wait, path, path_length, O_RDONLY, &them)
    if fd == -ENOENT and is_directory:
        fd = open_below(&files.root, may_wait, path, path_length, b"", b"", O_PATH,
                        &them.facts[<int>CODING_IDENTITY])
        if fd < 0:
            return result_of(-fd)
        close(fd)
        return FILE_LISTING
    if fd < 0:
        return result_of(-fd)
    if S_ISDIR(facts.st_mode):
        close(fd)
        return FILE_DIRECTORY if not is_directory else FILE_FORBIDDEN
    if not S_ISREG(facts.st_mode):
        close(fd)
        return FILE_FORBIDDEN
    if is_directory:
        kind = media_of(&files.types, them.name, them.name_length)
    else:
        kind = media_of(&files.types, path, path_length)
    if engine.coding_count:
        if open_siblings(&files.root, may_wait, path, path_length, &them) == MUST_WAIT:
            take_file(&them, CODING_COUNT)
            return FILE_COLD
        coding = choose_coding(ranking, them.available)
        own_length = representation_key(key, key_length, coding, own_key)
        if own_length:
            key = own_key
            key_length = own_length
        else:
            coding = CODING_IDENTITY        # the path is too long, as it was sent
        fd = take_file(&them, coding)
    object[0] = make_object(engine, fd, &them.facts[coding], kind, coding, them.available, key, key_length)
    if object[0] is NULL:
        return FILE_BUSY
    object[0].watched = watched
    if them.is_linked:
        object[0].watched.watch = 0
    return FILE_OBJECT if is_kept(engine, object[0].payload_length) else FILE_OPEN


cdef int describe(const stat *facts, const MediaType *kind, int coding, bint is_varied, const char *etag, char *lines,
                  int *first_length) noexcept nogil:
    """Writes a file's header lines, LINES_SIZE_MAX at most; returns their length, and that of those that a 304 has."""
    cdef char date[30]
    cdef int length
    format_http_date(facts.st_mtim.tv_sec, date)
    # Vary comes first: it is in responses that have none of the others, too.
    length = snprintf(lines, LINES_SIZE_MAX, b"%sETag: %s\r\nLast-Modified: %.29s\r\n",
                      <const char *>b"Vary: Accept-Encoding\r\n" if is_varied else <const char *>b"", etag, date)
    first_length[0] = length
    length += snprintf(lines + length, LINES_SIZE_MAX - length, b"Content-Type: %.*s\r\n", <int>kind.name_length,
                       kind.name)
    if coding != CODING_IDENTITY:
        length += snprintf(lines + length, LINES_SIZE_MAX - length, b"Content-Encoding: %s\r\n", coding_name(coding))
    return length + snprintf(lines + length, LINES_SIZE_MAX - length, b"Accept-Ranges: bytes\r\n\r\n")


cdef CacheObject *make_object(Engine *engine, int fd, const stat *facts, const MediaType *kind, int coding,
                              uint32_t available, const char *key, uint32_t key_length) noexcept nogil:
    """An object for an open file, whose descriptor it takes or closes. NULL: there is no memory."""
    cdef char lines[LINES_SIZE_MAX]
    cdef char etag[48]
    cdef int etag_length, first_length = 0, length
    cdef CacheObject *object
    etag_length = snprintf(etag, sizeof(etag), b'"%lx-%lx-%lx%s"', <unsigned long>facts.st_ino,
                           <unsigned long>facts.st_size,
                           <unsigned long>(facts.st_mtim.tv_sec * NS_PER_S + facts.st_mtim.tv_nsec),
                           ETAG_SUFFIXES[coding])
    length = describe(facts, kind, coding, available != 1 << CODING_IDENTITY, etag, lines, &first_length)
    object = read_object(engine, fd, <uint64_t>facts.st_size, key, key_length, <uint32_t>length)
    if object is NULL:
        return NULL
    memcpy(object_header(object), lines, length)
    memcpy(object.etag, etag, etag_length)
    object.etag_length = <uint8_t>etag_length
    object.not_modified_length = <uint32_t>first_length
    object.flags |= OBJECT_FILE
    if available != 1 << CODING_IDENTITY:
        object.flags |= OBJECT_VARIES
    object.codings = <uint8_t>(coding << 4 | available)
    object.status = 200
    object.device = facts.st_dev
    object.inode = facts.st_ino
    object.modified_ns = facts.st_mtim.tv_sec * NS_PER_S + facts.st_mtim.tv_nsec
    object.checked_us = engine.now_us
    return object


cdef bint is_kept(const Engine *engine, uint64_t size_bytes) noexcept nogil:
    """Whether a file is read into an object that the cache keeps: not when it is too large, nor while as much as the
    cache may hold has left it and is still being sent."""
    return (size_bytes <= engine.limits.cached_file_size_bytes_max
            and engine.cache.leaving_size_bytes + size_bytes <= engine.cache.size_bytes_max)


cdef CacheObject *read_object(Engine *engine, int fd, uint64_t size_bytes, const char *key, uint32_t key_length,
                              uint32_t header_length) noexcept nogil:
    """An object with what can be had of a small file at once; with fragments to be read of others. NULL: no memory."""
    cdef uint64_t hash = hash_bytes(key, key_length, engine.seed)
    cdef uint32_t slots = FRAGMENTS_MAX if is_kept(engine, size_bytes) else WINDOW_SLOTS
    cdef CacheObject *object
    if slots == FRAGMENTS_MAX and size_bytes <= engine.limits.copied_size_bytes_max // 2:
        object = object_new(engine.cache, hash, key, key_length, header_length, 0, size_bytes)
        if object is NULL or size_bytes == 0 or (not engine.cache.memory.is_cold
                                                 and read_at_once(fd, object_payload(object), size_bytes)):
            close(fd)
            return object
        cache_drop(object)          # its bytes must be waited for
    object = object_new_fragmented(engine.cache, hash, key, key_length, header_length, 0, size_bytes, slots, fd)
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


cdef int open_coded(Engine *engine, bint may_wait, const char *path, uint32_t path_length, int coding,
                    stat *facts) noexcept nogil:
    """Opens what the path names, or its sibling in a coding. A descriptor, -errno, or MUST_WAIT."""
    cdef const Root *root = &(<const Files *>engine.files).root
    cdef Representations them
    cdef const char *name = b""
    cdef int fd
    if coding == CODING_IDENTITY or path[path_length - 1] == c'/':
        fd = open_original(root, may_wait, path, path_length, O_RDONLY, &them)
        if fd >= 0 and coding == CODING_IDENTITY:
            facts[0] = them.facts[<int>CODING_IDENTITY]
        if fd < 0 or coding == CODING_IDENTITY:
            return fd
        close(fd)
        name = them.name
    return open_below(root, may_wait, path, path_length, name, coding_suffix(coding), O_RDONLY, facts)


cdef int file_reopen(Engine *engine, bint may_wait, const char *path, uint32_t path_length,
                     CacheObject *object) noexcept nogil:
    cdef Fragments *fragments = object_fragments(object)
    cdef stat facts
    cdef int fd
    if fragments is NULL or fragments.file >= 0 or fragments_whole(fragments):
        return FILE_SAME
    fd = open_coded(engine, may_wait, path, path_length, object.codings >> 4, &facts)
    if fd < 0:
        return FILE_UNKNOWN if fd == MUST_WAIT else FILE_CHANGED
    if not S_ISREG(facts.st_mode) or not is_file_of(object, &facts):
        close(fd)
        return FILE_CHANGED
    fragments_open_file(fragments, fd)
    return FILE_SAME


cdef int files_watch_fd(const Engine *engine) noexcept nogil:
    return (<const Files *>engine.files).watches.fd


cdef int file_compare(Engine *engine, bint may_wait, const char *path, uint32_t path_length,
                      CacheObject *object) noexcept nogil:
    cdef Files *files = <Files *>engine.files
    cdef Representations them
    cdef int fd, result = 0
    cdef Watches *watches = &files.watches
    cdef Watched watched = object.watched
    if watched.generation == watches.generation:
        watched.epoch = watches.epoch
    elif not watch(engine, may_wait, path, path_length, &watched):
        return FILE_UNKNOWN
    fd = open_original(&files.root, may_wait, path, path_length, O_PATH, &them)
    if fd < 0:
        return FILE_UNKNOWN if fd == MUST_WAIT else FILE_CHANGED
    if engine.coding_count and S_ISREG(them.facts[<int>CODING_IDENTITY].st_mode):
        result = open_siblings(&files.root, may_wait, path, path_length, &them)
    take_file(&them, CODING_COUNT)
    if result == MUST_WAIT:
        return FILE_UNKNOWN
    if (them.available != <uint32_t>(object.codings & 15)
            or not is_file_of(object, &them.facts[object.codings >> 4])):
        return FILE_CHANGED
    object.checked_us = engine.now_us
    object.watched = watched
    if them.is_linked:
        object.watched.watch = 0
    return FILE_SAME
