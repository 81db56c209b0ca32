"""A native handler may be written in Cython, in C++, and as the example shows it."""

import ctypes
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchbridge as bb
from support.native import compile_library, require_compiler
from support.serving import running
from support.skips import skip
from support.wire import Client

CYTHON = """
from batchbridge.native cimport (
    BB_CAPSULE_NAME, BB_HANDLER_ABI, bb_batch, bb_get_request, bb_handler, bb_request, bb_respond)
from cpython.pycapsule cimport PyCapsule_New

cdef void answer(bb_batch *batch) noexcept nogil:
    cdef bb_request request
    for index in range(batch.size):
        bb_get_request(batch, index, &request)
        bb_respond(batch, index, 200, b"text/plain", request.path.data, request.path.length)

cdef bb_handler handler
handler.abi = BB_HANDLER_ABI
handler.function = answer
handler.name = b"cython"
capsule = PyCapsule_New(&handler, BB_CAPSULE_NAME, NULL)
"""

CXX = """
#include <batchbridge.h>
extern "C" void answer(bb_batch *batch) {
    for (uint32_t index = 0; index < batch->size; ++index) {
        bb_request request{};
        bb_get_request(batch, index, &request);
        bb_respond(batch, index, 200, "text/plain", request.path.data, request.path.length);
    }
}
"""


def python_headers() -> list[str]:
    import sysconfig

    return ["-I", sysconfig.get_path("include"), "-Wno-unused-function"]


def test_a_handler_in_cython(tmp_path: Path) -> None:
    source = tmp_path / "answering.pyx"
    source.write_text(CYTHON)
    if importlib.util.find_spec("Cython") is None:
        skip("no-cython", "Cython is not installed")
    subprocess.run([sys.executable, "-P", "-m", "cython", "-3", str(source)], check=True, cwd=tmp_path)
    library = compile_library(source.with_suffix(".c"), tmp_path, *python_headers())
    spec = importlib.util.spec_from_file_location("answering", library)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = bb.Server()
    server.native("/x/{n}", module.capsule)
    with server.test_client() as client:
        assert client.get("/x/cython").text == "/x/cython"
        assert server.handlers["/x/{n}"].name == "cython"


def test_a_handler_in_cxx(tmp_path: Path) -> None:
    source, library = tmp_path / "answering.cc", tmp_path / "answering.so"
    source.write_text(CXX)
    command = [require_compiler("c++"), "-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-I", bb.get_include(), str(source), "-o", str(library)], check=True)
    server = bb.Server()
    server.native("/x/{n}", ctypes.CDLL(str(library)).answer)
    with server.test_client() as client:
        assert client.get("/x/cxx").text == "/x/cxx"


@pytest.fixture
def unloaded() -> Iterator[None]:
    yield
    sys.modules.pop("prime", None)


@pytest.mark.usefixtures("unloaded")
def test_the_example_as_it_stands(engine: str) -> None:
    from batchbridge.loading import load

    require_compiler("cc")
    server = load(f"{Path(__file__).parents[2] / 'examples' / 'prime.py'}:server")
    server.configure({"bind": ("127.0.0.1:0",), "engine": engine})
    with running(server), Client(server.url) as client:
        assert client.ask("GET", "/prime/97").body == b"prime\n"
        assert client.ask("GET", "/prime/91").body == b"not prime\n"
        assert client.ask("GET", "/prime/-1").status == 400
