from collections.abc import Iterable
from typing import Any

def parse_request(
    data: bytes,
    *,
    cuts: Iterable[int] = (),
    head_size_bytes: int = 65536,
    target_size_bytes: int = 8192,
    header_count: int = 100,
    at_start: bool = False,
) -> dict[str, Any] | int: ...
def decode_chunked_body(
    data: bytes, *, cuts: Iterable[int] = (), room: int | None = None, in_place: bool = False
) -> tuple[bytes, int] | int: ...
def decode_request_path(path: bytes, *, room: int | None = None, in_place: bool = False) -> bytes | int: ...
def measure_parse(data: bytes, rounds: int, step: int = 0) -> float: ...
