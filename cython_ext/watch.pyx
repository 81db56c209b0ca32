"""Directories watched for changes.

The rules:

- A file is watched by its directory and by all around it, up to the root. Whatever happens in one of these makes all
  files below worth another look; which file it was does not matter, since a look is cheap.
- When a watched directory is itself moved, replaced or removed, or events were lost, all watches are forgotten, and
  made anew as files are looked at again.
- Paths with symbolic links are not watched.
"""
from libc.errno cimport EAGAIN
from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from batchbridge.cython_ext.index cimport hash_bytes


cdef extern from "compat.h" nogil:
    int bb_open_resolved(int root, const char *path, int flags, uint64_t resolve) noexcept
    uint64_t BB_RESOLVE_BENEATH, BB_RESOLVE_CACHED, BB_RESOLVE_NO_SYMLINKS


cdef extern from "<sys/inotify.h>" nogil:
    struct inotify_event:
        int wd
        uint32_t mask
        uint32_t cookie
        uint32_t len
        char name[1]
    int inotify_init1(int) noexcept
    int inotify_add_watch(int, const char *, uint32_t) noexcept
    int IN_CLOEXEC, IN_NONBLOCK
    uint32_t IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO, IN_MODIFY, IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF
    uint32_t IN_ONLYDIR, IN_Q_OVERFLOW, IN_IGNORED, IN_UNMOUNT, IN_ISDIR


cdef extern from "<fcntl.h>" nogil:
    int O_PATH, O_CLOEXEC, O_DIRECTORY


cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *, size_t) noexcept


cdef extern from "<unistd.h>" nogil:
    ssize_t read(int, void *, size_t) noexcept
    int close(int) noexcept


cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...) noexcept


cdef enum:
    PATH_SIZE_MAX = 4096
    EVENTS_SIZE_BYTES = 16384
    READS_MAX = 64                  # a look; when there is more, it is taken for everything
    NAME_SIZE_MAX = 256


cdef void watches_prepare(Watches *watches, int root, uint64_t seed) noexcept nogil:
    memset(watches, 0, sizeof(Watches))
    watches.root = root
    watches.seed = seed
    watches.generation = 1


cdef void watches_free(Watches *watches) noexcept nogil:
    forget_all(watches)


cdef void forget_all(Watches *watches) noexcept nogil:
    cdef uint32_t index
    if watches.fd > 0:
        close(watches.fd)
    watches.fd = 0
    for index in range(watches.count):
        free(watches.items[index].path)
    watches.count = 0
    watches.generation += 1
    memset(watches.by_path, 0, sizeof(watches.by_path))
    memset(watches.by_descriptor, 0, sizeof(watches.by_descriptor))


# --- tables ----------------------------------------------------------------------------------------------------------

cdef uint16_t *path_place(Watches *watches, uint64_t hash, const char *path, uint32_t length) noexcept nogil:
    """Where a directory's number is, or would be put."""
    cdef uint32_t at = <uint32_t>hash & (WATCH_TABLE_SIZE - 1)
    cdef const Watch *watch
    while watches.by_path[at]:
        watch = &watches.items[watches.by_path[at] - 1]
        if watch.hash == hash and watch.length == length and memcmp(watch.path, path, length) == 0:
            break
        at = (at + 1) & (WATCH_TABLE_SIZE - 1)
    return &watches.by_path[at]


cdef uint16_t *descriptor_place(Watches *watches, int descriptor) noexcept nogil:
    cdef uint32_t at = <uint32_t>descriptor & (WATCH_TABLE_SIZE - 1)
    while watches.by_descriptor[at] and watches.items[watches.by_descriptor[at] - 1].descriptor != descriptor:
        at = (at + 1) & (WATCH_TABLE_SIZE - 1)
    return &watches.by_descriptor[at]


# --- watching --------------------------------------------------------------------------------------------------------

cdef int open_unlinked(Watches *watches, const char *name, int flags) noexcept nogil:
    """Opens what is no symbolic link, nor behind one. A descriptor, or -errno."""
    cdef int fd = bb_open_resolved(watches.root, name, flags | O_PATH | O_CLOEXEC, watches.how)
    watches.must_wait |= fd == -EAGAIN and watches.how & BB_RESOLVE_CACHED != 0
    return fd


cdef int add_watch(Watches *watches, const char *directory) noexcept nogil:
    """Lets inotify watch the directory of this path; its descriptor, or -1."""
    cdef char name[PATH_SIZE_MAX + 1]
    cdef int fd, descriptor
    if watches.fd == 0:
        watches.fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
    if watches.fd < 0:
        return -1
    snprintf(name, sizeof(name), b".%s", directory)
    fd = open_unlinked(watches, name, O_DIRECTORY)
    if fd < 0:
        return -1
    snprintf(name, sizeof(name), b"/proc/self/fd/%d", fd)
    descriptor = inotify_add_watch(watches.fd, name, IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_MODIFY
                                   | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR)
    close(fd)
    return descriptor


cdef uint16_t watch_directory(Watches *watches, const char *path, uint32_t length, uint16_t parent) noexcept nogil:
    """The number of a directory, which is watched from now on at the latest; 0: it cannot be."""
    cdef uint64_t hash = hash_bytes(path, length, watches.seed)
    cdef uint16_t *place = path_place(watches, hash, path, length)
    cdef Watch *watch
    if place[0]:
        return place[0]
    if watches.count >= WATCHES_MAX:
        return 0
    watch = &watches.items[watches.count]
    watch.path = <char *>malloc(length + 1)
    if watch.path is NULL:
        return 0
    memcpy(watch.path, path, length)
    watch.path[length] = 0
    watch.descriptor = add_watch(watches, watch.path)
    # One directory by two paths (a bind mount) has one descriptor: only the first is watched.
    if watch.descriptor < 0 or descriptor_place(watches, watch.descriptor)[0]:
        free(watch.path)
        return 0
    watch.hash = hash
    watch.length = length
    watch.parent = parent
    watch.changed = watches.epoch
    watches.count += 1
    place[0] = watches.count
    descriptor_place(watches, watch.descriptor)[0] = watches.count
    return watches.count


cdef bint watch_file(Watches *watches, bint refuses, const char *path, uint32_t length,
                     Watched *watched) noexcept nogil:
    watches.how = BB_RESOLVE_BENEATH | BB_RESOLVE_NO_SYMLINKS
    if refuses:
        watches.how |= BB_RESOLVE_CACHED
    watches.must_wait = 0
    memset(watched, 0, sizeof(Watched))
    watched.epoch = watches.epoch
    watched.generation = watches.generation
    if length < PATH_SIZE_MAX and watches.fd >= 0:
        watched.watch = watch_way(watches, path, length)
    return not watches.must_wait


cdef uint16_t watch_way(Watches *watches, const char *path, uint32_t length) noexcept nogil:
    """The number of the directory that a file is in, watched with all around it; 0: it cannot be."""
    cdef char name[PATH_SIZE_MAX + 1]
    cdef uint32_t at
    cdef uint16_t number = 0
    cdef int fd
    for at in range(length):
        if path[at] == c'/':
            number = watch_directory(watches, path, at + 1, number)
            if number == 0:
                return 0
    snprintf(name, sizeof(name), b".%.*s", <int>length, path)
    fd = open_unlinked(watches, name, 0)
    if fd < 0:
        return 0                    # a link
    close(fd)
    return number


# --- looking ---------------------------------------------------------------------------------------------------------

cdef bint is_upheaval(Watches *watches, const Watch *watch, const inotify_event *event) noexcept nogil:
    """Whether after this event a path may lead to another directory than the one that is watched."""
    cdef char path[PATH_SIZE_MAX + NAME_SIZE_MAX]
    cdef uint32_t length
    if event.mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_IGNORED | IN_UNMOUNT):
        return True
    if not event.mask & IN_ISDIR or event.mask & IN_ATTRIB or event.len == 0:
        return False
    length = <uint32_t>strnlen(event.name, min(event.len, <uint32_t>NAME_SIZE_MAX - 1))
    memcpy(path, watch.path, watch.length)
    memcpy(path + watch.length, event.name, length)
    length += watch.length
    path[length] = c'/'
    return path_place(watches, hash_bytes(path, length + 1, watches.seed), path, length + 1)[0] != 0


cdef void watches_look(Watches *watches, uint64_t turn) noexcept nogil:
    cdef char events[EVENTS_SIZE_BYTES]
    cdef const inotify_event *event
    cdef uint16_t number
    cdef ssize_t got, at
    if watches.fd <= 0 or watches.looked_turn == turn:
        return
    watches.looked_turn = turn
    for _ in range(READS_MAX):
        got = read(watches.fd, events, EVENTS_SIZE_BYTES)
        if got <= 0:
            return
        at = 0
        while at < got:
            event = <const inotify_event *>(events + at)
            at += <ssize_t>(sizeof(int32_t) + 3 * sizeof(uint32_t) + event.len)
            if event.mask & IN_Q_OVERFLOW:
                forget_all(watches)
                return
            number = descriptor_place(watches, event.wd)[0]
            if number == 0:
                continue
            if is_upheaval(watches, &watches.items[number - 1], event):
                forget_all(watches)
                return
            watches.epoch += 1
            watches.items[number - 1].changed = watches.epoch
    forget_all(watches)


cdef bint watch_is_quiet(const Watches *watches, Watched watched) noexcept nogil:
    cdef uint16_t number = watched.watch
    if number and watched.generation != watches.generation:
        return False
    while number:
        # Epochs are compared as they wrap around.
        if <int32_t>(watches.items[number - 1].changed - watched.epoch) > 0:
            return False
        number = watches.items[number - 1].parent
    return True
