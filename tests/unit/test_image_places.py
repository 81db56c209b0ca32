"""Where published requests are kept: each in a place of the smallest size that it fits into, none on another's bytes; a
size that is full makes room among its own, for one at a time, and not of what is asked for."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from batchbridge.cython_ext.kernel_testing import MemorySide
from support.loop import Loop, get, make_server

#: As in kernel_side/shared.h: the bytes of the longest image of a size, and the numbers of such places.
SMALL, MEDIUM, LARGE = (320, range(8192)), (768, range(8192, 15_360)), (2016, range(15_360, 16_384))
SIZES = (SMALL, MEDIUM, LARGE)
PIPELINED = 60
FILES = {"a": b"the file a", "b": b"another one"}


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    with Loop(make_server(root=str(tmp_path), file_revalidate_s=3600)) as loop:
        yield loop


@pytest.fixture
def side(loop: Loop) -> Iterator[MemorySide]:
    with contextlib.closing(MemorySide(loop.engine)) as side:
        yield side


def request_of(length: int, number: int = 0, name: str = "a") -> bytes:
    """One of exactly so many bytes, and of this number."""
    filler = length - len(get(f"/{name}?{number}", "X:"))
    request = get(f"/{name}?{number}", "X:" + "y" * filler) if filler >= 0 else b""
    assert len(request) == length
    return request


def publish(loop: Loop, side: MemorySide, requests: Sequence[bytes]) -> None:
    """Asks often enough for each of them, on connections that may publish as many; all are answered."""
    for part in range(0, len(requests), PIPELINED):
        asked = requests[part : part + PIPELINED]
        client = loop.connect()
        for _ in range(3):
            loop.send(client, b"".join(asked))
            loop.settle()
            assert [reply.status for reply in loop.replies(client)] == [200] * len(asked)
        loop.engine.feed_end(client)
        loop.settle()
        side.consume()


def numbers(side: MemorySide, requests: Sequence[bytes]) -> list[int]:
    """Of those that are published."""
    return [number for request in requests if (number := side.find(request)) >= 0]


@pytest.mark.parametrize(
    ("length", "places"),
    [
        *((length, SMALL[1]) for length in (40, 63, 64, 65, 319, 320)),
        *((length, MEDIUM[1]) for length in (321, 352, 767, 768)),
        *((length, LARGE[1]) for length in (769, 1024, 2015, 2016)),
        *((length, range(0)) for length in (2017, 2048, 2049)),
    ],
)
def test_the_smallest_size_that_fits(loop: Loop, side: MemorySide, length: int, places: range) -> None:
    request = request_of(length)
    publish(loop, side, [request])
    found = side.find(request)
    assert found in places if places else found == -1
    assert side.images == len(places[:1])
    assert side.find(request_of(length - 1)) == side.find(request_of(length, name="b")) == -1


def test_the_longest_of_each_size_side_by_side(loop: Loop, side: MemorySide) -> None:
    """Each takes all of its place, and is still itself when its neighbours are written."""
    requests = {
        request_of(length, number, name): FILES[name]
        for (length, _), number, name in itertools.product(SIZES, range(40), FILES)
    }
    publish(loop, side, list(requests))
    assert len(set(numbers(side, list(requests)))) == side.images == len(requests)
    client = open_row(loop, side)
    for request, body in requests.items():
        side.recognise(0, side.find(request))
        side.consume()
        loop.settle()
        assert [reply.body for reply in loop.replies(client)] == [body]
    assert side.known == len(requests)


def open_row(loop: Loop, side: MemorySide) -> int:
    """A connection in row 0 that is never read from."""
    side.open(0)
    client = loop.connect()
    side.accept(client, 0, -1)
    side.consume()
    return client


@pytest.mark.parametrize("size", [MEDIUM, LARGE], ids=["medium", "large"])
def test_a_full_size_makes_room_among_its_own(loop: Loop, side: MemorySide, size: tuple[int, range]) -> None:
    length, places = size
    others = [request_of(100, number) for number in range(50)]
    publish(loop, side, others)
    # Larger places that were never taken would be taken first. (Two that meet in the table of what was seen once keep
    # each other out, so more are asked for than there are places.)
    larger = [request_of(LARGE[0], number) for number in range(len(LARGE[1]) + 100 if size is MEDIUM else 0)]
    publish(loop, side, larger)
    of_others = numbers(side, others + larger)
    hot = request_of(length, 1_000_000)
    publish(loop, side, [hot])
    client = open_row(loop, side)
    requests = [request_of(length, number) for number in range(len(places) + 400)]
    for part in range(0, len(requests), PIPELINED):
        publish(loop, side, requests[part : part + PIPELINED])
        side.recognise(0, side.find(hot))
        side.consume()
        loop.settle()
        assert [reply.status for reply in loop.replies(client)] == [200]
    kept = numbers(side, requests)
    assert len(places) - 16 <= len(kept) + 1 <= len(places)
    assert all(number in places for number in kept) and len(set(kept)) == len(kept)
    assert len(numbers(side, requests[-300:])) > 290  # the last have come in
    assert numbers(side, others + larger) == of_others
    assert side.images == len(kept) + 1 + len(of_others)


def test_small_ones_take_larger_places_that_nobody_had(loop: Loop, side: MemorySide) -> None:
    count = sum(len(places) for _, places in SIZES)
    requests = [request_of(100, number) for number in range(count + 1000)]
    publish(loop, side, requests[:8000])
    assert set(numbers(side, requests[:8000])) <= set(SMALL[1])
    publish(loop, side, requests[8000:-400])  # some find no slot of the index
    assert count - 16 < len(set(numbers(side, requests))) <= count
    # Then they make room among the small ones, and larger ones in larger places, though small ones have them.
    publish(loop, side, requests[-400:])
    assert len(numbers(side, requests[-400:])) > 350
    assert set(numbers(side, requests[-400:])) <= set(SMALL[1])
    for length, places in (MEDIUM, LARGE):
        mine = [request_of(length, number) for number in range(20)]
        publish(loop, side, mine)
        assert numbers(side, mine) and set(numbers(side, mine)) <= set(places)
    assert side.images <= count


@pytest.mark.parametrize("what", [{"prefix": "/"}, {"prefix": "/a"}, {"url": "/a"}], ids=str)
def test_a_purge_gives_places_back(loop: Loop, side: MemorySide, what: dict[str, str]) -> None:
    requests = [request_of(length, 0, name) for (length, _), name in itertools.product(SIZES, FILES)]
    for _ in range(3):
        publish(loop, side, requests)
        assert side.images == len(requests)
        loop.server.cache.purge(**what)
        assert [side.find(request) >= 0 for request in requests] == [
            name == "b" and what != {"prefix": "/"} for _, name in itertools.product(SIZES, FILES)
        ]
