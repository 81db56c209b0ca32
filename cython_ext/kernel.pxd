# The engine's part of the kernel side (kernel_side/): what comes up through its ring becomes what any driver tells of a
# connection. Knows no libbpf (bpf has loaded and mapped what is used here) and no io_uring.
from batchbridge.cython_ext.core cimport Engine
from batchbridge.cython_ext.tier cimport Tier


# Takes all that has come up. tier_sleeps: says that this thread will wait, unless there is something to be done first;
# looks_soon: for a moment only, so that what is only to be logged need not wake it.
cdef void tier_consume(Engine *engine, Tier *tier) noexcept nogil
cdef bint tier_sleeps(Tier *tier, bint looks_soon) noexcept nogil
cdef void tier_woke(Tier *tier) noexcept nogil
cdef bint tier_has_records(const Tier *tier) noexcept nogil
# Whether there are records that somebody waits for: those that are only to be logged can wait.
cdef bint tier_has_news(const Tier *tier) noexcept nogil
