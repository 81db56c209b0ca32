from typing import Final

from ..handlers import Handler

HANDLER_ABI: Final[int]
CAPSULE_NAME: Final[str]
REFUSALS: Final[dict[int, str]]

class NativeRoutes:
    def __init__(self, handlers: list[Handler], batch_size_max: int) -> None: ...

def read_capsule(capsule: object) -> tuple[int, int, int, str | None] | None: ...
