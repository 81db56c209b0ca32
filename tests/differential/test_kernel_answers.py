"""What the kernel side answers by itself has the bytes that user mode would have sent, Date and Age aside."""

from collections.abc import Iterator

import pytest

import batchbridge as bb
from support.answering import DATE, Reader, make_answering
from support.serving import make_server, require_engine, running
from support.site import make_root
from support.wire import Client, head

from .test_engines import AGE, REQUESTS, add_routes

#: Those that keep their connection open and may be published; the others never are.
KINDS = [kind for kind in REQUESTS if kind.startswith("get ")]
REPEATS = 8


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[bb.Server]]:
    """Of the same root: one whose kernel side answers, one without any."""
    for engine in ("kernel", "io_uring"):
        require_engine(engine)
    root = make_root(tmp_path_factory.mktemp("answers"))
    answering = make_answering(root=str(root), file_revalidate_s=60.0)
    plain = make_server("io_uring", root=str(root), file_revalidate_s=60.0)
    for server in (answering, plain):
        add_routes(server)
    with running(answering), running(plain):
        yield [answering, plain]


def answers(server: bb.Server, request: bytes) -> list[bytes]:
    with Client(server.url) as client:
        reader = Reader(client.socket)
        found = []
        for _ in range(REPEATS):
            client.send(request)
            found.append(AGE.sub(b"", DATE.sub(b"", reader.response())))
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes(servers: list[bb.Server], kind: str) -> None:
    if kind == "get /nocontent":
        return  # has no Content-Length to read by, and is never published
    answering, plain = servers
    assert answers(answering, REQUESTS[kind]) == answers(plain, REQUESTS[kind])


def test_files_and_kept_answers_are_answered_by_the_kernel_side(servers: list[bb.Server]) -> None:
    answering, _ = servers
    for target in ("/a.txt", "/kept", "/items/a", "/one.txt"):
        before = answering.stats()["kernel_side"]["answered"]
        assert len(set(answers(answering, head("GET", target, ("X-Once-More", "1"))))) == 1
        after = answering.stats()["kernel_side"]["answered"]
        assert (after > before) == (target != "/items/a"), target
