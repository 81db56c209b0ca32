"""Which functions can be native handlers, and by which errors the others are refused; a test client runs them, too."""

import ctypes
import gc
import importlib.util
import weakref
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from batchbridge.native import native_function
from support.loop import get, looping, make_server
from support.native import Notes
from support.native import natives as natives
from support.skips import skip

FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def address_of(natives: Any, name: str) -> int:
    address = ctypes.cast(getattr(natives, name), ctypes.c_void_p).value
    assert address
    return address


def capsule_of(natives: Any, name: str, called: bytes = b"batchbridge.handler") -> Any:
    return new_capsule(address_of(natives, name), called, None)


class Compiled:
    """As compilers' Python faces give functions: with an address."""

    def __init__(self, address: Any) -> None:
        self.address = address


def served(function: Any, **route: Any) -> str:
    server = bb.Server()
    server.native("/x/{n}", function, **route)
    with server.test_client() as client:
        return client.get("/x/served").text


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_a_function_is_said_in_many_ways(natives: Any) -> None:
    address = address_of(natives, "echo")
    capsule = capsule_of(natives, "echo_handler")
    for given in (natives.echo, address, ctypes.c_void_p(address), Compiled(address), capsule):
        assert served(given) == "served"
    assert served(natives.echo, abi=1) == "served"


def test_a_cffi_pointer(natives: Any) -> None:
    if importlib.util.find_spec("cffi") is None:
        skip("no-cffi", "cffi is not installed")
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("void echo(void *batch);")
    library = ffi.dlopen(natives._name)
    assert served(ffi.addressof(library, "echo")) == "served"
    assert served(ffi.cast("void *", address_of(natives, "echo"))) == "served"
    with pytest.raises(bb.ConfigError, match="no pointer"):
        native_function(ffi.new("struct { int a; } *")[0])


def test_a_callback_into_python_is_a_function_like_any_other() -> None:
    sizes = []

    @FUNCTION
    def callback(batch: int) -> None:
        sizes.append(ctypes.c_uint32.from_address(batch + 4).value)

    server = bb.Server()
    server.native("/x/{n}", callback)
    with server.test_client() as client:
        assert [reply.status for reply in client.batch(["/x/1", "/x/2"])] == [500, 500]
    assert sizes == [2]


def test_a_context_is_an_object_of_ctypes_or_an_address(natives: Any) -> None:
    as_pointer = [lambda notes: notes, ctypes.addressof, ctypes.pointer, lambda n: ctypes.c_void_p(ctypes.addressof(n))]
    for given in as_pointer:
        notes = Notes()
        assert served(natives.echo, context=given(notes)) == "served"
        assert (notes.calls, notes.items) == (1, 1)
    array = (ctypes.c_uint32 * 128)()
    assert served(natives.echo, context=array) == "served" and array[0] == 1


def test_how_log_lines_call_it(natives: Any) -> None:
    assert native_function(natives.echo).name == "echo"
    assert native_function(capsule_of(natives, "echo_handler")).name == "the echo"
    assert native_function(0x1234).name == "the function at 0x1234"


def test_what_it_needs_lives_as_long_as_the_server(natives: Any) -> None:
    class Thing:
        pass

    thing = Thing()
    alive = weakref.ref(thing)
    server = bb.Server()
    server.native("/x/{n}", natives.echo, keep=thing)
    del thing
    gc.collect()
    assert alive() is not None
    del server
    gc.collect()
    assert alive() is None


def test_the_header_is_installed() -> None:
    header = Path(bb.get_include(), "batchbridge.h")
    assert "BB_HANDLER_ABI" in header.read_text()


# --- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "no compiled function"),
        ("echo", "no compiled function"),
        (True, "no compiled function"),
        (1.5, "no compiled function"),
        (lambda batch: None, "a Python function is a handler for server.batch"),
        (print, "a Python function is a handler for server.batch"),
        (Compiled("0x10"), "no compiled function"),
        (Compiled(-5), "-5 is no address"),
        (-1, "-1 is no address"),
        (1 << 64, "is no address"),
        (0, "its address is NULL"),
        (ctypes.c_void_p(), "its address is NULL"),
        (FUNCTION(), "its address is NULL"),
    ],
)
def test_what_is_no_function_is_said_so(given: Any, said: str) -> None:
    server = bb.Server()
    with pytest.raises(bb.ConfigError, match=said) as caught:
        server.native("/x", given)
    assert "/x" in str(caught.value) and not server.handlers


def test_capsules_must_be_ours_and_of_our_version(natives: Any) -> None:
    with pytest.raises(bb.ConfigError, match=r'name is not "batchbridge\.handler"'):
        native_function(capsule_of(natives, "echo_handler", b"other.handler"))
    with pytest.raises(bb.ConfigError, match=r"version 2 of batchbridge\.h; this batchbridge takes versions 1 to 1"):
        native_function(capsule_of(natives, "echo_of_tomorrow"))
    with pytest.raises(bb.ConfigError, match="for version 0"):
        native_function(capsule_of(natives, "echo_of_never"))
    with pytest.raises(bb.ConfigError, match="NULL"):
        native_function(capsule_of(natives, "nothing"))
    for told in ({"context": 5}, {"abi": 1}):
        with pytest.raises(bb.ConfigError, match="a capsule says its context and its abi itself"):
            native_function(capsule_of(natives, "echo_handler"), **told)


def test_a_version_that_is_not_ours(natives: Any) -> None:
    for abi in (0, 2, 99):
        with pytest.raises(bb.ConfigError, match=f"version {abi} "):
            native_function(natives.echo, abi=abi)


@pytest.mark.parametrize("context", ["text", 1.5, True, -1, object()])
def test_what_is_no_context(natives: Any, context: Any) -> None:
    with pytest.raises(bb.ConfigError, match="context"):
        native_function(natives.echo, context=context)


def test_routes_are_checked_as_for_python_handlers(natives: Any) -> None:
    server = bb.Server()
    server.native("/x/{n}", natives.echo, max_batch_size=5)
    assert server.policy("/x/{n}").max_batch_size == 5
    assert server.set_policy("/x/{n}", max_batch_size=6).max_batch_size == 6
    for path, options, said in (
        ("/x/{n}", {}, "declared twice"),
        ("no slash", {}, "does not begin"),
        ("/y", {"methods": []}, "methods"),
        ("/y", {"methods": ["BREW"]}, "BREW"),
        ("/y", {"vary": ["a b"]}, "not a header name"),
        ("/y", {"decode": bb.Json()}, "decode=Array"),
        ("/y", {"max_batch": 5}, "max_batch"),
    ):
        with pytest.raises(bb.ConfigError, match=said):
            server.native(path, natives.echo, **options)
    assert list(server.handlers) == ["/x/{n}"]
    with server.test_client(), pytest.raises(bb.ConfigError, match="while the server runs"):
        server.native("/z", natives.echo)


# --- batches under way ------------------------------------------------------------------------------------------------


def test_slabs_are_used_again(natives: Any) -> None:
    server = make_server()
    server.native("/x/{n}", natives.echo, max_batch_size=3)
    with looping(server, inline=True, handler_queue_slabs=2) as loop:
        for turn in range(300):
            clients = [loop.connect(get(f"/x/{turn}-{number}")) for number in range(5)]
            loop.settle()
            assert [loop.replies(client)[0].text for client in clients] == [f"{turn}-{n}" for n in range(5)]
            for client in clients:
                loop.engine.reset(client)
        assert loop.stats["bridge"]["slabs_in_use"] <= 1


def test_items_of_clients_that_went_are_not_in_the_batch(natives: Any) -> None:
    notes = Notes()
    server = make_server()
    server.native("/x/{n}", natives.echo, context=notes, policy="fixed", max_queue_delay_us=1000)
    with looping(server, inline=True) as loop:
        clients = [loop.connect(get(f"/x/{number}")) for number in range(4)]
        loop.turn()
        loop.engine.reset(clients[1])
        loop.settle(2000)
        assert [loop.replies(clients[number])[0].text for number in (0, 2, 3)] == ["0", "2", "3"]
        assert loop.stats["bridge"]["dropped_disconnected"] == 1 and notes.items == 3


def test_an_arena_that_slow_clients_hold_spills_to_the_heap_then_to_503(natives: Any) -> None:
    server = make_server(response_arena_size_bytes=128 * 1024, response_size_bytes_max=60_000)
    server.native("/x", natives.body, methods=["POST"], max_queue_size=100)
    with looping(server, inline=True) as loop:
        clients = []
        for number in range(20):
            body = bytes([number]) * 50_000
            request = b"POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 50000\r\n\r\n" + body
            client = loop.connect(request)
            loop.engine.send_limit(client, 0)
            loop.settle()
            clients.append((client, body))
        statuses = []
        for client, body in clients:
            loop.engine.send_limit(client, None)
            loop.settle()
            (reply,) = loop.replies(client)
            statuses.append(reply.status)
            assert reply.status == 503 or reply.body == body
        assert statuses.count(200) >= 8 and set(statuses) <= {200, 503} and 503 in statuses
