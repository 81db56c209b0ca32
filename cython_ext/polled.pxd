# Polled sockets: those whose packets wake the engine by themselves, so that the kernel side need not interrupt it.
# Knows the ring, rows and connections; no libbpf.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from batchbridge.cython_ext.core cimport Connection, Engine
from batchbridge.cython_ext.ring cimport Ring
from batchbridge.cython_ext.tier cimport POLLED_ROWS_MAX


cdef struct Polled:
    uint32_t connection             # its index + 1; 0: none
    uint32_t polls                  # made for this place: completions of earlier ones are known by it
    uint32_t received               # of its row, when its socket began to be polled
    uint32_t sleeps_unused          # sleeps since its connection had anything to do
    uint8_t has_rung                # in this turn
    uint8_t is_trusted              # the kernel side has been told that it need not wake for this one


cdef struct PolledSockets:
    Polled places[POLLED_ROWS_MAX]
    uint32_t count
    uint32_t trusted_count
    uint32_t lost_wakes
    uint8_t is_proven               # on this kernel a poll completes when the kernel side has taken the packet
    uint8_t rests                   # nothing has come for a while
    uint64_t tag                    # what the completions' user_data begins with; place and number are below


# When the engine is about to sleep: polls the sockets of those few connections that were busy since it last slept.
# Returns how long it may sleep now; -1: for ever.
cdef int64_t polled_arm(Engine *engine, Ring *ring, PolledSockets *polled, int64_t wait_us) noexcept nogil
# When it has woken, before completions are taken and `sleeps` is changed.
cdef void polled_woke(Engine *engine, const Ring *ring, PolledSockets *polled) noexcept nogil
# A poll's completion.
cdef void polled_rang(Engine *engine, PolledSockets *polled, uint64_t user_data, int result,
                      uint32_t flags) noexcept nogil
# When a turn's records were taken.
cdef void polled_settle(Engine *engine, const Ring *ring, PolledSockets *polled) noexcept nogil
# Before a connection's descriptor is closed: a poll keeps its socket open.
cdef void polled_remove(Engine *engine, Ring *ring, PolledSockets *polled, const Connection *connection) noexcept nogil
