"""The admin server answers what is documented, refuses the rest with a reason, and stays bounded."""

import http.client
import json
import socket
import time

import pytest

from batchbridge import admin
from batchbridge.cli import main
from batchbridge.errors import BindError, PurgeError
from batchbridge.policy import BatchPolicy


class FakeServer:
    """What admin asks of a server, and no more."""

    def __init__(self):
        self.draining = False
        self.cache = self
        self.policies = {"/score/{model}": BatchPolicy()}
        self.purged = []

    def stats(self):
        return {"routes": {path: {"items": 3} for path in self.policies}, "cache": {"hits": 1234, "state": "warm"}}

    def policy(self, path):
        return self.policies[path]

    def set_policy(self, path, **changes):
        self.policies[path] = self.policies[path].changed(**changes)

    def purge(self, *, url=None, prefix=None, tag=None, soft=False):
        if tag == "bad":
            raise PurgeError("this tag cannot be purged")
        self.purged.append((url, prefix, tag, soft))
        return 3


@pytest.fixture
def server():
    return FakeServer()


@pytest.fixture
def running(server):
    running = admin.start(server, "127.0.0.1:0")
    yield running
    running.close()


@pytest.fixture
def ask(running):
    def ask(method, path, content=None, headers=None):
        connection = http.client.HTTPConnection(*running.address, timeout=5)
        body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
        try:
            connection.request(method, path, body, headers or {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, json.loads(text) if is_json and text else text
        finally:
            connection.close()

    return ask


def test_health_follows_the_drain(ask, server):
    assert ask("GET", "/healthz") == (200, "ok\n")
    assert ask("HEAD", "/healthz") == (200, "")
    server.draining = True
    assert ask("GET", "/healthz") == (503, "draining\n")


def test_metrics_and_statistics(ask):
    status, text = ask("GET", "/metrics")
    assert status == 200
    assert 'batchbridge_batch_items_total{route="/score/{model}"} 3.0' in text
    assert ask("GET", "/metrics")[0] == 200
    assert ask("GET", "/stats")[1]["cache"]["hits"] == 1234
    assert ask("GET", "/cache/stats") == (200, {"hits": 1234, "state": "warm"})


def test_a_policy_is_read_and_changed(ask, server):
    path = "/policy?path=/score/%7Bmodel%7D"
    assert ask("GET", path)[1]["max_batch_size"] == 64
    status, policy = ask("POST", path, {"max_batch_size": 128, "max_queue_delay_us": 200})
    assert (status, policy["max_batch_size"]) == (200, 128)
    assert server.policies["/score/{model}"].max_queue_delay_us == 200
    assert ask("GET", "/policy")[1]["/score/{model}"]["max_batch_size"] == 128


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "words"),
    [
        ("GET", "/nothing", None, 404, "is not there"),
        ("POST", "/healthz", {}, 404, "POST /healthz is not there"),
        ("GET", "/policy?path=/no", None, 404, "'/no' is not a route"),
        ("POST", "/policy?path=/no", {}, 404, "'/no' is not a route"),
        ("POST", "/policy", {}, 400, "name the route"),
        ("POST", "/policy?path=/score/{model}", {"max_batch_size": 0}, 400, "max_batch_size: 0 is out of range"),
        ("POST", "/policy?path=/score/{model}", {"zzz": 0}, 400, "zzz is not a setting of a batch policy"),
        ("POST", "/policy?path=/score/{model}", [], 400, "not a JSON object"),
        ("POST", "/cache/purge", b"{", 400, "not JSON"),
        ("POST", "/cache/purge", {}, 400, "exactly one of url, prefix and tag"),
        ("POST", "/cache/purge", {"url": "a", "tag": "b"}, 400, "exactly one of"),
        ("POST", "/cache/purge", {"all": "a"}, 400, "exactly one of"),
        ("POST", "/cache/purge", {"url": 5}, 400, "url: 5 is not a text"),
        ("POST", "/cache/purge", {"soft": True}, 400, "exactly one of"),
        ("POST", "/cache/purge", {"tag": "a", "soft": 1}, 400, "soft: 1 is neither true nor false"),
        ("POST", "/cache/purge", {"tag": "bad"}, 400, "this tag cannot be purged"),
        ("POST", "/cache/purge", b"x" * 70_000, 413, "longer than 65536"),
    ],
)
def test_what_is_wrong_is_refused_with_a_reason(ask, server, method, path, content, status, words):
    got, answer = ask(method, path, content)
    assert got == status
    assert words in answer["error"]
    assert server.purged == []


def test_a_web_page_cannot_purge(ask, server):
    for media_type in ("text/plain", "application/x-www-form-urlencoded"):
        assert ask("POST", "/cache/purge", {"url": "/"}, {"Content-Type": media_type})[0] == 415
    assert server.purged == []


def test_an_exception_of_the_server_is_a_500_and_the_next_request_is_answered(ask, server, monkeypatch):
    monkeypatch.setattr(server, "stats", lambda: 1 / 0)
    assert ask("GET", "/stats") == (500, {"error": "ZeroDivisionError: division by zero"})
    assert ask("GET", "/healthz")[0] == 200


def test_a_port_in_use_is_one_sentence(running, server):
    with pytest.raises(BindError, match=r"cannot listen on 127.0.0.1:\d+: address already in use"):
        admin.start(server, running.address)


def test_clients_beyond_the_limit_are_closed_and_places_come_free(running, ask):
    held = [socket.create_connection(running.address) for _ in range(admin.CLIENTS_MAX)]
    try:
        with socket.create_connection(running.address, timeout=5) as one_more:
            assert one_more.recv(1) == b""
    finally:
        for connection in held:
            connection.close()
    deadline = time.monotonic() + 5
    while True:
        try:
            assert ask("GET", "/healthz")[0] == 200
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_closing_ends_it_at_once(server):
    running = admin.start(server, "127.0.0.1:0")
    started = time.monotonic()
    running.close()
    assert time.monotonic() - started < 1
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(running.address)


def test_ipv6(server):
    try:
        running = admin.start(server, "[::1]:0")
    except BindError:
        assert not has_ipv6_loopback()
        return
    assert running.url.startswith("http://[::1]:")
    running.close()


def has_ipv6_loopback():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


# The commands that ask it


def test_cache_stats(running, capsys):
    assert main(["cache", "stats", "--admin", running.url]) == 0
    assert capsys.readouterr().out == "hits   1,234\nstate  warm\n"
    assert main(["cache", "stats", "--admin", str(running.address), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"hits": 1234, "state": "warm"}


def test_cache_purge(running, server, capsys):
    assert main(["cache", "purge", "--admin", running.url, "--tag", "news"]) == 0
    assert capsys.readouterr().out == "purged 3 objects by tag news\n"
    assert main(["cache", "purge", "--admin", running.url, "--prefix", "/a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"purged": 3, "prefix": "/a", "soft": False}
    assert main(["cache", "purge", "--admin", running.url, "--url", "/a", "--soft"]) == 0
    assert capsys.readouterr().out == "made stale 3 objects by url /a\n"
    assert server.purged == [(None, None, "news", False), (None, "/a", None, False), ("/a", None, None, True)]
    assert main(["cache", "purge", "--admin", running.url, "--tag", "bad"]) == 1
    assert "answered 400: this tag cannot be purged" in capsys.readouterr().err
