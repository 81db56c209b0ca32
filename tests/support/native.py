"""Native handlers for tests: `handlers.c`, compiled against the installed header as a user would."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

import batchbridge as bb

from .skips import skip

SOURCE = Path(__file__).with_name("handlers.c")
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def require_compiler(name: str) -> str:
    """The compiler's path; without it the test is skipped."""
    found = shutil.which(name)
    return found or skip("no-compiler", f"{name} is not installed")


def compile_library(source: Path, folder: Path, *options: str) -> Path:
    library = folder / f"{source.stem}.so"
    command = [require_compiler("cc"), "-O2", "-shared", "-fPIC", *options, "-I", bb.get_include()]
    done = subprocess.run([*command, str(source), "-o", str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


@pytest.fixture(scope="session")
def natives(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library of `handlers.c`."""
    library = compile_library(SOURCE, tmp_path_factory.mktemp("native"), "-std=c11", *STRICT)
    return ctypes.CDLL(str(library))


class Notes(ctypes.Structure):
    """What handlers in `handlers.c` are given as their context, and write down."""

    _fields_ = (
        ("calls", ctypes.c_uint32),
        ("items", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("codes", ctypes.c_int32 * 64),
        ("is_open", ctypes.c_uint32),
        ("waiting", ctypes.c_uint32),
        ("cancelled", ctypes.c_uint32),
        ("time_left_us", ctypes.c_int64),
    )

    def noted(self) -> list[int]:
        """The codes that answers came back with."""
        return list(self.codes[: self.count])
