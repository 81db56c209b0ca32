"""What handlers answer with: a response, and the bytes that its fields become.

The rule: what would break the message, or is the engine's to say, is refused before anything is written.
"""
from libc.stdint cimport uint32_t
from libc.string cimport strlen

from batchbridge.cython_ext.octets cimport TOKEN, byte_class, same_word

#: The header lines of an answer of which nothing more is said, by what its body is.
BYTES_HEADERS = b"Content-Type: application/octet-stream\r\n\r\n"
TEXT_HEADERS = b"Content-Type: text/plain; charset=utf-8\r\n\r\n"

cdef const char *ENGINE_NAMES[8]
ENGINE_NAMES[:] = [
    b"content-length", b"connection", b"transfer-encoding", b"date", b"server", b"keep-alive", b"upgrade", b"trailer"]


class Response:
    """A response to return from a handler for one item.

    ``body`` is bytes-like or str (then UTF-8); ``content_type`` defaults to ``application/octet-stream`` or, for a str,
    ``text/plain; charset=utf-8``. ``headers`` are further (name, value) pairs or a mapping. ``cache_ttl_s`` lets the
    engine answer identical GET and HEAD requests by itself for so many seconds, ``tags`` name it for a purge,
    ``public`` allows both although the request had credentials.
    """

    __slots__ = ("body", "status", "content_type", "headers", "cache_ttl_s", "tags", "public")

    def __init__(self, body=b"", status=200, *, content_type=None, headers=(), cache_ttl_s=None, tags=(), public=False):
        self.body = body
        self.status = status
        self.content_type = content_type
        self.headers = headers
        self.cache_ttl_s = cache_ttl_s
        self.tags = tags
        self.public = public

    def __repr__(self):
        return f"<Response {self.status}, {len(self.body)} bytes>"


# --- header fields ---------------------------------------------------------------------------------------------------

cdef FieldFault field_fault(const char *name, size_t name_length, const char *value, size_t value_length,
                            bint length_allowed) noexcept nogil:
    cdef size_t index
    if name_length == 0 or name_length > HEADERS_SIZE_MAX:
        return FIELD_NAME
    for index in range(name_length):
        if not byte_class(name[index]) & TOKEN:
            return FIELD_NAME
    for index in range(value_length):
        if value[index] == c"\r" or value[index] == c"\n" or value[index] == 0:
            return FIELD_VALUE
    for index in range(8):
        if name_length == strlen(ENGINE_NAMES[index]) and same_word(name, ENGINE_NAMES[index], <uint32_t>name_length):
            if index == 0 and length_allowed and is_number(value, value_length):
                return FIELD_FINE
            return FIELD_ENGINES
    return FIELD_FINE


cdef bint is_number(const char *text, size_t length) noexcept nogil:
    cdef size_t index
    for index in range(length):
        if not c"0" <= text[index] <= c"9":
            return False
    return length > 0


cdef bytes header_lines(content_type, bint is_text, headers, bint length_allowed):
    cdef bytes name, value
    cdef FieldFault fault
    if content_type is None and not headers:
        return TEXT_HEADERS if is_text else BYTES_HEADERS
    lines = []
    if content_type is None:
        content_type = "text/plain; charset=utf-8" if is_text else "application/octet-stream"
    pairs = list(headers.items() if hasattr(headers, "items") else headers)
    if content_type and not any(str_or_bytes(name).lower() == b"content-type" for name, _ in pairs):
        pairs.insert(0, ("Content-Type", content_type))
    for given_name, given_value in pairs:
        name, value = str_or_bytes(given_name), str_or_bytes(given_value)
        fault = field_fault(<const char *>name, len(name), <const char *>value, len(value), length_allowed)
        if fault == FIELD_NAME:
            raise ValueError(f"{given_name!r} is not a header name")
        if fault == FIELD_VALUE:
            raise ValueError(f"the value of header {given_name!r} has a line end or a NUL: {given_value!r}")
        if fault == FIELD_ENGINES:
            raise ValueError(f"the header {given_name!r} is the engine's to set")
        lines.append(b"%b: %b\r\n" % (name, value.strip()))
    text = b"".join(lines) + b"\r\n"
    if len(text) > HEADERS_SIZE_MAX:
        raise ValueError(f"{len(text)} bytes of header lines are more than {HEADERS_SIZE_MAX}")
    return text


cdef bytes tags_text(tags):
    names = [str(tag).encode() for tag in tags]
    for name in names:
        if b"\0" in name:
            raise ValueError(f"the tag {name.decode()!r} holds a NUL")
    return b"".join(name + b"\0" for name in names)


cdef bytes str_or_bytes(text):
    return text if isinstance(text, bytes) else str(text).encode("latin-1")
