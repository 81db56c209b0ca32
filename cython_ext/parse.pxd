# Bytes to a request head (RFC 9110, RFC 9112).
#
# The parser is pure: it reads the bytes it is given, writes the structure it is given, allocates nothing, keeps
# nothing, and never reads past `length`. Everything it finds is told as offsets from the first byte of the head, so a
# head can be moved or shared with another address space as it stands.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t


cdef extern from "shared.h":
    # Part of a head: bytes [offset, offset + length). An absent part has length 0 and offset 0; an empty but present
    # one has length 0 and offset > 0.
    ctypedef struct Slice "bb_slice":
        uint32_t offset
        uint32_t length


cpdef enum Method:
    METHOD_OTHER = 0        # a valid token that is none of the below; its text is in `method_name`
    METHOD_GET
    METHOD_HEAD
    METHOD_POST
    METHOD_PUT
    METHOD_DELETE
    METHOD_OPTIONS
    METHOD_PATCH
    METHOD_CONNECT
    METHOD_TRACE
    METHOD_COUNT


# What a target looked like (RFC 9112 section 3.2).
cpdef enum TargetForm:
    TARGET_ORIGIN = 0
    TARGET_ABSOLUTE
    TARGET_AUTHORITY        # CONNECT only
    TARGET_ASTERISK         # OPTIONS only
    TARGET_KEY              # of another protocol, whose requests name no version


cpdef enum HeadFlag:
    HEAD_KEEP_ALIVE = 1             # the connection persists after this request (version, Connection, not CONNECT)
    HEAD_CHUNKED = 2                # a body in chunked coding follows
    HEAD_LENGTH = 4                 # Content-Length was given (also when it is 0)
    HEAD_EXPECT_CONTINUE = 8        # Expect: 100-continue, from HTTP/1.1
    HEAD_CONDITIONAL = 16           # any of If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since
    HEAD_RANGE = 32                 # Range is present
    HEAD_CREDENTIALS = 64           # Authorization or Cookie is present
    HEAD_ESCAPED = 128              # the path holds '%', so it must be decoded before it names anything
    HEAD_DOTS = 256                 # the path holds a segment "." or "..", or an empty one ("//")
    HEAD_UPGRADE = 512              # Upgrade is present (ignored, as RFC 9110 section 7.8 allows)
    HEAD_NO_CACHE = 1024            # Cache-Control with no-cache or no-store, or Pragma: no-cache


# Headers whose values the engine itself looks at; each at most once in a valid request, except where said: of those
# the first line's value is told, and `known_repeated` tells whether there were more.
cpdef enum KnownHeader:
    HEADER_HOST = 0
    HEADER_USER_AGENT               # may be repeated
    HEADER_REFERER                  # may be repeated
    HEADER_CONTENT_TYPE
    HEADER_IF_MATCH                 # may be repeated: a list on several lines
    HEADER_IF_NONE_MATCH            # the same
    HEADER_IF_MODIFIED_SINCE
    HEADER_IF_UNMODIFIED_SINCE
    HEADER_RANGE
    HEADER_IF_RANGE
    HEADER_ACCEPT_ENCODING          # the same
    HEADER_AUTHORIZATION
    HEADER_COOKIE                   # may be repeated
    HEADER_KNOWN_COUNT


cdef struct Head:
    uint32_t head_length            # bytes, up to and with the empty line (leading empty lines included)
    uint16_t flags                  # HeadFlag
    uint8_t method                  # Method
    uint8_t version_minor           # 0 or 1
    uint8_t target_form             # TargetForm
    uint16_t header_count
    uint16_t known_repeated         # bit KnownHeader: that header came more than once
    int64_t content_length          # bytes; 0 where none was given
    Slice method_name
    Slice target                    # as on the wire
    # Of the target, without query, as on the wire: "/..."; "/" too for an absolute target without path; "*" for
    # TARGET_ASTERISK; absent for TARGET_AUTHORITY.
    Slice path
    Slice query                     # after '?', without it; may be empty
    Slice authority                 # of an absolute target, CONNECT's target, else Host's value: host[:port]
    Slice headers                   # all header lines, each with its CRLF, without the final empty line
    Slice[13] known                 # values, by KnownHeader, without white space around them


cdef enum:
    HEAD_SIZE_MAX = 0x3FFFFFFF      # bytes; the most that head_size_bytes may be


cdef struct HeadLimits:
    uint32_t head_size_bytes        # a longer head is 431 (414 where the request line alone is longer)
    uint32_t target_size_bytes      # a longer target is 414
    uint32_t header_count           # more lines are 431


# Parses one request head at data[0:length].
# Returns head_length (> 0) when it is whole, 0 when bytes are missing, or -status of the error response that is due
# (400, 414, 417, 431, 501, 505), after which the connection must be closed. `head` says something only when it is
# whole; otherwise it holds zeros and some parts of this head, never another one's.
# `scanned` (in, out) remembers between calls on the same, growing bytes how far they were judged and searched, so that
# a head that comes byte by byte costs linear time. It is 0 at first, and else the parser's own: not a plain length.
# The bytes may move between calls, and `head` may be another one each time.
# The verdict does not depend on how the bytes were cut: a malformed head may be refused before it is whole (a request
# line always is, as soon as the fault is there; so is a line feed without carriage return), and is at the latest when
# it is whole or longer than the limit, whichever comes first.
# Up to four empty lines before the request line belong to the head. An arrival of nothing else leaves 0.
cdef int parse_head(const char *data, uint32_t length, uint32_t *scanned, const HeadLimits *limits,
                    Head *head) noexcept nogil


# Iterates header lines: `cursor` is an offset into the head (start with head.headers.offset); returns 1 and one line's
# name and value (without white space around), 0 after the last. Only for heads that parse_head accepted.
cdef int next_header(const char *data, const Head *head, uint32_t *cursor, Slice *name, Slice *value) noexcept nogil


# Bytes of a request line, as the access log shows it: method, target, and where there is one the version.
cdef inline uint32_t request_line_length(const Head *head) noexcept nogil:
    cdef uint32_t version_length = 0 if head.target_form == TARGET_KEY else 9
    return head.target.offset + head.target.length + version_length - head.method_name.offset
