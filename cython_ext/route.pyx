"""Routes: which handler a path belongs to.

A template is a path whose segments are literal, or `{name}` for any one non-empty segment, or, last, `{name:path}` for
the rest of the path. It matches the path as it was sent; a parameter's escapes are decoded when a handler asks for it.
"""
import re

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

from batchbridge.cython_ext.bridge cimport ITEM_PARAMETERS_MAX
from batchbridge.cython_ext.core cimport NO_ROUTE, Engine, Route
from batchbridge.cython_ext.parse cimport METHOD_GET, METHOD_HEAD, Slice


cdef extern from "<string.h>" nogil:
    size_t strlen(const char *) noexcept


# What may stand in a path between two "/" (RFC 3986 section 3.3), without the braces that are never sent bare.
LITERAL = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*")


cdef bint matches(const Route *route, const char *data, const Slice *path, Slice *parameters,
                  uint32_t *count) noexcept nogil:
    cdef const char *at = data + path.offset
    cdef const char *end = at + path.length
    cdef const char *segment = route.segments
    cdef const char *slash
    cdef uint32_t index, length, found = 0
    if route.literal_length:
        count[0] = 0
        return path.length == route.literal_length and memcmp(at, route.literal, path.length) == 0
    for index in range(route.segment_count):
        if at == end or at[0] != c'/':
            return False
        at += 1
        slash = <const char *>memchr(at, c'/', end - at)
        if slash is NULL or (route.is_catch_all and index + 1 == route.segment_count):
            slash = end
        length = <uint32_t>(slash - at)
        if segment[0] == 0:
            if length == 0:
                return False
            parameters[found].offset = <uint32_t>(at - data)
            parameters[found].length = length
            found += 1
        elif length != strlen(segment) or memcmp(at, segment, length) != 0:
            return False
        segment += strlen(segment) + 1
        at = slash
    count[0] = found
    return at == end


cdef int match_route(const Engine *engine, const char *data, const Slice *path, int method, Slice *parameters,
                     uint32_t *parameter_count, uint32_t *allowed) noexcept nogil:
    cdef int index
    cdef const Route *route
    cdef Slice found[ITEM_PARAMETERS_MAX]
    cdef uint32_t count = 0
    allowed[0] = 0
    for index in range(<int>engine.route_count):
        route = &engine.routes[index]
        if route.is_fallback or not matches(route, data, path, found, &count):
            continue
        if route.methods & (1u << method) or (method == METHOD_HEAD and route.methods & (1u << METHOD_GET)):
            memcpy(parameters, found, count * sizeof(Slice))
            parameter_count[0] = count
            return index
        allowed[0] |= route.methods
    return NO_ROUTE


cdef tuple compile_template(Route *route, str template):
    cdef bytes text
    cdef list literals = [], names = []
    if not template.startswith("/"):
        raise ValueError(f"the path {template!r} does not begin with '/'")
    segments = template[1:].split("/")
    for position, segment in enumerate(segments):
        if segment.startswith("{") and segment.endswith("}"):
            name, _, kind = segment[1:-1].partition(":")
            if kind not in ("", "path") or (kind and position + 1 != len(segments)) or not name.isidentifier() or (
                    not kind and ":" in segment):
                raise ValueError(f"the path {template!r} has a parameter {segment!r}: "
                                 "write {name}, or {name:path} as the last one")
            if name in names:
                raise ValueError(f"the path {template!r} has two parameters {name!r}")
            if len(names) == ITEM_PARAMETERS_MAX:
                raise ValueError(f"the path {template!r} has more than {ITEM_PARAMETERS_MAX} parameters")
            names.append(name)
            literals.append(b"")
            route.is_catch_all = kind == "path"
        elif not LITERAL.fullmatch(segment):
            raise ValueError(f"the path {template!r} has a segment {segment!r}: "
                             "a segment is what may stand in a path as it is sent, or a {name} alone")
        elif segment == "" and position + 1 != len(segments):
            raise ValueError(f"the path {template!r} has an empty segment")
        else:
            # An empty last literal ("/" at the end) must not look like a parameter.
            literals.append(segment.encode() if segment or names else b"")
    if not names:
        text = template.encode()
        route.literal_length = len(text)
        route.literal = <char *>malloc(len(text))
        if route.literal is NULL:
            raise MemoryError
        memcpy(route.literal, <const char *>text, len(text))
        return ()
    if segments[-1] == "":
        raise ValueError(f"the path {template!r} has parameters and ends with '/'")
    text = b"\0".join(literals) + b"\0"
    route.segment_count = len(literals)
    route.segments = <char *>malloc(len(text))
    if route.segments is NULL:
        raise MemoryError
    memcpy(route.segments, <const char *>text, len(text))
    return tuple(names)


def check_template(str template):
    """The names of a template's parameters; ValueError says what is wrong with it."""
    cdef Route route
    memset(&route, 0, sizeof(Route))
    try:
        return compile_template(&route, template)
    finally:
        route_free(&route)


cdef void route_free(Route *route) noexcept nogil:
    free(route.segments)
    free(route.literal)
    free(route.vary_text)
    route.segments = NULL
    route.literal = NULL
    route.vary_text = NULL
