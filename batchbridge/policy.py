"""When does a batch leave, and with how many? Pure decisions: no clock, no I/O, integers only.

A route's waiting requests become a batch by the rules of :func:`decide`. The engine has the same function in C (it is
asked without the GIL); this one is its reference, and a property test compares the two.

An *adaptive* policy moves its delay with :func:`adapt`, once for each window of latencies measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, TypedDict

from .errors import ConfigError

__all__ = [
    "POLICY_FIELDS",
    "BatchPolicy",
    "Decision",
    "PolicyFields",
    "Reason",
    "adapt",
    "check_field",
    "deadline_us",
    "decide",
]

Reason = Literal["full", "delay", "idle", "deadline", "closing"]

POLICY_KINDS = ("idle", "fixed", "adaptive")
ON_ERROR = ("isolate", "fail")

#: name: (minimum, maximum, may be None). Everything is bounded; the bounds are the widest that the engine can carry.
INTEGERS: dict[str, tuple[int, int, bool]] = {
    "max_batch_size": (1, 65_536, False),
    "max_queue_delay_us": (0, 60_000_000, False),
    "max_queue_size": (1, 1_048_576, False),
    "queue_timeout_us": (1, 3_600_000_000, True),
    "timeout_us": (1, 3_600_000_000, True),
    "concurrency": (1, 256, False),
    "latency_objective_us": (1, 60_000_000, True),
    "response_batch_size": (1, 65_536, True),
}
CHOICES: dict[str, tuple[str, ...]] = {"policy": POLICY_KINDS, "on_error": ON_ERROR}
SWITCHES = ("coalesce", "idempotent")

#: How many preferred batch sizes a policy may name.
PREFERRED_SIZES_MAX = 8


def one_of(words: Iterable[str]) -> str:
    """The words as a choice: "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def check_field(name: str, value: Any, label: str | None = None) -> Any:
    """Checks one field's value by itself and returns it as the field's type; `label` is how an error calls it.

    Raises ConfigError for a name that is no field, a wrong type, or a value out of range.
    """
    label = label or name
    if name in INTEGERS:
        minimum, maximum, optional = INTEGERS[name]
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{label}: {value!r} is not a whole number{' or None' if optional else ''}")
        if not minimum <= value <= maximum:
            raise ConfigError(f"{label}: {value} is out of range; {minimum} to {maximum} are allowed")
        return int(value)
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise ConfigError(f"{label}: {value!r} is not known; choose {one_of(CHOICES[name])}")
        return value
    if name in SWITCHES:
        if not isinstance(value, bool):
            raise ConfigError(f"{label}: {value!r} is not true or false")
        return value
    if name == "preferred_batch_size":
        sizes = (value,) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(sizes, str) or not isinstance(sizes, Iterable):
            raise ConfigError(f"{label}: {value!r} is not a list of batch sizes")
        checked = tuple(sorted({check_field("max_batch_size", size, label) for size in sizes}))
        if len(checked) > PREFERRED_SIZES_MAX:
            raise ConfigError(f"{label}: {len(checked)} sizes are more than the {PREFERRED_SIZES_MAX} that are allowed")
        return checked
    from difflib import get_close_matches

    close = get_close_matches(name, POLICY_FIELDS, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(POLICY_FIELDS)}"
    raise ConfigError(f"{label} is not a setting of a batch policy; {hint}")


class PolicyFields(TypedDict, total=False):
    """The fields of a :class:`BatchPolicy`, as keyword arguments."""

    max_batch_size: int
    max_queue_delay_us: int
    preferred_batch_size: int | Iterable[int]
    policy: Literal["idle", "fixed", "adaptive"]
    max_queue_size: int
    queue_timeout_us: int | None
    timeout_us: int | None
    concurrency: int
    coalesce: bool
    on_error: Literal["isolate", "fail"]
    idempotent: bool
    latency_objective_us: int | None
    response_batch_size: int | None


@dataclass(frozen=True)
class BatchPolicy:
    """How a route's requests are put together. Raises ConfigError when a value, or two together, make no sense."""

    max_batch_size: int = 64
    """The most requests in one batch."""
    max_queue_delay_us: int = 0
    """How long the oldest request may wait for company, in microseconds."""
    preferred_batch_size: tuple[int, ...] = ()
    """Sizes that the handler likes best: an idle batch takes the largest that is full, and leaves the rest waiting."""
    policy: Literal["idle", "fixed", "adaptive"] = "idle"
    """idle: also leaves at once when nothing more is coming; fixed: full or delay only; adaptive: the delay is moved
    to hold `latency_objective_us`."""
    max_queue_size: int = 1024
    """Requests that may wait; the next is answered 503 with Retry-After."""
    queue_timeout_us: int | None = None
    """A request that has waited longer is dropped before dispatch and answered 503, in microseconds."""
    timeout_us: int | None = None
    """A request not answered in this time, from when it was read, is answered 504, in microseconds."""
    concurrency: int = 1
    """Batches of this route that handlers may work on at the same time."""
    coalesce: bool = False
    """Identical GETs that wait at the same time take one place, and all get its answer."""
    on_error: Literal["isolate", "fail"] = "isolate"
    """After a raise out of the handler: run the unanswered again one by one, or answer them all 500."""
    idempotent: bool = False
    """Running a request twice does no harm, so isolation may do it for methods that are not safe, too."""
    latency_objective_us: int | None = None
    """adaptive: the latency, from read to answered, that the worst request of a window is held to, in microseconds."""
    response_batch_size: int | None = None
    """Responses handed back to the engine together; None hands back the whole batch at once."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, check_field(field.name, getattr(self, field.name)))
        if self.preferred_batch_size and self.preferred_batch_size[-1] > self.max_batch_size:
            raise ConfigError(
                f"preferred_batch_size: {self.preferred_batch_size[-1]} is above max_batch_size {self.max_batch_size}"
            )
        if self.policy == "adaptive" and self.latency_objective_us is None:
            raise ConfigError("policy: 'adaptive' needs latency_objective_us, the latency that it shall hold")
        if self.policy == "adaptive" and self.max_queue_delay_us == 0:
            raise ConfigError("policy: 'adaptive' needs max_queue_delay_us above 0, the most that it may wait")

    def changed(self, **changes: Any) -> BatchPolicy:
        """A policy with these fields changed; raises ConfigError like the constructor, also for an unknown name."""
        for name, value in changes.items():
            check_field(name, value)
        return replace(self, **changes)

    @property
    def full_size(self) -> int:
        """A batch of this size leaves at once: no more can come, either into the batch or into the queue."""
        return min(self.max_batch_size, self.max_queue_size)


POLICY_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(BatchPolicy))


class Decision(NamedTuple):
    """What :func:`decide` says.

    `size` requests leave now because of `reason`; or `size` is 0, `reason` is "", and `wait_us` tells in how many
    microseconds to ask again (None: no timer is needed, an event asks: a request, a handler, the end of the input).
    """

    size: int
    reason: Reason | Literal[""]
    wait_us: int | None


NOTHING = Decision(0, "", None)


def deadline_us(policy: BatchPolicy) -> int | None:
    """The longest wait that a deadline allows, in microseconds: half of the shortest time-out; None without any.

    Waiting for company until the time-out itself would leave no time to be answered: each request of a thin stream
    would be dropped. Half leaves the handler as much as the queue took.
    """
    timeouts = [t for t in (policy.queue_timeout_us, policy.timeout_us) if t is not None]
    return min(timeouts) // 2 if timeouts else None


def decide(
    policy: BatchPolicy,
    *,
    waiting: int,
    oldest_waited_us: int,
    handlers_free: int,
    more_input: bool,
    closing: bool,
    effective_delay_us: int | None = None,
) -> Decision:
    """Shall a batch leave now? The first rule that applies decides.

    1. Nothing waits, or no handler is free: nothing leaves. What waits gathers meanwhile, at no cost.
    2. *full*: the largest batch is there, more waiting gains nothing.
    3. *closing*: the server drains; nobody else will come.
    4. *delay*: the oldest has waited as long as it may. It takes all, since keeping some back would make them wait
       beyond their delay. Policy fixed or adaptive with a delay of 0: at once.
    5. *deadline*: as before, where a time-out is so short that it bounds the wait (see :func:`deadline_us`).
    6. *idle* (policy idle only): no bytes wait in the rings, so nothing to wait for is in sight, and a lone request
       never waits. It takes the largest preferred size, if more than that waits: the rest leaves with the next.

    `waiting` is the number of requests in the route's queue, `oldest_waited_us` the first one's wait so far.
    `handlers_free` counts handlers that may take a batch of this route now (its concurrency considered).
    `more_input`: bytes that had arrived before this turn of the loop are still unread. It must become false within
    the turn, so that a flood on one route cannot hold another's requests back.
    `effective_delay_us` is the adaptive policy's present delay (bounded by `max_queue_delay_us`), None elsewhere.
    """
    if waiting <= 0 or handlers_free <= 0:
        return NOTHING
    if waiting >= policy.full_size:
        return Decision(policy.full_size, "full", None)
    if closing:
        return Decision(waiting, "closing", None)

    delay = policy.max_queue_delay_us
    if policy.policy == "adaptive" and effective_delay_us is not None:
        delay = max(0, min(delay, effective_delay_us))
    # With policy idle, 0 means "no delay is spent", not "leave before the input is read": rule 6 decides there.
    delayed = policy.policy != "idle" or delay > 0
    if delayed and oldest_waited_us >= delay:
        return Decision(waiting, "delay", None)
    deadline = deadline_us(policy)
    if deadline is not None and oldest_waited_us >= deadline:
        return Decision(waiting, "deadline", None)

    if policy.policy == "idle" and not more_input:
        size = waiting
        for preferred in policy.preferred_batch_size:  # in rising order: the last that fits stays
            if preferred <= waiting:
                size = preferred
        return Decision(size, "idle", None)

    left = [limit - oldest_waited_us for limit in (delay if delayed else None, deadline) if limit is not None]
    return Decision(0, "", min(left) if left else None)


def adapt(policy: BatchPolicy, effective_delay_us: int, worst_latency_us: int) -> int:
    """The next delay of an adaptive policy, in microseconds, from the worst latency of the last window.

    Above the objective the delay is halved; below 7/8 of it, it grows by a 32nd of `max_queue_delay_us`; between, it
    stays. Additive increase and multiplicative decrease converge without a model of the handler, and the band keeps
    the latency from crossing the objective just to find it again. Always within 0 and `max_queue_delay_us`.
    """
    delay = max(0, min(effective_delay_us, policy.max_queue_delay_us))
    objective = policy.latency_objective_us
    if objective is None:
        return delay
    if worst_latency_us > objective:
        return delay // 2
    if worst_latency_us * 8 > objective * 7:
        return delay
    return min(policy.max_queue_delay_us, delay + max(1, policy.max_queue_delay_us // 32))
