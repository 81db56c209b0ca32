from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

BodyLike: TypeAlias = bytes | bytearray | memoryview | str
HeaderPairs: TypeAlias = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]

BYTES_HEADERS: Final[bytes]
TEXT_HEADERS: Final[bytes]

class Response:
    body: BodyLike
    status: int
    content_type: str | None
    headers: HeaderPairs
    cache_ttl_s: float | None
    tags: str | Iterable[str]
    public: bool
    def __init__(
        self,
        body: BodyLike = b"",
        status: int = 200,
        *,
        content_type: str | None = None,
        headers: HeaderPairs = (),
        cache_ttl_s: float | None = None,
        tags: str | Iterable[str] = (),
        public: bool = False,
    ) -> None: ...
