# The load generator's loop: when requests leave, how long the thread sleeps, what is measured time.
from batchbridge.cython_ext.clients cimport Run


# Runs the load to its end, on a ring of the calling thread. 0, or -errno: of the ring's set-up (then nothing was sent),
# or of a ring that stopped working.
cdef int run_clients(Run *run) noexcept nogil
