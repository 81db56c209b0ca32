"""The state machine's tables: what follows each event of each state, by role. Data; the engine asks for no role.

The states are those of the paper's figure 1 (AFPA), with the places where a request rests. An event that a state can
return and a table does not name is a fault that the engine counts, and that costs the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping

from .errors import ConfigError

__all__ = ["ROLES", "Machine", "Table"]

Transition = tuple[str, str]

#: What is the same in every role.
COMMON: dict[Transition, str] = {
    ("Derive Request", "request"): "Derive Cached Response",
    ("Derive Request", "incomplete"): "Await Bytes",
    ("Derive Request", "malformed"): "Derive Status Response",
    ("Derive Request", "owed"): "Await Turn",
    ("Derive Cached Response", "hit"): "Send Engine",
    ("Derive Cached Response", "miss"): "Derive Miss Response",
    ("Derive Cached Response", "cold"): "Await Turn",
    ("Derive Miss Response", "route"): "Derive Deferred Response",
    ("Derive Miss Response", "no route"): "Derive Uncached Response",
    ("Derive Miss Response", "status"): "Derive Status Response",
    ("Derive Uncached Response", "object"): "Send Engine",
    ("Derive Uncached Response", "listing"): "Derive Deferred Response",
    ("Derive Uncached Response", "absent"): "Derive Status Response",
    ("Derive Uncached Response", "unsuited"): "Derive Status Response",
    ("Derive Uncached Response", "failed"): "Derive Status Response",
    ("Derive Uncached Response", "status"): "Derive Status Response",
    ("Derive Uncached Response", "owed"): "Await Turn",
    ("Derive Uncached Response", "cold"): "Await Turn",
    ("Derive Deferred Response", "server"): "Defer Request",
    ("Derive Deferred Response", "no server"): "Derive Status Response",
    ("Derive Deferred Response", "status"): "Derive Status Response",
    ("Derive Remote Response", "server"): "Defer Request",
    ("Derive Remote Response", "no server"): "Derive Status Response",
    ("Defer Request", "queued"): "Await Response",
    ("Defer Request", "queue full"): "Derive Status Response",
    ("Defer Request", "owed"): "Await Turn",
    ("Await Response", "answered"): "Send Engine",
    ("Await Response", "timed out"): "Derive Status Response",
    ("Await Bytes", "timed out"): "Derive Status Response",
    ("Derive Status Response", "status"): "Send Engine",
    ("Send Engine", "sent"): "Finished",
    ("Send Engine", "owed"): "Await Turn",
}

#: Where the roles differ.
ROLES: dict[str, dict[Transition, str]] = {
    # Files and handlers, and nobody behind them.
    "standalone": COMMON,
    # Beside a user-mode server on the same machine (WSGI, ASGI): what is no file is its business.
    "colocated": COMMON
    | {
        ("Derive Uncached Response", "absent"): "Derive Deferred Response",
        ("Derive Uncached Response", "unsuited"): "Derive Deferred Response",
    },
    # Before servers on other machines: what is neither cached nor handled here is theirs.
    "frontend": COMMON | {("Derive Miss Response", "no route"): "Derive Remote Response"},
}


#: States that take a parsed request and derive something from it.
DERIVING = frozenset(
    {
        "Derive Cached Response",
        "Derive Miss Response",
        "Derive Uncached Response",
        "Derive Deferred Response",
        "Derive Remote Response",
        "Derive Status Response",
    }
)

#: What may follow an event, whatever the role: what a state leaves behind must be what the next one takes.
SUCCESSORS: dict[str, frozenset[str]] = {
    "incomplete": frozenset({"Await Bytes"}),
    "owed": frozenset({"Await Turn"}),
    "cold": frozenset({"Await Turn"}),
    "queued": frozenset({"Await Response"}),
    "sent": frozenset({"Finished"}),
    "malformed": frozenset({"Derive Status Response"}),
    "timed out": frozenset({"Derive Status Response"}),
    "server": frozenset({"Defer Request", "Derive Status Response"}),
    "hit": frozenset({"Send Engine", "Derive Status Response"}),
    "object": frozenset({"Send Engine", "Derive Status Response"}),
    "answered": frozenset({"Send Engine", "Derive Status Response"}),
}


class Table(MutableMapping[Transition, str]):
    """A transition table: (state, event) to the next state, by names. Changes reach engines that run at once."""

    def __init__(self, transitions: Mapping[Transition, str]) -> None:
        self._transitions = dict(transitions)
        #: Told of each change, with the changed part of the table; it may refuse with KeyError.
        self.listeners: list[Callable[[dict[Transition, str]], None]] = []

    def __getitem__(self, transition: Transition) -> str:
        return self._transitions[transition]

    def __setitem__(self, transition: Transition, target: str) -> None:
        check_names({transition: target})
        for listener in self.listeners:
            listener({transition: target})
        self._transitions[transition] = target

    def __delitem__(self, transition: Transition) -> None:
        raise TypeError(f"the transition {transition} cannot be removed: each event of a state needs one; change it")

    def __iter__(self) -> Iterator[Transition]:
        return iter(self._transitions)

    def __len__(self) -> int:
        return len(self._transitions)


def check_names(transitions: Mapping[Transition, str]) -> None:
    """Raises ConfigError for a state or an event that there is not, or a state that cannot follow."""
    from .cython_ext.states import EVENT_NAMES, STATE_NAMES

    for (source, event), target in transitions.items():
        for state in (source, target):
            if state not in STATE_NAMES:
                raise ConfigError(f"there is no state {state!r}; the states are {', '.join(STATE_NAMES)}")
        if event not in EVENT_NAMES:
            raise ConfigError(f"there is no event {event!r}; the events are {', '.join(EVENT_NAMES)}")
        allowed = successors(source, event)
        if target not in allowed:
            raise ConfigError(f"{target!r} cannot follow {event!r} of {source!r}; {', '.join(sorted(allowed))} can")


def successors(source: str, event: str) -> frozenset[str]:
    """The states that can follow an event of a state."""
    if source == "Derive Status Response" and event == "status":
        return frozenset({"Send Engine"})
    return SUCCESSORS.get(event, DERIVING)


class Machine:
    """A server's state machine: its role, and the table that the role begins with and that can be edited."""

    def __init__(self, role: str) -> None:
        if role not in ROLES:
            raise ConfigError(f"role: {role!r} is not known; choose {', '.join(ROLES)}")
        self.role = role
        self.table = Table(ROLES[role])

    def to_text(self) -> str:
        """The table in lines: state, event, next state."""
        lines = [f"role {self.role}", ""]
        width = max(len(source) for source, _ in self.table)
        previous = ""
        for (source, event), target in self.table.items():
            lines.append(f"{source if source != previous else '':{width}}  {event:12}  {target}")
            previous = source
        return "\n".join(lines) + "\n"

    def to_dot(self) -> str:
        """The table as a graph for Graphviz; transitions that differ from the standalone role's are drawn bold."""
        lines = ["digraph machine {", '  rankdir=LR; node [shape=box, fontname="sans-serif"];']
        resting = set(self.table.values()) - {source for source, _ in self.table}
        lines.extend(f'  "{state}" [shape=ellipse];' for state in sorted(resting | {"Await Response", "Await Bytes"}))
        edges: dict[tuple[str, str], list[str]] = {}
        for (source, event), target in self.table.items():
            edges.setdefault((source, target), []).append(event)
        for (source, target), events in edges.items():
            changed = any(ROLES["standalone"].get((source, event)) != target for event in events)
            lines.append(
                f'  "{source}" -> "{target}" [label="{", ".join(events)}"{", style=bold" if changed else ""}];'
            )
        return "\n".join([*lines, "}"]) + "\n"
