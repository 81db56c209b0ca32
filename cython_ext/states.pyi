from typing import Final

STATE_NAMES: Final[tuple[str, ...]]
EVENT_NAMES: Final[tuple[str, ...]]
