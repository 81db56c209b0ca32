from collections.abc import Iterable, Sequence
from typing import Final

CODINGS: Final[tuple[str, ...]]

def rank_for_tests(values: Iterable[bytes], preferred: Sequence[str] = ...) -> list[str]: ...
