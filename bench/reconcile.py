"""Do the books balance? A server's counters against each other, against what clients counted, and against its log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .soak_traffic import BATCH, FAILED, FILE, KEPT, LOCAL, REFUSED, Tally

#: Of the access log's lines, at most so many may be lost to a disk that does not keep up.
LINES_LOST_SHARE_MAX = 0.001


@dataclass(frozen=True)
class Check:
    """One comparison. `fault` is empty where it holds, else a sentence."""

    name: str
    figures: str
    fault: str = ""


def equal(name: str, left: str, left_count: int, right: str, right_count: int) -> Check:
    figures = f"{left_count:,} = {right_count:,}"
    if left_count == right_count:
        return Check(name, figures)
    figures = f"{left_count:,} ≠ {right_count:,}"
    difference = left_count - right_count
    return Check(name, figures, f"{name}: {left} {left_count:,}, but {right} {right_count:,} ({difference:+,}).")


def at_most(name: str, what: str, count: float, limit: float) -> Check:
    figures = f"{count:,.0f} ≤ {limit:,.0f}"
    if count <= limit:
        return Check(name, figures)
    return Check(name, figures.replace("≤", ">"), f"{name}: {what} {count:,.0f}, which is more than {limit:,.0f}.")


def at_rest(stats: Mapping[str, Any]) -> list[Check]:
    """What must be nothing while no client is connected."""
    routes = stats["routes"].values()
    left = {
        "open connections": stats["connections"]["open"],
        "requests in user mode": stats["bridge"]["in_user_mode"],
        "requests queued": sum(route["queued"] for route in routes),
        "batches in flight": sum(route["in_flight"] for route in routes),
        "bytes of unfinished requests": stats["bytes"]["input_waiting"],
        "zero-copy sends pending": stats["sends"]["zero_copy_pending"],
        "table faults": stats["engine"]["table_faults"],
        "pinned fragments": stats["cache"]["fragments"]["pins"],
        "fragments being read": stats["fills"]["under_way"],
        "windows of files": stats["cache"]["page_cache"]["pieces"],
        "faults of the arena": stats["cache"]["arena"]["faults"],
    }
    return [equal(name, "there are", count, "there should be", 0) for name, count in left.items()]


def is_at_rest(stats: Mapping[str, Any]) -> bool:
    return not any(check.fault for check in at_rest(stats))


def within(stats: Mapping[str, Any]) -> list[Check]:
    """The server's counters against each other."""
    requests, bridge, connections = stats["requests"], stats["bridge"], stats["connections"]
    cache, images = stats["cache"], stats.get("kernel_side", {}).get("images", 0)
    routes = stats["routes"].values()
    batches, items = (sum(route[name] for route in routes) for name in ("batches", "items"))
    dropped = bridge["dropped_disconnected"] + bridge["dropped_expired"]
    outcomes = sum(requests["outcomes"].values())
    return [
        equal("requests and outcomes", "requests read", requests["read"], "outcomes", outcomes),
        equal(
            "fragments", "present", cache["fragments"]["present"],
            "pieces of memory", cache["arena"]["pieces"] + cache["plain_memory"]["pieces"],
        ),
        # An image of the kernel side may hold one that the cache has let go.
        at_most("objects leaving the cache", "there are", cache["leaving"], images),
        at_most("size of the cache", "it has", cache["size_bytes"], cache["size_bytes_max"]),
        equal("connections", "accepted", connections["accepted"], "closed", connections["closed"]),
        equal("batches", "of the routes", batches, "of the workers", bridge["batches"]),
        equal("items", "of the routes", items, "of the workers", bridge["items"]),
        equal(
            "batch sizes", "in the histograms", sum(sum(route["batch_size_histogram"]) for route in routes),
            "batches", batches,
        ),
        equal(
            "reasons", "batches with a reason", sum(sum(route["reasons"].values()) for route in routes),
            "batches", batches,
        ),
        equal(
            "requests in user mode, ever", "deferred", bridge["deferred"],
            "dispatched, shared or dropped", bridge["items"] + bridge["coalesced"] + dropped,
        ),
    ]  # fmt: skip


def against_clients(stats: Mapping[str, Any], tally: Tally) -> list[Check]:
    """The server's counters against what clients received.

    A request that was abandoned was answered all the same, by its handler, unless the server noticed (`client_gone`).
    """
    counted, outcomes = stats["requests"]["outcomes"], tally.outcomes
    answered_for_nobody = tally.abandoned - counted["client_gone"]
    from_file, by_handler = counted["hit"] + counted["file"], counted["batch"]
    return [
        equal(
            "requests and clients", "requests read", stats["requests"]["read"],
            "responses and abandoned requests", tally.responses + tally.abandoned,
        ),
        at_most("clients gone", "counted were", counted["client_gone"], tally.abandoned),
        equal(
            "files, handlers, cache", "answers counted", from_file + by_handler,
            "received or abandoned", outcomes[FILE] + outcomes[BATCH] + outcomes[KEPT] + answered_for_nobody,
        ),
        at_most("files", "clients received", outcomes[FILE], from_file),
        at_most("handlers", "clients received", outcomes[BATCH] + answered_for_nobody, by_handler),
        equal("local answers", "counted", counted["local"], "received", outcomes[LOCAL]),
        equal("errors 4xx", "counted", counted["error_4xx"], "received", outcomes[REFUSED]),
        equal("errors 5xx", "counted", counted["error_5xx"], "received", outcomes[FAILED]),
    ]  # fmt: skip


def against_log(stats: Mapping[str, Any], lines: int) -> list[Check]:
    """A request, a line; but for those that a disk cost that stood still for longer than the buffer lasts."""
    log, requests = stats["log"], stats["requests"]["read"]
    return [
        equal("log lines", "in the file", lines, "counted", log["lines"]),
        equal("log and requests", "lines counted", log["lines"] + log["lines_lost"], "requests read", requests),
        at_most("log lines lost", "there are", log["lines_lost"], requests * LINES_LOST_SHARE_MAX),
    ]
