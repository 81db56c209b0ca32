from typing import Final

TABLE: Final[dict[tuple[str, str], str]]

def line_protocol() -> object: ...
