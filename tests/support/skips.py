"""How a test says that it cannot run here: with a reason code, which `tests/conftest.py` accounts for.

A code names what the machine lacks, in lower case with hyphens (`no-io-uring`, `not-root`). In CI a skip fails the
run unless `tests/allowed-skips.txt` names its code.
"""

import re
from typing import NoReturn

import pytest

_CODED = re.compile(r"\[([a-z0-9]+(?:-[a-z0-9]+)*)\] ")


def skip(code: str, why: str) -> NoReturn:
    """Skip the test that runs, or the whole module where it is called at a module's top."""
    __tracebackhide__ = True  # so that the report names the line of the test
    pytest.skip(_reason(code, why), allow_module_level=True)


def skip_if(condition: bool, code: str, why: str) -> pytest.MarkDecorator:
    """A mark for a test, a class or `pytestmark`."""
    return pytest.mark.skipif(condition, reason=_reason(code, why))


def code_of(reason: str) -> str | None:
    """The code of a skip's reason as pytest reports it; None where the skip did not go through this module."""
    found = _CODED.match(reason.removeprefix("Skipped: "))
    return found and found[1]


def _reason(code: str, why: str) -> str:
    reason = f"[{code}] {why}"
    if code_of(reason) != code:
        raise ValueError(f"a skip's code is lower-case words with hyphens, not {code!r}")
    return reason
