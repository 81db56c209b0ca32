"""The state machine is data: each role's table has a transition for every event that a state can return, and for no
other; what is stored into it holds from the next request on; what it does not know is refused; a table that makes no
sense costs connections, and is counted.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchbridge as bb
from batchbridge.cython_ext.states import EVENT_NAMES, STATE_NAMES
from batchbridge.machine import ROLES, Machine
from support.loop import Loop, get, looping, make_server, post

SOURCES = Path(__file__).parents[2] / "cython_ext"
FUNCTION = re.compile(r"^cdef [^(\n]*?(\w+)\([^)]*\)[^\n]*:\n((?:(?: +[^\n]*)?\n)*)", re.M)

#: What comes to a state where the machine rests, from outside.
FROM_OUTSIDE = {"Await Response": {"answered", "timed out"}, "Await Bytes": {"timed out"}}


def name_of(constant: str) -> str:
    """DERIVE_REQUEST to "Derive Request"."""
    return constant.replace("_", " ").title()


def returned_events() -> dict[str, set[str]]:
    """For each state, the events that its function can return, itself or of others that it calls."""
    sources = "".join(path.read_text() for path in sorted(SOURCES.glob("*.pyx")))
    bodies = dict(FUNCTION.findall(sources))
    http = (SOURCES / "http.pyx").read_text()
    functions = dict(re.findall(r"protocol\.functions\[<int>(\w+)\] = (\w+)", http))

    def events_of(function: str, seen: frozenset[str] = frozenset()) -> Iterator[str]:
        for line in re.findall(r"^ +return (.*)", bodies[function], re.M):
            yield from re.findall(r"EVENT_(\w+)", line)
            for called in re.findall(r"(\w+)\(", line):
                if called in bodies and called not in seen:
                    yield from events_of(called, seen | {called})

    return {
        name_of(state): {event.lower().replace("_", " ") for event in events_of(function)}
        for state, function in functions.items()
    }


def test_the_sources_are_understood() -> None:
    events = returned_events()
    assert len(events) == 9
    assert events["Derive Request"] == {"request", "incomplete", "malformed", "owed"}
    assert events["Derive Uncached Response"] >= {"object", "absent", "unsuited", "failed", "listing", "status"}
    assert all(events.values())
    assert set(events) <= set(STATE_NAMES)
    assert set().union(*events.values(), *FROM_OUTSIDE.values()) == set(EVENT_NAMES)


@pytest.mark.parametrize("role", ROLES)
def test_each_roles_table_has_a_transition_for_every_event_and_for_no_other(role: str) -> None:
    possible = {(state, event) for state, events in (returned_events() | FROM_OUTSIDE).items() for event in events}
    assert possible == set(ROLES[role])


@pytest.mark.parametrize("role", ROLES)
def test_from_everywhere_the_end_can_be_reached_and_no_state_is_left_out(role: str) -> None:
    table = ROLES[role]
    followers = {state: {target for (source, _), target in table.items() if source == state} for state in STATE_NAMES}
    ends = {"Finished", "Await Turn"}  # which is followed by Derive Request, anew
    reaching = set(ends)
    while more := {state for state in STATE_NAMES if followers[state] & reaching} - reaching:
        reaching |= more
    assert reaching == set(STATE_NAMES)
    reached = {"Derive Request"}
    while more := set().union(*(followers[state] for state in reached)) - reached:
        reached |= more
    unreached = {"standalone": {"Derive Remote Response"}, "colocated": {"Derive Remote Response"}}
    # Files are still served from the cache by a frontend, but no file is ever read.
    assert set(STATE_NAMES) - reached == unreached.get(role, {"Derive Uncached Response"})


# --- editing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> bb.Server:
    (tmp_path / "a.txt").write_text("the file\n")
    server = make_server(root=str(tmp_path))
    server.batch("/h", methods=["GET", "POST"])(lambda batch: ["answer"] * len(batch))
    server.batch("/a.txt")(lambda batch: ["not the file"] * len(batch))
    return server


def test_a_changed_transition_holds_from_the_next_request_on(server: bb.Server) -> None:
    with looping(server) as loop:
        client = loop.connect()
        for target, text in (
            ("Derive Deferred Response", "not the file"),
            ("Derive Status Response", "500 Internal Server Error\n"),
            ("Derive Uncached Response", "the file\n"),
            ("Derive Deferred Response", "the file\n"),  # since it is in the cache now
        ):
            server.machine.table["Derive Miss Response", "route"] = target
            loop.send(client, get("/a.txt"))
            loop.settle()
            assert [reply.text for reply in loop.replies(client)] == [text]


def test_a_test_clients_engine_is_told_as_well(server: bb.Server) -> None:
    with server.test_client() as client:
        assert client.get("/nothing").status == 404
        server.machine.table["Derive Uncached Response", "absent"] = "Derive Deferred Response"
        assert client.get("/nothing").status == 404
        server.machine.table["Derive Miss Response", "no route"] = "Derive Status Response"
        assert client.get("/nothing").status == 500
    with server.test_client() as client:
        assert client.get("/nothing").status == 500


def test_a_transition_that_the_table_lacks_can_be_added(server: bb.Server) -> None:
    server.machine.table["Await Response", "hit"] = "Send Engine"
    assert server.machine.table["Await Response", "hit"] == "Send Engine"
    with looping(server) as loop:
        assert loop.ask(get("/h")).text == "answer"


@pytest.mark.parametrize(
    ("transition", "target", "name"),
    [
        (("Derive Requests", "hit"), "Finished", "Derive Requests"),
        (("Derive Request", "hits"), "Finished", "hits"),
        (("Derive Request", "hit"), "finished", "finished"),
        (("", ""), "", ""),
        (("Derive Request", "incomplete"), "Derive Request", "Derive Request"),
        (("Send Engine", "sent"), "Await Turn", "Await Turn"),
        (("Derive Uncached Response", "object"), "Defer Request", "Defer Request"),
        (("Derive Miss Response", "no route"), "Send Engine", "Send Engine"),
    ],
)
def test_unknown_names_and_what_cannot_follow_are_refused_and_nothing_changes(
    server: bb.Server, transition: tuple[str, str], target: str, name: str
) -> None:
    before = dict(server.machine.table)
    with looping(server) as loop:
        with pytest.raises(bb.ConfigError, match=re.escape(repr(name))):
            server.machine.table[transition] = target
        with pytest.raises(bb.ConfigError):
            server.machine.table.update({transition: target})
        if name not in STATE_NAMES:
            with pytest.raises(KeyError, match=re.escape(repr(name))):
                loop.engine.set_table({transition: target})
        assert dict(server.machine.table) == before
        assert loop.ask(get("/h")).text == "answer"


def test_no_transition_can_be_removed(server: bb.Server) -> None:
    table = server.machine.table
    before = dict(table)
    with pytest.raises(TypeError, match="cannot be removed"):
        del table["Derive Request", "request"]
    with pytest.raises(TypeError):
        table.pop(("Derive Request", "request"))
    with pytest.raises(TypeError):
        table.clear()
    assert dict(table) == before
    with pytest.raises(KeyError):
        _ = table["Derive Request", "sent"]


def test_each_server_has_a_table_of_its_own(server: bb.Server) -> None:
    server.machine.table["Derive Miss Response", "no route"] = "Derive Status Response"
    assert make_server(root=".").machine.table["Derive Miss Response", "no route"] == "Derive Uncached Response"
    assert ROLES["standalone"]["Derive Miss Response", "no route"] == "Derive Uncached Response"


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(bb.ConfigError, match="'clerk' is not known; choose standalone, colocated, frontend"):
        Machine("clerk")


# --- tables that make no sense ----------------------------------------------------------------------------------------


def assert_fault(loop: Loop, request: bytes) -> None:
    """The connection ends without an answer, and the fault is counted as well as the request; with a good table it goes
    on."""
    client = loop.connect(request)
    loop.settle()
    assert loop.engine.is_closed(client)
    assert loop.output(client) == b""
    stats = loop.stats
    assert stats["engine"]["table_faults"] == 1
    assert stats["requests"]["read"] == sum(stats["requests"]["outcomes"].values()) == 1
    loop.server.machine.table.update(ROLES["standalone"])
    assert loop.ask(get("/h")).text == "answer"


@pytest.mark.parametrize(
    ("state", "request_"),
    [
        (("Derive Request", "request"), get("/h")),
        (("Derive Cached Response", "miss"), post("/h", b"body")),
        (("Derive Miss Response", "route"), get("/h")),
        (("Derive Uncached Response", "object"), get("/a.txt")),
        (("Derive Uncached Response", "absent"), get("/nothing")),
        (("Derive Status Response", "status"), get("/nothing")),
        (("Defer Request", "queued"), get("/h")),
        (("Await Response", "answered"), get("/h")),
    ],
)
def test_an_event_without_a_transition_costs_the_connection(
    server: bb.Server, state: tuple[str, str], request_: bytes
) -> None:
    table = {transition: target for transition, target in server.machine.table.items() if transition != state}
    server.handlers.pop("/a.txt")
    with Loop(server, table=table) as loop:
        assert_fault(loop, request_)


# --- shown ------------------------------------------------------------------------------------------------------------


def test_as_text_each_transition_is_a_line_below_its_role() -> None:
    machine = Machine("colocated")
    first, empty, *lines = machine.to_text().splitlines()
    assert (first, empty) == ("role colocated", "")
    assert len(lines) == len(machine.table)
    assert re.split(" {2,}", lines[0]) == ["Derive Request", "request", "Derive Cached Response"]
    assert lines[1].split() == ["incomplete", "Await", "Bytes"]  # a state is named once
    assert any(line.split() == ["absent", "Derive", "Deferred", "Response"] for line in lines)


def test_as_a_graph_what_differs_from_standalone_is_bold() -> None:
    dot = Machine("standalone").to_dot()
    assert dot.startswith("digraph machine {\n")
    assert dot.endswith("}\n")
    assert "bold" not in dot
    assert '  "Derive Request" -> "Derive Cached Response" [label="request"];' in dot
    assert '"Finished" [shape=ellipse];' in dot
    assert 'label="absent, unsuited, failed, status"' in dot.replace("unsuited, absent", "absent, unsuited")
    machine = Machine("frontend")
    machine.table["Derive Deferred Response", "server"] = "Derive Status Response"
    bold = [line.strip() for line in machine.to_dot().splitlines() if "bold" in line]
    assert bold == [
        '"Derive Miss Response" -> "Derive Remote Response" [label="no route", style=bold];',
        '"Derive Deferred Response" -> "Derive Status Response" [label="server, no server, status", style=bold];',
    ]


def test_the_graph_names_every_edge_once() -> None:
    for role in ROLES:
        table = Machine(role).table
        edges = re.findall(r'"([^"]+)" -> "([^"]+)" \[label="([^"]+)"', Machine(role).to_dot())
        drawn = {(source, event): target for source, target, events in edges for event in events.split(", ")}
        assert drawn == dict(table)
