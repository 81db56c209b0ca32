# Routes: which handler a path belongs to. Templates match the path as it was sent, segment by segment.
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.core cimport Engine, Route
from batchbridge.cython_ext.parse cimport Slice


# The number of the route for a method and a path (data[path]), or NO_ROUTE. Literal templates win over those with
# parameters, earlier ones over later ones. `parameters` (ITEM_PARAMETERS_MAX of them) are set as slices of `data`.
# `allowed` is set to the methods (bits by Method) of the routes whose template matches, whatever their methods.
cdef int match_route(const Engine *engine, const char *data, const Slice *path, int method, Slice *parameters,
                     uint32_t *parameter_count, uint32_t *allowed) noexcept nogil

# Compiles a template such as "/score/{model}" or "/static/{rest:path}" into a route. Returns the parameters' names;
# ValueError says what is wrong with it.
cdef tuple compile_template(Route *route, str template)
cdef void route_free(Route *route) noexcept nogil
