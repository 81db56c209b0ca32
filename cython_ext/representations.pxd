# What a path names below a root, and its siblings in other codings: opened by the kernel's own rule, and, if that is
# asked for, without waiting for a disk. Knows no cache, no engine and no HTTP.
from libc.stdint cimport uint8_t, uint32_t


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


cdef enum:
    INDEX_FILES_MAX = 8
    INDEX_NAME_SIZE = 64            # with the NUL at its end
    # No errno is as large: a disk would have to be waited for, and nothing was opened.
    MUST_WAIT = -4096


# Read by threads that wait for disks, too: nothing but `is_cold` changes once it is prepared.
cdef struct Root:
    int fd                          # -1: none
    uint8_t can_refuse              # the kernel can be told not to wait (RESOLVE_CACHED, Linux 5.12)
    uint8_t is_cold                 # tests: as if the kernel knew no name
    uint8_t codings[3]              # of siblings that are looked for, by preference (codings.Coding)
    uint8_t coding_count
    uint32_t index_count
    uint32_t index_lengths[8]
    char index_names[8][64]


# A file's representations: itself, and its siblings. By Coding.
cdef struct Representations:
    const char *name                # of the index file behind a directory's path; else empty
    uint32_t name_length
    uint32_t available              # bits
    bint is_linked                  # one of them is a symbolic link, whose changes would not be told
    stat facts[4]
    int files[4]                    # open; -1: none


# `index_files` and `codings`, by name: those that come first are preferred. ValueError: there is no such coding.
cdef root_prepare(Root *root, int fd, tuple index_files, tuple codings)

# Opens a path (which begins with "/"), with `name` and `suffix` behind it. A descriptor, or -errno; MUST_WAIT only
# where it may not wait.
cdef int open_below(const Root *root, bint may_wait, const char *path, uint32_t length, const char *name,
                    const char *suffix, int flags, stat *facts) noexcept nogil
# Opens what a path names, of a directory's (it ends with "/") the first index file that there is, and describes it as
# the only representation. A descriptor, or as above.
cdef int open_original(const Root *root, bint may_wait, const char *path, uint32_t length, int flags,
                       Representations *them) noexcept nogil
# Opens what siblings can be used of a regular file that was opened so. 0, or MUST_WAIT.
cdef int open_siblings(const Root *root, bint may_wait, const char *path, uint32_t length,
                       Representations *them) noexcept nogil
# The descriptor of one; the others are closed. CODING_COUNT: all are.
cdef int take_file(Representations *them, int coding) noexcept nogil

# Opens and closes all that a look at a path can be about, so that the kernel knows it. Waits; any thread may do that.
cdef void visit(const Root *root, const char *path, uint32_t length) noexcept nogil
