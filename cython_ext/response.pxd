# What handlers answer with becomes bytes. What would break the message, or is the engine's to say, is refused.

cdef enum:
    HEADERS_SIZE_MAX = 16384        # bytes of an answer's header lines


# What is wrong with a header field of an answer.
cdef enum FieldFault:
    FIELD_FINE = 0
    FIELD_NAME                      # the name is no token
    FIELD_VALUE                     # the value has a line end or a NUL
    FIELD_ENGINES                   # the field is the engine's to set


# Looks at one field. `length_allowed`: Content-Length may be among them. The engine tells every length but that of a
# body which it never sees: the one that GET would have had, in the answer to a HEAD request (RFC 9110 section 8.6).
cdef FieldFault field_fault(const char *name, size_t name_length, const char *value, size_t value_length,
                            bint length_allowed) noexcept nogil

# Checked header lines with their empty last one. ValueError: a field that field_fault refuses, or too many of them.
cdef bytes header_lines(content_type, bint is_text, headers, bint length_allowed)

# Tags, each ended by NUL. ValueError: one holds a NUL.
cdef bytes tags_text(tags)
