/* What the modules need of C: memory ordering, and kernel constants that Debian 12's headers lack, under our own names. */
#ifndef BB_COMPAT_H
#define BB_COMPAT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* One writer, one reader: the writer stores with release what it wrote before, the reader loads with acquire. */
static inline uint32_t bb_load_acquire(const uint32_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline void bb_store_release(uint32_t *at, uint32_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
static inline uint64_t bb_load_acquire_64(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline void bb_store_release_64(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
static inline uint32_t bb_load_relaxed(const uint32_t *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
static inline void bb_store_relaxed(uint32_t *at, uint32_t value) { __atomic_store_n(at, value, __ATOMIC_RELAXED); }
static inline int32_t bb_store_release_signed(int32_t *at, int32_t value) {
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
    return value;
}
static inline uint32_t bb_fetch_add(uint32_t *at, uint32_t by) { return __atomic_fetch_add(at, by, __ATOMIC_ACQ_REL); }
/* Before one side sleeps: "I sleep" must be seen before its last look at what the other side may have written. */
static inline void bb_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static inline uint64_t bb_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static inline uint64_t bb_wall_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline int64_t bb_wall_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME_COARSE, &t);
    return t.tv_sec;
}

/* openat2 (Linux 5.6; glibc 2.36 has no wrapper): what must hold on the way, as bits. A descriptor or -errno. */
#define BB_RESOLVE_NO_MAGICLINKS 0x02u
#define BB_RESOLVE_NO_SYMLINKS 0x04u
#define BB_RESOLVE_BENEATH 0x08u
#define BB_RESOLVE_CACHED 0x20u /* Linux 5.12: -EAGAIN instead of waiting for a disk */
static inline int bb_open_resolved(int root, const char *path, int flags, uint64_t resolve) {
    struct {
        uint64_t flags, mode, resolve;
    } how = {.flags = (uint64_t)flags, .mode = 0, .resolve = resolve};
    long fd = syscall(437, root, path, &how, sizeof how);
    return fd < 0 ? -errno : (int)fd;
}

/* The root of the cgroup v2 tree, mounted for nobody else to see: what is mounted at /sys is another network namespace's,
 * or none, in a container. A descriptor or -errno. (fsopen, fsconfig, fsmount: Linux 5.2) */
static inline int bb_cgroup_root(void) {
    long filesystem = syscall(430, "cgroup2", 1u), root = -1;
    int error;
    if (filesystem < 0) return -errno;
    if (syscall(431, filesystem, 6u, NULL, NULL, 0) == 0) root = syscall(432, filesystem, 1u, 0u);
    error = errno;
    close((int)filesystem);
    return root < 0 ? -error : (int)root;
}

/* A socket's options through the ring, also without a descriptor: URING_CMD getsockopt (Linux 6.7). liburing 2.3 has no
 * name for these fields of an entry, so they are written by their offsets. */
#include <liburing.h>
#include <sys/socket.h>
#define BB_OP_URING_CMD 46
#define BB_SOCKET_CMD_GETSOCKOPT 2
static inline void bb_prep_socket_option(struct io_uring_sqe *entry, int fd, uint32_t option, void *at,
                                         uint32_t length) {
    const uint32_t command = BB_SOCKET_CMD_GETSOCKOPT, level = SOL_SOCKET;
    const uint64_t value = (uint64_t)(uintptr_t)at;
    memset(entry, 0, sizeof *entry);
    entry->opcode = BB_OP_URING_CMD;
    entry->fd = fd;
    memcpy((char *)entry + 8, &command, sizeof command);
    memcpy((char *)entry + 16, &level, sizeof level);
    memcpy((char *)entry + 20, &option, sizeof option);
    memcpy((char *)entry + 44, &length, sizeof length);
    memcpy((char *)entry + 48, &value, sizeof value);
}
static inline void bb_prep_peer_name(struct io_uring_sqe *entry, int fd, void *address, uint32_t length) {
    bb_prep_socket_option(entry, fd, SO_PEERNAME, address, length);
}
/* The number by which the kernel calls a socket; BPF programs see it, too. */
static inline void bb_prep_cookie(struct io_uring_sqe *entry, int fd, uint64_t *cookie) {
    bb_prep_socket_option(entry, fd, SO_COOKIE, cookie, sizeof *cookie);
}

/* A ring in memory of the caller's (NO_MMAP: Linux 6.5, in memory of BPF maps 6.10), without an index array (NO_SQARRAY:
 * 6.6), whose entries a kernel thread on `core` submits, which sleeps after `idle_ms` without any. A descriptor or -errno. */
static inline int bb_polled_ring(struct io_uring_params *p, uint32_t entries, uint32_t completions, void *ring,
                                 void *at, uint32_t core, uint32_t idle_ms) {
    int fd;
    memset(p, 0, sizeof *p);
    p->flags =
        IORING_SETUP_SQPOLL | IORING_SETUP_SQ_AFF | IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL | 1u << 14 | 1u << 16;
    p->cq_entries = completions;
    p->sq_thread_cpu = core;
    p->sq_thread_idle = idle_ms;
    p->sq_off.resv2 = (uint64_t)(uintptr_t)at; /* user_addr, in younger headers */
    p->cq_off.resv2 = (uint64_t)(uintptr_t)ring;
    fd = (int)syscall(SYS_io_uring_setup, entries, p);
    return fd < 0 ? -errno : fd;
}
static inline void bb_ring_enter(int fd, uint32_t flags) { syscall(SYS_io_uring_enter, fd, 0, 0, flags, NULL, 0); }
static inline int bb_ring_bell(int fd, int bell) {
    return syscall(SYS_io_uring_register, fd, IORING_REGISTER_EVENTFD, &bell, 1) < 0 ? -errno : 0;
}

/* Takes and leaves the lock in a BPF map's first element, of 8 bytes: whatever was done under it before is done. */
static inline int bb_pass_map_lock(int map) {
    uint32_t key = 0;
    uint64_t value = 0;
    struct {
        uint32_t map, padding;
        uint64_t key, value, flags;
    } what = {(uint32_t)map, 0, (uint64_t)(uintptr_t)&key, (uint64_t)(uintptr_t)&value, 4 /* BPF_F_LOCK */};
    return syscall(SYS_bpf, 1 /* BPF_MAP_LOOKUP_ELEM */, &what, sizeof what) < 0 ? -errno : 0;
}

#endif
