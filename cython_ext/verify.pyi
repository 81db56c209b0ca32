from collections.abc import Iterable

def read_all(
    pieces: Iterable[bytes],
    *,
    statuses: Iterable[int] = (200,),
    body: bytes | None = None,
    crc: int | None = None,
    length: int = -1,
    is_head: bool = False,
    ended: bool = True,
) -> list[tuple[int, int, int, bool] | str]: ...
def crc32_of(data: bytes, crc: int = 0) -> int: ...
