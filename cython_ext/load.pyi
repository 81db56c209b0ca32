from collections.abc import Iterable, Sequence
from typing import Any

FAILURE_NAMES: tuple[str, ...]
WRONG_NAMES: tuple[str, ...]
ARRIVALS: tuple[str, ...]
LATENCY_SHARES: dict[str, float]

class Exchange:
    data: bytes
    weight: float
    statuses: tuple[int, ...]
    is_status_given: bool
    body: bytes | None
    length: int | None
    crc32: int | None
    name: str
    def __init__(
        self,
        data: bytes,
        *,
        weight: float = 1.0,
        statuses: Iterable[int] | None = None,
        body: bytes | None = None,
        length: int | None = None,
        crc32: int | None = None,
        name: str | None = None,
    ) -> None: ...
    def closing(self) -> bytes: ...

def sequence(exchanges: Sequence[Exchange], seed: int) -> list[int]: ...
def allow_descriptors(needed: int) -> None: ...

class Load:
    def __init__(
        self,
        host: str,
        port: int,
        exchanges: Iterable[Exchange],
        connections: int = 64,
        seconds: float = 5.0,
        *,
        warmup_s: float = 0.0,
        requests_max: int = 0,
        close: bool = False,
        pipeline: int = 1,
        seed: int = 1,
        timeout_s: float = 10.0,
        drain_s: float = 5.0,
        retries: int = 10,
        rate_per_s: float | None = None,
        arrivals: str = "poisson",
    ) -> None: ...
    @property
    def exchanges(self) -> list[Exchange]: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def responses(self) -> int: ...
    def run(self) -> dict[str, Any]: ...
    def stop(self) -> None: ...
    def histogram(self) -> list[tuple[int, int]]: ...
    def answered(self) -> list[dict[int, int]]: ...
    def first_wrong(self) -> str: ...
    def results(self) -> dict[str, Any]: ...
