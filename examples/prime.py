"""A native handler: prime.c is compiled when this starts, and answers batches without Python.

batchbridge serve --app examples/prime.py:server
curl http://127.0.0.1:8080/prime/97
"""

import ctypes
import subprocess
import tempfile
from pathlib import Path

import batchbridge as bb

SOURCE = Path(__file__).with_name("prime.c")


def compiled(source: Path) -> ctypes.CDLL:
    """The library that the system's compiler makes of a source file."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, source.with_suffix(".so").name)
        subprocess.run(
            ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-I", bb.get_include(), str(source), "-o", str(library)],
            check=True,
        )
        return ctypes.CDLL(str(library))


server = bb.Server()
server.native("/prime/{number}", compiled(SOURCE).prime)


if __name__ == "__main__":
    server.run()
