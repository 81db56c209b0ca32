"""Files too large for the cache are sent piece by piece from the page cache: whole, to fast and slow readers, also when
they change meanwhile; none leaves its descriptor behind."""

import os
import time

import pytest

from support.serving import make_server, running
from support.site import BIG_SIZE_BYTES, FILES, Site, pattern
from support.wire import Client, await_true, head

WHOLE = FILES["big.bin"]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_whole_and_again(site: Site) -> None:
    with site.client() as client:
        for _ in range(3):
            reply = client.ask("GET", "/big.bin")
            assert reply.body == WHOLE and reply["content-length"] == str(BIG_SIZE_BYTES)


def test_pipelined(site: Site) -> None:
    with site.client() as client:
        client.send(head("GET", "/big.bin") * 3 + head("GET", "/one.txt"))
        assert all(client.reply().body == WHOLE for _ in range(3))
        assert client.reply().body == b"1"


def test_a_slow_reader_gets_all(site: Site) -> None:
    with site.client(receive_buffer_bytes=65_536) as client:
        client.send(head("GET", "/big.bin") + head("GET", "/one.txt"))
        for _ in range(5):
            time.sleep(0.05)
            client.rest += client.socket.recv(3000)
        assert client.reply().body == WHOLE
        assert client.reply().body == b"1"


@pytest.mark.parametrize("size_bytes", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 131_072 * 9, 16_384, 16_383])
def test_sizes_beside_the_limits(site: Site, size_bytes: int) -> None:
    content = pattern(size_bytes)
    (site.root / "sized.bin").write_bytes(content)
    with site.client() as client:
        for _ in range(2):
            reply = client.ask("GET", "/sized.bin")
            assert reply.body == content
        assert client.ask("HEAD", "/sized.bin")["content-length"] == str(size_bytes)


def test_a_file_that_shrinks_while_it_is_sent_breaks_off(site: Site) -> None:
    # Its length was promised, so the only honest end is a broken connection; and nobody else is disturbed.
    path = site.root / "shrinking.bin"
    path.write_bytes(b"z" * (24 << 20))
    with site.client(receive_buffer_bytes=4096) as client:
        client.send(head("GET", "/shrinking.bin"))
        client.rest = client.socket.recv(1000)
        os.truncate(path, 1 << 20)
        got = client.everything()
        assert got.startswith(b"HTTP/1.1 200") and len(got) < 24 << 20
    path.unlink()
    assert site.ask("GET", "/one.txt").body == b"1"


def test_a_file_that_grows_while_it_is_sent_keeps_its_length(site: Site) -> None:
    path = site.root / "growing.bin"
    path.write_bytes(b"a" * (8 << 20))
    with site.client(receive_buffer_bytes=65_536) as client:
        client.send(head("GET", "/growing.bin") + head("GET", "/one.txt"))
        client.rest = client.socket.recv(1000)
        with path.open("ab") as file:
            file.write(b"b" * 1000)
        assert client.reply().body == b"a" * (8 << 20)
        assert client.reply().body == b"1"
    path.unlink()


def test_a_file_that_is_replaced_while_it_is_sent_is_sent_as_it_was(site: Site) -> None:
    path, fresh = site.root / "swapped.bin", site.root / "fresh.bin"
    path.write_bytes(b"a" * (8 << 20))
    fresh.write_bytes(b"b" * (8 << 20))
    with site.client(receive_buffer_bytes=65_536) as client:
        client.send(head("GET", "/swapped.bin"))
        client.rest = client.socket.recv(1000)
        fresh.replace(path)
        assert client.reply().body == b"a" * (8 << 20)
        assert client.ask("GET", "/swapped.bin").body == b"b" * (8 << 20)
    path.unlink()


def test_descriptors_are_given_back(site: Site) -> None:
    etag = site.ask("GET", "/big.bin")["etag"]
    before = open_files()
    with site.client() as client:
        for _ in range(10):
            client.ask("HEAD", "/big.bin")
            client.ask("GET", "/big.bin", ("If-None-Match", etag))
            client.ask("GET", "/big.bin", ("If-Match", '"other"'))
            client.ask("GET", "/big.bin", ("Range", "bytes=9999999-"))
            client.ask("GET", "/big.bin", ("Range", "bytes=0-100"))
            client.ask("GET", "/nothing")
            client.ask("GET", "/fifo")
    for _ in range(10):
        client = site.client(receive_buffer_bytes=4096)
        client.send(head("GET", "/big.bin"))
        client.socket.recv(100)
        client.reset()
    await_true(lambda: open_files() <= before + 1, what="descriptors are closed")


def test_a_cached_file_is_not_read_again(engine: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("kept")
    (root / "kept.txt").write_text("kept\n")
    with (
        running(make_server(engine, root=str(root), file_revalidate_s=0.05)) as server,
        Client(server.url) as client,
    ):
        for _ in range(5):
            assert client.ask("GET", "/kept.txt").body == b"kept\n"
            time.sleep(0.06)  # so that it is compared with the file, which is the same
        outcomes = server.stats()["requests"]["outcomes"]
        assert (outcomes["file"], outcomes["hit"]) == (1, 4)
