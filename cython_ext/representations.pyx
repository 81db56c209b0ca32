"""What a path names below a root, and its siblings in other codings.

The rules:

- Every path is opened relative to the root's descriptor with openat2(RESOLVE_BENEATH) (Linux 5.6): neither ".." nor a
  symbolic link leaves the root, and nothing can be exchanged between a check and its use, since the kernel resolves
  the path once.
- Who may not wait gets MUST_WAIT where the kernel does not know a name on the way, or what it leads to
  (RESOLVE_CACHED). That may be so of an absent name each time, where a file system does not let the kernel remember
  it. Then whoever can wait visits the path, and it is opened once more, by somebody who may wait, though hardly ever
  has to.
- A sibling that is no regular file, cannot be read, or is older than its original is not used: it was not made from
  what the original is now.
"""
from libc.errno cimport EAGAIN, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from batchbridge.cython_ext.codings cimport CODING_COUNT, CODING_IDENTITY, coding_suffix

from batchbridge.cython_ext.codings import CODINGS


cdef extern from "compat.h" nogil:
    int bb_open_resolved(int root, const char *path, int flags, uint64_t resolve) noexcept
    uint64_t BB_RESOLVE_BENEATH, BB_RESOLVE_CACHED, BB_RESOLVE_NO_MAGICLINKS


cdef extern from "<sys/vfs.h>" nogil:
    struct statfs:
        long f_type
    int fstatfs(int, statfs *) noexcept


cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_CLOEXEC, O_NONBLOCK, O_NOCTTY, O_NOFOLLOW, O_PATH


cdef extern from "<unistd.h>" nogil:
    int close(int) noexcept


cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...) noexcept


cdef enum:
    PATH_SIZE_MAX = 8192
    TMPFS_MAGIC = 0x01021994        # <linux/magic.h>


cdef root_prepare(Root *root, int fd, tuple index_files, tuple codings):
    memset(root, 0, sizeof(Root))
    root.fd = fd
    for index, name in enumerate(index_files[:INDEX_FILES_MAX]):
        root.index_lengths[index] = len(name)
        memcpy(root.index_names[index], <const char *>name, min(<size_t>len(name), <size_t>INDEX_NAME_SIZE - 1))
        root.index_count = index + 1
    for name in codings:
        root.codings[root.coding_count] = <uint8_t>CODINGS.index(name)
        root.coding_count += 1
    if fd >= 0:
        with nogil:             # it may ask the disk
            root.can_refuse = can_refuse(fd)


cdef bint can_refuse(int fd) noexcept nogil:
    """Whether it makes sense to ask for what need not be waited for below this directory."""
    cdef statfs system
    cdef int probe = bb_open_resolved(fd, b".", O_PATH | O_CLOEXEC, BB_RESOLVE_CACHED)
    if probe == -EINVAL:        # before Linux 5.12
        return False
    if probe >= 0:
        close(probe)
    # What is in memory anyway is never waited for, and there the kernel would say so of every absent name.
    return fstatfs(fd, &system) < 0 or system.f_type != TMPFS_MAGIC


# --- opening ---------------------------------------------------------------------------------------------------------

cdef int open_below(const Root *root, bint may_wait, const char *path, uint32_t length, const char *name,
                    const char *suffix, int flags, stat *facts) noexcept nogil:
    cdef char relative[PATH_SIZE_MAX + INDEX_NAME_SIZE + 8]
    cdef uint64_t resolve = BB_RESOLVE_BENEATH | BB_RESOLVE_NO_MAGICLINKS
    cdef bint refuses = not may_wait and (root.can_refuse or root.is_cold)
    cdef int fd, error
    if length > PATH_SIZE_MAX:
        return -ENAMETOOLONG
    if refuses and root.is_cold:
        return MUST_WAIT
    snprintf(relative, sizeof(relative), b".%.*s%s%s", <int>length, path, name, suffix)
    if not flags & O_PATH:      # with which openat2 takes neither
        flags |= O_NONBLOCK | O_NOCTTY      # a FIFO in the root must not stop the engine
    fd = bb_open_resolved(root.fd, relative, flags | O_CLOEXEC, resolve | BB_RESOLVE_CACHED if refuses else resolve)
    if fd < 0:
        return MUST_WAIT if refuses and fd == -EAGAIN else fd
    if fstat(fd, facts) < 0:
        error = errno
        close(fd)
        return -error
    return fd


cdef int open_original(const Root *root, bint may_wait, const char *path, uint32_t length, int flags,
                       Representations *them) noexcept nogil:
    cdef stat *facts = &them.facts[<int>CODING_IDENTITY]
    cdef uint32_t index
    cdef int coding, fd = -ENOENT
    them.name = b""
    them.name_length = 0
    them.available = 1 << CODING_IDENTITY
    them.is_linked = False
    for coding in range(<int>CODING_COUNT):
        them.files[coding] = -1
    if path[length - 1] != c'/':
        fd = open_below(root, may_wait, path, length, b"", b"", flags, facts)
    else:
        for index in range(root.index_count):
            fd = open_below(root, may_wait, path, length, root.index_names[index], b"", O_RDONLY, facts)
            if fd != -ENOENT:
                them.name = root.index_names[index]
                them.name_length = root.index_lengths[index]
                break
    them.files[<int>CODING_IDENTITY] = max(fd, -1)
    return fd


# --- siblings --------------------------------------------------------------------------------------------------------

cdef bint is_older(const stat *one, const stat *other) noexcept nogil:
    if one.st_mtim.tv_sec != other.st_mtim.tv_sec:
        return one.st_mtim.tv_sec < other.st_mtim.tv_sec
    return one.st_mtim.tv_nsec < other.st_mtim.tv_nsec


cdef int open_siblings(const Root *root, bint may_wait, const char *path, uint32_t length,
                       Representations *them) noexcept nogil:
    cdef uint32_t index
    cdef int coding, fd
    for index in range(root.coding_count):
        coding = root.codings[index]
        fd = open_below(root, may_wait, path, length, them.name, coding_suffix(coding), O_RDONLY | O_NOFOLLOW,
                        &them.facts[coding])
        if fd == -ELOOP:
            them.is_linked = True
            fd = open_below(root, may_wait, path, length, them.name, coding_suffix(coding), O_RDONLY,
                            &them.facts[coding])
        if fd == MUST_WAIT:
            return MUST_WAIT
        if fd < 0:
            continue
        if not S_ISREG(them.facts[coding].st_mode) or is_older(&them.facts[coding], &them.facts[<int>CODING_IDENTITY]):
            close(fd)
            continue
        them.files[coding] = fd
        them.available |= 1u << coding
    return 0


cdef int take_file(Representations *them, int coding) noexcept nogil:
    cdef int other, taken = -1
    for other in range(<int>CODING_COUNT):
        if other == coding:
            taken = them.files[other]
        elif them.files[other] >= 0:
            close(them.files[other])
    return taken


cdef void visit(const Root *root, const char *path, uint32_t length) noexcept nogil:
    cdef Representations them
    cdef stat facts
    cdef int fd = open_original(root, True, path, length, O_RDONLY, &them)
    if fd >= 0 and S_ISREG(them.facts[<int>CODING_IDENTITY].st_mode):
        open_siblings(root, True, path, length, &them)
    elif fd == -ENOENT and path[length - 1] == c'/':
        fd = open_below(root, True, path, length, b"", b"", O_PATH, &facts)
        if fd >= 0:
            close(fd)
    take_file(&them, CODING_COUNT)
