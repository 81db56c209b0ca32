"""Files below the document root.

Every path is opened relative to the root's descriptor with openat2(RESOLVE_BENEATH) (Linux 5.6): neither ".." nor a
symbolic link leaves the root, and nothing can be exchanged between a check and its use, since the kernel resolves the
path once. A file's strong validator is made of its inode, length and time of change in nanoseconds.

A file may have siblings that hold the same in a content coding (`page.html.br`). One that is no regular file, cannot be
read, or is older than its original is not used: it was not made from what the original is now. The original must be
there: it says what the file's type is, and answers who wants no coding. The siblings lie in the original's directory,
so whatever changes in it makes all of them worth another look.
"""
from libc.errno cimport (
    EACCES, EAGAIN, ELOOP, EMFILE, ENAMETOOLONG, ENFILE, ENOENT, ENOMEM, ENOTDIR, ENXIO, EPERM, EXDEV, errno)
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
from batchbridge.cython_ext.watch cimport (
    Watched, Watches, watch_file, watch_is_quiet, watches_free, watches_look, watches_prepare)

from batchbridge.cython_ext.codings import CODINGS


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
    int O_RDONLY, O_CLOEXEC, O_NONBLOCK, O_NOCTTY, O_NOFOLLOW, O_PATH


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
    INDEX_FILES_MAX = 8
    PATH_SIZE_MAX = 8192
    NS_PER_S = 1000000000
    LINES_SIZE_MAX = 512            # of an object's header lines
    WINDOW_SLOTS = 32               # fragments of a file too large to be kept that may be on their way at a time

# Two representations never have the same entity tag, not even where they are one file by two names.
cdef const char *ETAG_SUFFIXES[4]
ETAG_SUFFIXES[:] = [b"", b"-b", b"-z", b"-g"]


cdef struct Files:
    MediaTypes types
    uint32_t index_count
    uint32_t index_lengths[8]
    char index_names[8][64]
    Watches watches


# A file's representations: itself, and its siblings in the codings that are looked for. By Coding.
cdef struct Representations:
    uint32_t available              # bits
    bint is_linked                  # one of them is a symbolic link, whose changes would not be told
    stat facts[4]
    int files[4]                    # open; -1: none


# --- settings --------------------------------------------------------------------------------------------------------

cdef files_prepare(Engine *engine, dict types, bytes default_type, tuple index_files, tuple codings, int root):
    cdef Files *files = <Files *>calloc(1, sizeof(Files))
    if files is NULL:
        raise MemoryError
    engine.files = files
    watches_prepare(&files.watches, root, engine.seed)
    media_prepare(&files.types, types, default_type)
    for index, name in enumerate(index_files[:INDEX_FILES_MAX]):
        files.index_lengths[index] = len(name)
        memcpy(files.index_names[index], <const char *>name, min(<size_t>len(name), sizeof(files.index_names[0]) - 1))
        files.index_count = index + 1
    for name in codings:
        engine.codings[engine.coding_count] = <uint8_t>CODINGS.index(name)
        engine.coding_count += 1


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


cdef int open_path(Engine *engine, const char *path, uint32_t length, const char *name, const char *suffix, int flags,
                   stat *facts) noexcept nogil:
    """Opens path (which begins with "/"), with `name` and `suffix` behind it, below the root. A descriptor, or -errno.
    """
    cdef char relative[PATH_SIZE_MAX + 72]
    cdef int fd, error
    if length > PATH_SIZE_MAX:
        return -ENAMETOOLONG
    snprintf(relative, sizeof(relative), b".%.*s%s%s", <int>length, path, name, suffix)
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
        fd = open_path(engine, path, length, files.index_names[index], b"", O_RDONLY, facts)
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


# --- siblings --------------------------------------------------------------------------------------------------------

cdef bint is_older(const stat *one, const stat *other) noexcept nogil:
    if one.st_mtim.tv_sec != other.st_mtim.tv_sec:
        return one.st_mtim.tv_sec < other.st_mtim.tv_sec
    return one.st_mtim.tv_nsec < other.st_mtim.tv_nsec


cdef void open_siblings(Engine *engine, const char *path, uint32_t length, const char *name,
                        Representations *them) noexcept nogil:
    """Opens what siblings can be used of a file, whose own facts are there already."""
    cdef uint32_t index
    cdef int coding, fd
    for index in range(engine.coding_count):
        coding = engine.codings[index]
        fd = open_path(engine, path, length, name, coding_suffix(coding), O_RDONLY | O_NOFOLLOW, &them.facts[coding])
        if fd == -ELOOP:
            them.is_linked = True
            fd = open_path(engine, path, length, name, coding_suffix(coding), O_RDONLY, &them.facts[coding])
        if fd < 0:
            continue
        if not S_ISREG(them.facts[coding].st_mode) or is_older(&them.facts[coding], &them.facts[<int>CODING_IDENTITY]):
            close(fd)
            continue
        them.files[coding] = fd
        them.available |= 1u << coding


cdef void represent(Representations *them, int fd) noexcept nogil:
    """Begins with the file itself."""
    cdef int coding
    them.available = 1 << CODING_IDENTITY
    them.is_linked = False
    for coding in range(<int>CODING_COUNT):
        them.files[coding] = -1
    them.files[<int>CODING_IDENTITY] = fd


cdef int take_file(Representations *them, int coding) noexcept nogil:
    """The descriptor of one; the others are closed. CODING_COUNT: all are."""
    cdef int other, taken = -1
    for other in range(<int>CODING_COUNT):
        if other == coding:
            taken = them.files[other]
        elif them.files[other] >= 0:
            close(them.files[other])
    return taken


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

cdef int file_open(Engine *engine, const char *path, uint32_t path_length, const Ranking *ranking, const char *key,
                   uint32_t key_length, CacheObject **object) noexcept nogil:
    cdef Files *files = <Files *>engine.files
    cdef Representations them
    cdef stat *facts = &them.facts[<int>CODING_IDENTITY]
    cdef const char *name = b""
    cdef char own_key[REPRESENTATION_KEY_SIZE_MAX]
    cdef int fd, coding = CODING_IDENTITY
    cdef uint32_t which = 0, own_length
    cdef const MediaType *kind
    cdef bint is_directory = path[path_length - 1] == c'/'
    # Before the file is opened: what is changed from now on will be told.
    cdef Watched watched = watch(engine, path, path_length)
    object[0] = NULL
    if is_directory:
        fd = open_index(engine, path, path_length, facts, &which)
        if fd == -ENOENT:
            fd = open_path(engine, path, path_length, b"", b"", O_PATH, facts)
            if fd < 0:
                return result_of(-fd)
            close(fd)
            return FILE_LISTING
    else:
        fd = open_path(engine, path, path_length, b"", b"", O_RDONLY, facts)
    if fd < 0:
        return result_of(-fd)
    if S_ISDIR(facts.st_mode):
        close(fd)
        return FILE_DIRECTORY if not is_directory else FILE_FORBIDDEN
    if not S_ISREG(facts.st_mode):
        close(fd)
        return FILE_FORBIDDEN
    if is_directory:
        name = files.index_names[which]
        kind = media_of(&files.types, name, files.index_lengths[which])
    else:
        kind = media_of(&files.types, path, path_length)
    represent(&them, fd)
    if engine.coding_count:
        open_siblings(engine, path, path_length, name, &them)
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


cdef int open_coded(Engine *engine, const char *path, uint32_t path_length, int coding, stat *facts) noexcept nogil:
    """Opens what the path names, or its sibling in a coding. A descriptor, or -errno."""
    cdef Files *files = <Files *>engine.files
    cdef const char *name = b""
    cdef uint32_t which = 0
    cdef int fd
    if path[path_length - 1] == c'/':
        fd = open_index(engine, path, path_length, facts, &which)
        if fd < 0 or coding == CODING_IDENTITY:
            return fd
        close(fd)
        name = files.index_names[which]
    return open_path(engine, path, path_length, name, coding_suffix(coding), O_RDONLY, facts)


cdef bint file_reopen(Engine *engine, const char *path, uint32_t path_length, CacheObject *object) noexcept nogil:
    cdef Fragments *fragments = object_fragments(object)
    cdef stat facts
    cdef int fd
    if fragments is NULL or fragments.file >= 0 or fragments_whole(fragments):
        return True
    fd = open_coded(engine, path, path_length, object.codings >> 4, &facts)
    if fd < 0:
        return False
    if not S_ISREG(facts.st_mode) or not is_file_of(object, &facts):
        close(fd)
        return False
    fragments_open_file(fragments, fd)
    return True


cdef int files_watch_fd(const Engine *engine) noexcept nogil:
    return (<const Files *>engine.files).watches.fd


cdef bint file_unchanged(Engine *engine, const char *path, uint32_t path_length, CacheObject *object) noexcept nogil:
    cdef Files *files = <Files *>engine.files
    cdef Representations them
    cdef const stat *facts = &them.facts[<int>CODING_IDENTITY]
    cdef const char *name = b""
    cdef uint32_t which = 0
    cdef int fd
    cdef Watches *watches = &files.watches
    cdef Watched watched = object.watched
    if watched.generation == watches.generation:
        watched.epoch = watches.epoch
    else:
        watched = watch(engine, path, path_length)
    if path[path_length - 1] == c'/':
        fd = open_index(engine, path, path_length, &them.facts[<int>CODING_IDENTITY], &which)
        name = files.index_names[which]
    else:
        fd = open_path(engine, path, path_length, b"", b"", O_PATH, &them.facts[<int>CODING_IDENTITY])
    if fd < 0:
        return False
    represent(&them, fd)
    if engine.coding_count and S_ISREG(facts.st_mode):
        open_siblings(engine, path, path_length, name, &them)
    take_file(&them, CODING_COUNT)
    if them.available != <uint32_t>(object.codings & 15):
        return False
    facts = &them.facts[object.codings >> 4]
    if not is_file_of(object, facts):
        return False
    object.checked_us = engine.now_us
    object.watched = watched
    if them.is_linked:
        object.watched.watch = 0
    return True
