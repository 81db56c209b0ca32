"""A handler's answer with cache_ttl_s is given again without the handler, to whoever asks the same, until it is too old
or purged; what must not be shared is not (RFC 9111 sections 3 and 4, law 3)."""

import threading
import time
from typing import Any

import pytest

import batchbridge as bb
from support.serving import make_server, running
from support.wire import Client, Reply, head


class Counting:
    """A server whose /c/{n} tells how often the handler was called, with whatever `answer` adds to the answer."""

    def __init__(self, engine: str, *, vary: tuple[str, ...] = (), settings: Any = None, **answer: Any) -> None:
        self.server = make_server(engine, **(settings or {}))
        self.calls = 0
        self.answer = {"cache_ttl_s": 60, **answer}

        @self.server.batch("/c/{n}", methods=["GET", "POST"], vary=vary)
        def count(batch: bb.Batch) -> None:
            for request in batch:
                self.calls += 1
                answer = dict(self.answer)
                if request.method == "POST":
                    answer.pop("cache_ttl_s", None)
                request.respond(f"{self.calls}", **answer)


def bodies(client: Client, *requests: tuple[Any, ...]) -> list[bytes]:
    return [client.ask(*request).body for request in requests]


def test_the_handler_is_not_asked_again(engine: str) -> None:
    counting = Counting(engine, headers={"X-Kind": "cached"}, content_type="text/css")
    with running(counting.server) as server, Client(server.url) as client:
        first = client.ask("GET", "/c/1")
        again = [client.ask("GET", "/c/1") for _ in range(5)]
        assert all((reply.status, reply.body) == (200, first.body) for reply in again)
        assert again[0]["x-kind"] == "cached" and again[0]["content-type"] == "text/css"
        assert int(again[0]["age"]) <= 1, "RFC 9111 section 5.1"
        bare = client.ask("HEAD", "/c/1")
        assert bare["content-length"] == "1" and bare.body == b""
        assert client.ask("GET", "/c/2").body == b"2"
        with Client(server.url) as other:
            assert other.ask("GET", "/c/1", version="1.0").body == b"1"
    assert counting.calls == 2
    outcomes = server.stats()["requests"]["outcomes"]
    assert (outcomes["hit"], outcomes["batch"]) == (7, 2)


def test_what_differs_is_another_answer(engine: str) -> None:
    counting = Counting(engine, vary=("Accept-Language", "X-Tenant"))
    with running(counting.server) as server, Client(server.url) as client:
        different = [
            ("GET", "/c/1"), ("GET", "/c/1?q"), ("GET", "/c/1?q="), ("GET", "/c/2"),
            ("GET", "/c/1", ("Accept-Language", "de")), ("GET", "/c/1", ("Accept-Language", "en")),
            ("GET", "/c/1", ("X-Tenant", "de")), ("GET", "/c/1", ("X-Tenant", "a"), ("Accept-Language", "de")),
        ]  # fmt: skip
        first = bodies(client, *different)
        first.append(client.ask("GET", "/c/1", host="other").body)
        assert len(set(first)) == len(first), first
        assert bodies(client, *different) == first[:-1]
        assert client.ask("GET", "/c/1", ("accept-language", "de"), ("Accept", "x")).body == first[4]
        assert client.ask("GET", "/c/1", host="other").body == first[-1]
        assert bodies(client, ("POST", "/c/1")) != first[:1]
        assert bodies(client, ("GET", "/c/1")) == first[:1]
    assert counting.calls == len(first) + 1


def test_an_absolute_target_shares_the_answer(engine: str) -> None:
    counting = Counting(engine)
    with running(counting.server) as server, Client(server.url) as client:
        assert bodies(client, ("GET", "http://test/c/1"), ("GET", "/c/1"), ("GET", "http://test/c/1")) == [b"1"] * 3
        assert server.cache.purge(url="/c/1") == 1
        assert bodies(client, ("GET", "http://test/c/1"), ("GET", "/c/1")) == [b"2"] * 2


@pytest.mark.parametrize("credentials", [("Authorization", "Basic YTpi"), ("Cookie", "session=1")])
def test_credentials_are_not_shared(engine: str, credentials: tuple[str, str]) -> None:
    counting = Counting(engine)
    with running(counting.server) as server, Client(server.url) as client:
        assert bodies(client, ("GET", "/c/1", credentials), ("GET", "/c/1", credentials)) == [b"1", b"2"]
        assert bodies(client, ("GET", "/c/1"), ("GET", "/c/1")) == [b"3", b"3"]
        assert bodies(client, ("GET", "/c/1", credentials)) == [b"4"]


def test_credentials_are_shared_where_the_answer_is_public(engine: str) -> None:
    counting = Counting(engine, public=True)
    with running(counting.server) as server, Client(server.url) as client:
        assert client.ask("GET", "/c/1", ("Authorization", "x")).body == b"1"
        assert bodies(client, ("GET", "/c/1"), ("GET", "/c/1")) == [b"1", b"1"]


def test_a_client_may_insist(engine: str) -> None:
    counting = Counting(engine)
    with running(counting.server) as server, Client(server.url) as client:
        assert client.ask("GET", "/c/1").body == b"1"
        assert client.ask("GET", "/c/1", ("Cache-Control", "no-cache")).body == b"2"
        assert client.ask("GET", "/c/1").body in (b"1", b"2")


def test_it_grows_old(engine: str) -> None:
    counting = Counting(engine, cache_ttl_s=1)
    with running(counting.server) as server, Client(server.url) as client:
        assert bodies(client, ("GET", "/c/1"), ("GET", "/c/1")) == [b"1", b"1"]
        time.sleep(1.1)
        assert bodies(client, ("GET", "/c/1"), ("GET", "/c/1")) == [b"2", b"2"]


@pytest.mark.parametrize("ttl_s", [None, 0])
def test_without_a_time_to_live_nothing_is_kept(engine: str, ttl_s: int | None) -> None:
    counting = Counting(engine, cache_ttl_s=ttl_s)
    with running(counting.server) as server, Client(server.url) as client:
        assert bodies(client, ("GET", "/c/1"), ("GET", "/c/1")) == [b"1", b"2"]


def test_a_ttl_elsewhere_than_get_and_head_is_an_error(engine: str) -> None:
    raised: list[BaseException] = []
    server = make_server(engine)

    @server.batch("/p", methods=["POST"])
    def post(batch: bb.Batch) -> None:
        for request in batch:
            try:
                request.respond(b"x", cache_ttl_s=1)
            except ValueError as error:
                raised.append(error)
                request.respond(b"refused")

    with running(server), Client(server.url) as client:
        assert client.ask("POST", "/p", body=b"").body == b"refused"
    assert "cache_ttl_s" in str(raised[0])


@pytest.mark.parametrize("status", [200, 201, 204, 301, 304, 404, 410, 500])
def test_each_status_is_given_again_as_it_was(engine: str, status: int) -> None:
    counting = Counting(engine, status=status, headers={"Location": "/elsewhere"})
    with running(counting.server) as server, Client(server.url) as client:
        first, again, head_only = client.ask("GET", "/c/1"), client.ask("GET", "/c/1"), client.ask("HEAD", "/c/1")
        assert (first.status, again.status, head_only.status) == (status,) * 3
        assert again.body == first.body and again["location"] == "/elsewhere"
        assert set(again.names()) - {"age"} == set(first.names()) and again.names().count("content-length") <= 1
        if status in (204, 304):
            assert again.body == b"" and "content-length" not in again
        assert client.ask("GET", "/nothing").status == 404, "the connection is in step"


@pytest.mark.parametrize("size_bytes", [0, 1, 8_000, 20_000, 300_000, 3 << 20])
def test_sizes(engine: str, size_bytes: int) -> None:
    calls = 0
    server = make_server(engine)

    @server.batch("/s")
    def sized(batch: bb.Batch) -> None:
        nonlocal calls
        calls += 1
        for request in batch:
            request.respond(b"z" * size_bytes, cache_ttl_s=60)

    with running(server), Client(server.url) as client:
        for _ in range(4):
            assert client.ask("GET", "/s").body == b"z" * size_bytes
        client.send(head("GET", "/s") * 10)
        assert all(len(reply.body) == size_bytes for reply in client.replies(*["GET"] * 10))
    assert calls == 1


def test_what_does_not_fit_is_not_kept_and_evictions_do_no_harm(engine: str) -> None:
    counting = Counting(engine, settings={"cache_size_bytes": 20_000}, headers={"X-Long": "x" * 1500})
    with running(counting.server) as server, Client(server.url) as client:
        for turn in range(60):
            assert client.ask("GET", f"/c/{turn % 30}").status == 200
        cache = server.cache.stats()
        assert cache["evictions"] > 0 and cache["size_bytes"] <= 20_000 and cache["objects"] <= 15
    server = make_server(engine, cache_size_bytes=0)
    server.batch("/n")(lambda batch: [bb.Response(b"x", cache_ttl_s=60)] * len(batch))
    with running(server), Client(server.url) as client:
        assert bodies(client, ("GET", "/n"), ("GET", "/n")) == [b"x", b"x"]
        assert server.stats()["requests"]["outcomes"]["hit"] == 0


# --- purging ----------------------------------------------------------------------------------------------------------


def test_purging(engine: str) -> None:
    counting = Counting(engine, tags=("even",))
    with running(counting.server) as server, Client(server.url) as client:

        def fill() -> list[bytes]:
            return bodies(client, ("GET", "/c/1"), ("GET", "/c/12"), ("GET", "/c/1?q"), ("GET", "/c/2"))

        first = fill()
        assert fill() == first
        assert server.cache.purge(url="/c/nothing") == 0 and fill() == first
        assert server.cache.purge(url="/c/1") == 1
        second = fill()
        assert second[0] != first[0] and second[1:] == first[1:]
        assert server.cache.purge(prefix="/c/1") == 3
        third = fill()
        assert third[3] == first[3] and not set(third[:3]) & set(second[:3])
        assert server.cache.purge(tag="eve") == 0 and server.cache.purge(tag="even") == 4
        assert not set(fill()) & set(third)
        for wrong in ({}, {"url": "/", "tag": "x"}):
            with pytest.raises((ValueError, bb.PurgeError)):
                server.cache.purge(**wrong)


def test_tags_of_one_object(engine: str) -> None:
    counting = Counting(engine, tags=["one", "two", "\u00fc"])
    with running(counting.server) as server, Client(server.url) as client:
        for tag in ("one", "two", "\u00fc"):
            before = client.ask("GET", "/c/1").body
            assert client.ask("GET", "/c/1").body == before
            assert server.cache.purge(tag=tag) == 1
            assert client.ask("GET", "/c/1").body != before


def test_every_host_and_variant_goes_with_a_url(engine: str) -> None:
    counting = Counting(engine, vary=("Accept",))
    with running(counting.server) as server, Client(server.url) as client:
        for host in ("one", "two"):
            for accept in ("a", "b"):
                client.ask("GET", "/c/1", ("Accept", accept), host=host)
        assert server.cache.purge(url="/c/1") == 4


@pytest.mark.parametrize("engine_threads", [1, 2])
def test_after_a_purge_nobody_sees_the_old(engine: str, engine_threads: int) -> None:
    # Law 3, under load: once purge has returned, each request that is sent gets an answer made after it.
    version = 0
    server = make_server(engine, engine_threads=engine_threads)

    @server.batch("/v")
    def tell(batch: bb.Batch) -> None:
        for request in batch:
            request.respond(f"{version}", cache_ttl_s=60, tags=("v",))

    stop = threading.Event()
    stale: list[Reply] = []

    def load() -> None:
        with Client(server.url) as client:
            while not stop.is_set():
                known = purged
                reply = client.ask("GET", "/v")
                if int(reply.body) < known:
                    stale.append(reply)

    purged = 0
    with running(server):
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(1, 150):
            version = number
            server.cache.purge(**({"url": "/v"} if number % 2 else {"tag": "v"}))
            purged = number
            time.sleep(0.001)
        stop.set()
        for thread in threads:
            thread.join()
    assert stale == []
