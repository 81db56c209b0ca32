"""What stands behind all routes is there when it is asked for, in its order, and answers what nothing else does."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from batchbridge.fallbacks import fallback_handlers
from support.serving import config, running
from support.wire import Client, Reply, ask, await_true


def hello_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"application\n"]


async def hello_asgi(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"application\n"})


def server_of(**settings: Any) -> bb.Server:
    applications = {name: settings.pop(name) for name in ("wsgi", "asgi") if name in settings}
    return bb.Server(**applications, config=config("auto", **settings))


# What is there


def test_nothing_stands_there_unasked(tmp_path):
    assert fallback_handlers(server_of(root=str(tmp_path))) == []
    assert fallback_handlers(server_of(directory_listing=True)) == []


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"wsgi": hello_wsgi}, "fallback"),
        ({"asgi": hello_asgi}, "fallback"),
        ({"upstream": "http://127.0.0.1:1"}, "remote"),
        ({"directory_listing": True, "root": "."}, "listing"),
    ],
)
def test_each_is_there_when_asked_for(settings, kind):
    (handler,) = fallback_handlers(server_of(**settings))
    assert (handler.kind, handler.methods) == (kind, ())


def test_batches_are_no_larger_than_the_server_allows():
    for handler in fallback_handlers(server_of(wsgi=hello_wsgi, upstream="http://127.0.0.1:1", batch_size_max=2)):
        assert handler.policy.max_batch_size == 2


@pytest.mark.parametrize("name", ["wsgi", "asgi"])
def test_what_cannot_be_called_is_no_application(name):
    with (
        pytest.raises(bb.ConfigError, match=f"{name}: 'text' is not an application"),
        server_of(**{name: "text"}).running(),
    ):
        pass


def test_two_applications_cannot_both_be_behind_all_routes():
    with pytest.raises(bb.ConfigError, match="not two"):
        server_of(wsgi=hello_wsgi, asgi=hello_asgi)


@pytest.mark.parametrize("settings", [{"asgi": hello_asgi}, {"upstream": "http://127.0.0.1:1"}])
def test_what_waits_needs_a_thread_of_its_own(settings):
    with pytest.raises(bb.ConfigError, match="handler_threads"), server_of(handler_threads=0, **settings).running():
        pass


# What comes before


@pytest.mark.parametrize("application", [{"wsgi": hello_wsgi}, {"asgi": hello_asgi}])
@pytest.mark.parametrize("has_root", [False, True])
def test_routes_and_files_come_before_the_application(tmp_path, application, has_root):
    (tmp_path / "file.txt").write_text("file\n")
    server = server_of(**application, **({"root": str(tmp_path)} if has_root else {}))

    @server.batch("/route")
    def route(batch: bb.Batch) -> list[str]:
        return ["route\n"] * len(batch)

    with running(server), Client(server.url) as client:
        assert client.ask("GET", "/route").body == b"route\n"
        assert client.ask("GET", "/file.txt").body == (b"file\n" if has_root else b"application\n")
        assert client.ask("GET", "/missing").body == b"application\n"
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "TRACE"):
            assert client.ask(method, "/file.txt").body == b"application\n", method
        assert client.ask("HEAD", "/missing").status == 200
        assert client.ask("CONNECT", "test:80").status == 501


def test_the_role_follows_from_what_was_asked_for():
    assert server_of(wsgi=hello_wsgi).config.role == "colocated"
    assert server_of(upstream="http://127.0.0.1:1").config.role == "frontend"
    assert server_of(upstream="http://127.0.0.1:1", wsgi=hello_wsgi, role="colocated").config.role == "colocated"
    server = server_of(root=".")
    assert server.config.role == "standalone"
    server.configure({"upstream": "http://127.0.0.1:1"})
    assert server.machine.role == "frontend"


# Listings


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("listed") / "root"
    for name in ("docs/a.txt", "docs/with space & <b>.txt", "docs/ü/x.txt", "docs/.hidden/x", "indexed/index.html"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "closed").mkdir(mode=0o311)
    (root / "linked").symlink_to("docs")
    (root / "out").symlink_to("..")
    return root


@pytest.fixture(scope="module")
def listed(root: Path) -> Iterator[Callable[..., Reply]]:
    server = server_of(root=str(root), directory_listing=True)
    with running(server):
        yield lambda *arguments, **more: ask(server.url, *arguments, **more)


def links(reply: Reply) -> list[str]:
    return [part.partition('"')[0] for part in reply.body.decode().split('href="')[1:]]


def test_a_folder_without_index_file_is_listed(listed):
    reply = listed("GET", "/docs/")
    assert reply.status == 200
    assert reply["content-type"] == "text/html; charset=utf-8"
    assert reply["cache-control"] == "no-cache"
    assert links(reply) == ["../", "./%C3%BC/", "./a.txt", "./with%20space%20%26%20%3Cb%3E.txt"]
    assert "with space &amp; &lt;b&gt;.txt" in reply.body.decode()


def test_each_link_leads_to_what_it_names(listed):
    for name in links(listed("GET", "/docs/"))[1:]:
        reply = listed("GET", f"/docs/{name.removeprefix('./')}")
        assert reply.status == 200
        assert name.endswith("/") or reply.body.startswith(b"docs/")


def test_head_gets_the_same_head(listed):
    page, head = listed("GET", "/docs/"), listed("HEAD", "/docs/")
    assert head.body == b""
    assert head["content-length"] == str(len(page.body))
    assert head["content-type"] == page["content-type"]


def test_a_listing_is_not_kept(listed, root):
    assert "./new.txt" not in links(listed("GET", "/"))
    (root / "new.txt").write_text("x")
    assert "./new.txt" in links(listed("GET", "/"))


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/docs", 301),
        ("GET", "/missing/", 404),
        ("GET", "/docs/a.txt/", 404),
        ("GET", "/docs/.hidden/", 404),
        ("GET", "/out/", 403),
        ("GET", "/../", 400),
        ("GET", "/docs/%2e%2e/%2e%2e/", 400),
        ("GET", "/docs/%2e%2e/", 200),
        ("GET", "//docs//", 200),
        ("GET", "/docs/?query", 200),
        ("GET", "/linked/", 200),
        ("GET", "/indexed/", 200),
        ("POST", "/docs/", 405),
        ("DELETE", "/docs/", 405),
    ],
)
def test_a_folder_that_is_not_to_be_listed_is_not(listed, method, target, status):
    assert listed(method, target).status == status


def test_an_index_file_comes_before_the_listing(listed):
    assert listed("GET", "/indexed/").body == b"indexed/index.html"


def test_a_folder_that_may_not_be_read_is_forbidden(listed):
    assert listed("GET", "/closed/").status == (200 if os.geteuid() == 0 else 403)


def test_without_the_setting_nothing_is_listed(root):
    server = server_of(root=str(root))
    with running(server):
        assert ask(server.url, "GET", "/docs/").status == 404


def test_beside_an_application_folders_are_listed_too(root):
    server = server_of(root=str(root), directory_listing=True, wsgi=hello_wsgi)
    with running(server):
        assert b"a.txt" in ask(server.url, "GET", "/docs/").body
        assert ask(server.url, "GET", "/missing").body == b"application\n"


def test_listings_are_told_in_the_figures(root):
    server = server_of(root=str(root), directory_listing=True)
    with running(server):
        ask(server.url, "GET", "/docs/")
        await_true(lambda: server.stats()["requests"]["outcomes"]["batch"] == 1)
        assert server.stats()["routes"]["(listing)"]["items"] == 1
