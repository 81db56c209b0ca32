from collections.abc import Sequence
from typing import TypedDict

class Measured(TypedDict):
    rounds: int
    costs_us: dict[int, tuple[float, float]]
    took_us: int
    error: str

def measure(sizes_bytes: Sequence[int], rounds: int, budget_us: int) -> Measured: ...
