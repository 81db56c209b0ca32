"""Loads the kernel side (kernel_side/side.bpf.c, compiled at install) and maps what it shares, through libbpf.

Nothing stays attached behind the process: programs, maps and the link to the cgroup live by descriptors that are closed
when it ends, however it ends; and are not passed on to programs that it starts.
"""
import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

from batchbridge.cython_ext.rows cimport tier_free, tier_prepare
from batchbridge.cython_ext.sender cimport sender_close, sender_open
from batchbridge.cython_ext.tier cimport (
    BB_IMAGE_SLOTS, BB_IMAGES_MAX, BB_ROWS_MAX, Tier, bb_rendering, bb_free_rows, bb_image, bb_image_space, bb_row,
    bb_send_entries, bb_send_ring, bb_words)

from batchbridge.errors import EngineError


cdef extern from "<stdarg.h>" nogil:
    ctypedef struct va_list:
        pass


cdef extern from "<stdio.h>" nogil:
    int vsnprintf(char *, size_t, const char *, va_list) noexcept


cdef extern from "<bpf/libbpf.h>" nogil:
    struct bpf_object
    struct bpf_map
    struct bpf_program
    struct bpf_link
    enum libbpf_print_level:
        LIBBPF_WARN
    ctypedef int (*libbpf_print_fn_t)(libbpf_print_level, const char *, va_list) noexcept nogil
    libbpf_print_fn_t libbpf_set_print(libbpf_print_fn_t) noexcept
    bpf_object *bpf_object__open_file(const char *, const void *) noexcept
    int bpf_object__load(bpf_object *) noexcept
    void bpf_object__close(bpf_object *) noexcept
    bpf_map *bpf_object__find_map_by_name(const bpf_object *, const char *) noexcept
    bpf_program *bpf_object__find_program_by_name(const bpf_object *, const char *) noexcept
    int bpf_map__set_max_entries(bpf_map *, uint32_t) noexcept
    int bpf_map__fd(const bpf_map *) noexcept
    int bpf_map__set_autocreate(bpf_map *, int) noexcept
    const void *bpf_map__initial_value(bpf_map *, size_t *) noexcept
    int bpf_program__fd(const bpf_program *) noexcept
    bpf_link *bpf_program__attach_cgroup(const bpf_program *, int) noexcept
    int bpf_link__destroy(bpf_link *) noexcept


cdef extern from "<bpf/bpf.h>" nogil:
    int bpf_map_update_elem(int, const void *, const void *, uint64_t) noexcept
    int bpf_prog_attach(int, int, int, unsigned int) noexcept
    int BPF_SK_SKB_STREAM_VERDICT


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *, size_t, int, int, int, long) noexcept
    int munmap(void *, size_t) noexcept
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED


cdef extern from "compat.h" nogil:
    int bb_cgroup_root() noexcept


cdef enum:
    PAGE_SIZE_BYTES = 4096
    SAID_SIZE_BYTES = 512


# Where systems mount the tree of cgroup v2: alone, or beside that of v1.
CGROUP_FOLDERS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")

# What libbpf says while it loads: its first complaint is the reason, the verifier's log follows.
cdef char said[SAID_SIZE_BYTES]


cdef int listen(libbpf_print_level level, const char *form, va_list values) noexcept nogil:
    if level == LIBBPF_WARN and said[0] == 0:
        vsnprintf(said, SAID_SIZE_BYTES, form, values)
    return 0


def online_cores():
    """The numbers of this machine's cores, as the kernel lists them, or "?"."""
    try:
        with open("/sys/devices/system/cpu/online") as file:
            return file.read().strip()
    except OSError:
        return "?"


def object_path():
    """Where the compiled kernel side lies."""
    return os.path.join(os.path.dirname(os.path.dirname(__file__)), "kernel_side", "side.bpf.o")


cdef class KernelSide:
    """One engine's kernel side: loaded, mapped, and attached to the listeners given by their descriptors.

    `sqpoll`: the core whose kernel thread sends what the kernel side answers by itself; None: user mode answers all.
    `requests_min`: what connections must bring on average to be taken over; 0: they always are.
    EngineError, with libbpf's or the kernel's reason, where it cannot be.
    """
    cdef Tier tier
    cdef bpf_object *object
    cdef bpf_link *link
    cdef list mapped                # (address, size) pairs

    def __cinit__(self, uint32_t connections, uint64_t ring_size_bytes, listeners, sqpoll=None,
                  uint32_t requests_min=0):
        self.mapped = []
        self.tier.sender.fd = -1

    def __init__(self, uint32_t connections, uint64_t ring_size_bytes, listeners, sqpoll=None,
                 uint32_t requests_min=0):
        # A closed socket may keep its row for as long as TCP still has something to do for it.
        self.tier.row_count = min(<uint32_t>BB_ROWS_MAX, 2 * connections)
        self.tier.can_answer = sqpoll is not None
        self.tier.requests_min = requests_min
        self.load(ring_size_bytes)
        self.map_all(ring_size_bytes)
        if self.tier.can_answer:
            self.open_sender(sqpoll)
        result = tier_prepare(&self.tier, connections)
        if result < 0:
            raise MemoryError
        self.attach(listeners)

    @property
    def tier_address(self):
        """Of the Tier, for the engine's driver; valid as long as this object."""
        return <uintptr_t>&self.tier

    cdef int map_fd(self, const char *name) except -1:
        cdef bpf_map *found = bpf_object__find_map_by_name(self.object, name)
        if found is NULL:
            raise EngineError(f"the kernel side has no map {name.decode()}")
        return bpf_map__fd(found)

    cdef load(self, uint64_t ring_size_bytes):
        cdef int result = 0
        cdef const char *name
        path = os.fsencode(object_path())
        said[0] = 0
        libbpf_set_print(listen)
        self.object = bpf_object__open_file(path, NULL)
        if self.object is NULL:
            raise EngineError(f"the kernel side cannot be opened: {os.strerror(errno)} ({os.fsdecode(path)})")
        for name in (b"sockets", b"row_numbers", b"rows"):
            result |= bpf_map__set_max_entries(bpf_object__find_map_by_name(self.object, name), self.tier.row_count)
        result |= bpf_map__set_max_entries(bpf_object__find_map_by_name(self.object, b"records"),
                                           <uint32_t>ring_size_bytes)
        if result == 0:
            result = self.choose_answering()
        if result == 0:
            with nogil:
                result = bpf_object__load(self.object)
        if result < 0:
            reason = said.decode("utf-8", "replace").strip()
            raise EngineError(f"the kernel side cannot be loaded: {os.strerror(-result)}"
                              + (f" ({reason})" if reason else ""))

    cdef int choose_answering(self) except? -1:
        """Tells the programs, which cannot be told later, whether they answer; leaves out maps they do not need."""
        cdef size_t size_bytes = 0
        cdef const char *name
        cdef int result = 0
        cdef uint32_t *constants = <uint32_t *>bpf_map__initial_value(
            bpf_object__find_map_by_name(self.object, b".rodata"), &size_bytes)
        if constants is NULL or size_bytes != sizeof(uint32_t):
            raise EngineError("the kernel side has other constants than can_answer")
        constants[0] = self.tier.can_answer
        for name in (b"answers", b"send_ring", b"send_entries", b"posting"):
            result |= bpf_map__set_autocreate(bpf_object__find_map_by_name(self.object, name), self.tier.can_answer)
        return result

    cdef open_sender(self, uint32_t core):
        cdef Tier *tier = &self.tier
        cdef uint32_t places[3]
        cdef int result
        tier.answers = <bb_rendering *>self.map_array(b"answers", BB_IMAGES_MAX * sizeof(bb_rendering))
        result = sender_open(&tier.sender, self.map_array(b"send_ring", sizeof(bb_send_ring)),
                             self.map_array(b"send_entries", sizeof(bb_send_entries)), self.map_fd(b"posting"), core,
                             places)
        if result < 0:
            raise EngineError(f"a kernel thread cannot send on core {core} (sqpoll): {os.strerror(-result)}; "
                              f"this machine has the cores {online_cores()}")
        tier.words.sends_head_at = places[0]
        tier.words.sends_tail_at = places[1]
        tier.words.sends_flags_at = places[2]

    cdef void *map_memory(self, int fd, size_t size_bytes, int protection, long offset) except NULL:
        cdef void *address = mmap(NULL, size_bytes, protection, MAP_SHARED, fd, offset)
        if address == MAP_FAILED:
            raise EngineError(f"the kernel side's memory cannot be mapped: {os.strerror(errno)}")
        self.mapped.append((<uintptr_t>address, size_bytes))
        return address

    cdef void *map_array(self, const char *name, size_t size_bytes) except NULL:
        size_bytes = (size_bytes + PAGE_SIZE_BYTES - 1) & ~<size_t>(PAGE_SIZE_BYTES - 1)
        return self.map_memory(self.map_fd(name), size_bytes, PROT_READ | PROT_WRITE, 0)

    cdef map_all(self, uint64_t ring_size_bytes):
        cdef Tier *tier = &self.tier
        cdef int fd = self.map_fd(b"records")
        tier.rows = <bb_row *>self.map_array(b"rows", tier.row_count * sizeof(bb_row))
        tier.free_rows = <bb_free_rows *>self.map_array(b"free_rows", sizeof(bb_free_rows))
        tier.words = <bb_words *>self.map_array(b"words", sizeof(bb_words))
        tier.images = <bb_image *>self.map_array(b"images", BB_IMAGES_MAX * sizeof(bb_image))
        tier.image_space = <bb_image_space *>self.map_array(b"image_space", sizeof(bb_image_space))
        # An array map pads its elements to 8 bytes.
        tier.image_slots = <uint32_t *>self.map_array(b"image_slots", BB_IMAGE_SLOTS * 8)
        # The ring: a page with the consumer's position, a page with the producer's, then its bytes, twice in a row.
        tier.records_fd = fd
        tier.consumer = <uint64_t *>self.map_memory(fd, PAGE_SIZE_BYTES, PROT_READ | PROT_WRITE, 0)
        tier.producer = <const uint64_t *>self.map_memory(fd, PAGE_SIZE_BYTES + 2 * ring_size_bytes, PROT_READ,
                                                          PAGE_SIZE_BYTES)
        tier.records = <char *>tier.producer + PAGE_SIZE_BYTES
        tier.record_mask = ring_size_bytes - 1

    cdef attach(self, listeners):
        cdef int fd, listener, result, cgroup
        cdef uint32_t tag = 1
        # The verdict first: sockets that are added before it would tell wrong lengths.
        result = bpf_prog_attach(bpf_program__fd(bpf_object__find_program_by_name(self.object, b"on_data")),
                                 self.map_fd(b"sockets"), BPF_SK_SKB_STREAM_VERDICT, 0)
        if result < 0:
            raise EngineError(f"the kernel side cannot be attached to sockets: {os.strerror(-result)}")
        fd = self.map_fd(b"listeners")
        for listener in listeners:
            if bpf_map_update_elem(fd, &listener, &tag, 0) < 0:
                raise EngineError(f"a listener cannot be told to the kernel side: {os.strerror(errno)}")
        cgroup = bb_cgroup_root()
        for folder in CGROUP_FOLDERS:       # where there is no CAP_SYS_ADMIN to mount it anew
            if cgroup < 0 and os.path.exists(os.path.join(folder, "cgroup.controllers")):
                try:
                    cgroup = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                except OSError as error:
                    cgroup = -error.errno
        if cgroup < 0:
            raise EngineError(f"the cgroup tree cannot be opened: {os.strerror(-cgroup)}")
        self.link = bpf_program__attach_cgroup(
            bpf_object__find_program_by_name(self.object, b"on_connection"), cgroup)
        result = errno
        os.close(cgroup)
        if self.link is NULL:
            raise EngineError(f"the kernel side cannot be attached to the cgroup tree: {os.strerror(result)}")

    def stats(self):
        """Counters of the kernel side and of what was taken from sockets instead, as a dict."""
        cdef Tier *tier = &self.tier
        return {"records": tier.words.records, "packets": tier.words.packets, "hits": tier.words.hits,
                "known": tier.known, "stale": tier.words.stale, "overlaps": tier.words.overlaps,
                "nested": tier.words.nested, "wakes": tier.words.wakes,
                "connections": tier.words.opened, "untracked": tier.words.untracked,
                "left": tier.words.left, "spills": tier.words.spills,
                "drained_bytes": tier.drained_bytes, "gaps": tier.gaps, "gaps_awaited": tier.gaps_awaited,
                "images": tier.words.image_count,
                "rows_in_use": tier.row_count - (tier.free_rows.tail - tier.free_rows.head),
                "answered": tier.words.answered, "owed": tier.words.owed, "unsent": tier.words.unsent,
                "outdated": tier.words.outdated, "crowded": tier.words.crowded, "doorbells": tier.words.doorbells,
                "failed_sends": tier.failed_sends, "rendered": tier.rendered, "waits": tier.sender.waits,
                "thread_wakes": tier.sender.wakes}

    def add_answered(self, figures):
        """Adds to an engine's figures what was answered without it."""
        cdef Tier *tier = &self.tier
        cdef uint64_t answered = tier.words.answered
        figures["requests"]["read"] += answered
        figures["requests"]["outcomes"]["hit"] += answered
        figures["cache"]["hits"] += answered
        figures["bytes"]["received"] += tier.words.answered_request_bytes
        figures["bytes"]["sent"] += tier.words.answered_bytes - tier.unsent_bytes

    def close(self):
        """Detaches and frees all; the engine must not run any more."""
        if self.link is not NULL:
            bpf_link__destroy(self.link)
            self.link = NULL
        sender_close(&self.tier.sender)
        tier_free(&self.tier)
        for address, size_bytes in self.mapped:
            munmap(<void *><uintptr_t>address, size_bytes)
        self.mapped = []
        if self.object is not NULL:
            bpf_object__close(self.object)
            self.object = NULL

    def __dealloc__(self):
        # A failed start leaves what it had.
        if self.object is not NULL:
            self.close()
