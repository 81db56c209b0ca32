# Batches: off to workers, and back as answers.
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.core cimport Engine


# Lets every batch leave that may leave now; sets engine.batch_deadline_us for those that may leave later. Returns how
# many left.
cdef uint32_t dispatch_batches(Engine *engine) noexcept nogil

# Takes what workers have answered: marks requests ready, and their connections to be looked at. Returns how many
# batches ended.
cdef uint32_t collect_answers(Engine *engine) noexcept nogil

# Answers what has waited too long (time-outs of routes); the next such moment goes into engine.next_deadline_us.
cdef void expire_deferred(Engine *engine) noexcept nogil
