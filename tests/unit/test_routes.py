"""Which route a path belongs to, as a table; which methods it allows; and which templates make no sense."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchbridge as bb
from batchbridge.server import ROUTES_MAX
from support.loop import get, looping, make_server

#: From the first to the last declared: the first that matches has it.
TEMPLATES = [
    "/",
    "/plain",
    "/plain/",
    "/a/b/c",
    "/a/{x}/c",
    "/a/{x}/{y}",
    "/files/{rest:path}",
    "/{one}/only",
    "/deep/{a}/{b}/{c}/{d}/{e}/{f}/{g}/{h}",
    "/percent%20escape",
    "/odd.-_~!$&'()*+,;=:@",
]

MATCHES = {
    "/": "/",
    "/?q": "/",
    "/plain": "/plain",
    "/plain?q=/plain/": "/plain",
    "/plain/": "/plain/",
    "/plain/x": None,
    "/plainx": None,
    "/plai": None,
    "/PLAIN": None,
    "//plain": None,
    "/pl%61in": None,  # as it was sent
    "/a/b/c": "/a/b/c",
    "/a/x/c": "/a/{x}/c",
    "/a/%62/c": "/a/{x}/c",
    "/a/b/d": "/a/{x}/{y}",
    "/a/x/c/": None,
    "/a//c": None,
    "/a/x/": None,
    "/a/x": None,
    "/a": None,
    "/files": None,
    "/files/": None,
    "/files/x": "/files/{rest:path}",
    "/files/x/": "/files/{rest:path}",
    "/files//": "/files/{rest:path}",
    "/files/x//y/../z": "/files/{rest:path}",
    "/x/only": "/{one}/only",
    "/files/only": "/files/{rest:path}",
    "//only": None,
    "/deep/1/2/3/4/5/6/7/8": "/deep/{a}/{b}/{c}/{d}/{e}/{f}/{g}/{h}",
    "/deep/1/2/3/4/5/6/7": None,
    "/deep/1/2/3/4/5/6/7/8/9": None,
    "/percent%20escape": "/percent%20escape",
    "/odd.-_~!$&'()*+,;=:@": "/odd.-_~!$&'()*+,;=:@",
}


def declared(templates: list[str], methods: Any = ("GET",)) -> bb.Server:
    server = make_server()
    for template in templates:
        server.batch(template, methods=methods)(lambda batch: [batch.route.path] * len(batch))
    return server


@pytest.mark.parametrize(("target", "template"), MATCHES.items())
def test_a_path_belongs_to_the_first_route_that_matches(target: str, template: str | None) -> None:
    with looping(declared(TEMPLATES)) as loop:
        reply = loop.ask(get(target))
        assert (reply.text if reply.status == 200 else None) == template


segments = st.text("ab", max_size=2)
templates = st.lists(st.sampled_from(["a", "b", "ab", "{x}", "{y}"]), min_size=1, max_size=3)


def matches(template: str, path: str) -> bool:
    """The rules, once more and slowly."""
    given, wanted = path.split("/"), template.split("/")
    if len(given) != len(wanted):
        return False
    return all(w == g or (w.startswith("{") and g != "") for w, g in zip(wanted, given, strict=True))


@given(st.lists(templates, min_size=1, max_size=4), st.lists(st.lists(segments, min_size=1, max_size=4), min_size=1))
def test_matching_is_as_the_rules_say(many: list[list[str]], paths: list[list[str]]) -> None:
    routes = list(dict.fromkeys("/" + "/".join(one) for one in many if one.count("{x}") < 2 and one.count("{y}") < 2))
    server = declared([*routes, "/zzz"])
    with server.test_client() as client:
        for path in ("/" + "/".join(one) for one in paths):
            response = client.get(path)
            wanted = next((route for route in routes if matches(route, path)), None)
            assert (response.text if response.status == 200 else None) == wanted


# --- methods ----------------------------------------------------------------------------------------------------------


def test_routes_of_one_path_share_its_methods() -> None:
    server = make_server()
    server.batch("/h/{a}")(lambda batch: ["read"] * len(batch))
    server.batch("/h/{b}", methods=["put", "Delete"])(lambda batch: ["write"] * len(batch))
    with looping(server) as loop:
        assert loop.ask(get("/h/1")).text == "read"
        assert loop.ask(get("/h/1", method="PUT")).text == "write"
        assert loop.ask(get("/h/1", method="DELETE")).text == "write"
        assert loop.ask(get("/h/1", method="HEAD"), method="HEAD").status == 200
        reply = loop.ask(get("/h/1", method="POST"))
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, PUT, DELETE, OPTIONS")
        reply = loop.ask(get("/h/1", method="OPTIONS"))
        assert (reply.status, reply.headers["allow"]) == (204, "GET, HEAD, PUT, DELETE, OPTIONS")


@pytest.mark.parametrize(
    ("methods", "allow"),
    [
        (["GET"], "GET, HEAD, OPTIONS"),
        (["HEAD"], "HEAD, OPTIONS"),
        (["POST"], "POST, OPTIONS"),
        (["PATCH", "GET", "POST", "PUT", "DELETE", "OPTIONS"], "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH"),
    ],
)
def test_a_method_that_is_not_there_is_405_with_those_that_are(methods: list[str], allow: str) -> None:
    with looping(declared(["/h"], methods)) as loop:
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"]:
            reply = loop.ask(get("/h", method=method), method=method)
            if method in methods or (method == "HEAD" and "GET" in methods):
                assert reply.status == 200
            else:
                assert (reply.status, reply.headers["allow"]) == (405, allow)
        assert loop.ask(get("*", method="OPTIONS")).status == 204


def test_a_handler_may_answer_options_itself() -> None:
    with looping(declared(["/h"], ["GET", "OPTIONS"])) as loop:
        assert loop.ask(get("/h", method="OPTIONS")).text == "/h"


def test_a_route_without_methods_makes_no_sense() -> None:
    with pytest.raises(bb.ConfigError, match="method"):
        make_server().batch("/h", methods=[])(lambda batch: ["x"])


# --- what makes no sense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "",
        "plain",
        "*",
        "/a//b",
        "//",
        "/{}",
        "/{1a}",
        "/{a b}",
        "/{a-b}",
        "/{a:int}",
        "/{a:path}/b",
        "/{a:path}/",
        "/{a}/",
        "/{a}/{a}",
        "/{a}/{a:path}",
        "/x{a}",
        "/{a}x",
        "/{a",
        "/a}",
        "/{a}{b}",
        "/a?b",
        "/a#b",
        "/\u00fc",
        "/a b",
        "/a\r\nb",
        "/a\0b",
        "/" + "/".join(f"{{p{n}}}" for n in range(9)),
    ],
)
def test_a_template_that_makes_no_sense_is_refused_with_its_text(template: str) -> None:
    with pytest.raises(bb.ConfigError) as caught:
        declared([template])
    assert repr(template) in str(caught.value)


@pytest.mark.parametrize("methods", [["FETCH"], ["GET", "get it"], [""], ["CONNECT "]])
def test_a_method_that_does_not_exist_is_refused(methods: list[str]) -> None:
    with pytest.raises(bb.ConfigError) as caught:
        declared(["/h"], methods)
    assert repr(methods[-1]).lower() in str(caught.value).lower()


def test_a_route_is_declared_once() -> None:
    server = declared(["/h"])
    with pytest.raises(bb.ConfigError, match="'/h' is declared twice"):
        server.batch("/h")


@pytest.mark.parametrize("vary", [["a"] * 9, ["\u00fc"], ["a b"], [""], ["a:"]])
def test_header_names_to_vary_by_are_few_and_are_names(vary: list[str]) -> None:
    with pytest.raises(bb.ConfigError, match="vary"):
        make_server().batch("/h", vary=vary)(lambda batch: ["x"] * len(batch))


def test_there_are_as_many_routes_as_are_allowed_and_no_more() -> None:
    server = declared([f"/h/{number}" for number in range(ROUTES_MAX)])
    with server.test_client() as client:
        for number in (0, 100, ROUTES_MAX - 1):
            assert client.get(f"/h/{number}").text == f"/h/{number}"
    with pytest.raises(bb.ConfigError, match=f"'/one/more' is one more than the {ROUTES_MAX}"):
        server.batch("/one/more")
