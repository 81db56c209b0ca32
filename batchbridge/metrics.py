"""A server's counters in Prometheus' text format.

The names come from ``server.stats()``: what is there is told, a counter that is added later needs nothing here.
Importing this module imports prometheus_client (some 50 ms), so it is done only where metrics are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["CONTENT_TYPE_LATEST", "StatsCollector", "registry_for", "render"]

Stats = Mapping[str, Any]

#: Leaves that go up and down; every other number only grows.
GAUGES = {
    "open", "queued", "objects", "entries", "size_bytes", "size_bytes_max", "threads", "idle", "free", "groups",
    "unreclaimed", "leaving", "leaving_size_bytes", "living", "present", "pins", "files", "pieces", "open_size_bytes",
    "registered_size_bytes", "huge_pages", "under_way", "response_arena_size_bytes",
    "response_arena_registered_size_bytes", "zero_copy_size_bytes_min", "zero_copy_pending",
}  # fmt: skip

HELP = {
    "batchbridge_requests": "Requests that ended, by how.",
    "batchbridge_requests_read": "Requests whose head was read.",
    "batchbridge_requests_in_progress": "Requests read that have not ended yet.",
    "batchbridge_connections_open": "Connections open now.",
    "batchbridge_connections_refused": "Connections closed at once because max_connections were open.",
    "batchbridge_received_bytes": "Bytes received from clients.",
    "batchbridge_sent_bytes": "Bytes sent to clients.",
    "batchbridge_batches": "Batches handed to a handler, by route and by why they left.",
    "batchbridge_batch_items": "Requests handed to a handler in batches.",
    "batchbridge_batch_size": "Requests in a batch.",
    "batchbridge_gil_entries": "Times the interpreter was entered: one for each batch of a Python handler.",
    "batchbridge_items_unanswered": "Requests that their handler left without an answer: they got 500.",
    "batchbridge_answers_refused": "Answers of native handlers that could not be sent.",
    "batchbridge_response_arena_size_bytes": "Memory that handlers' answers are written to.",
    "batchbridge_response_arena_registered_size_bytes": "Of it, what is registered with the kernel as fixed buffers.",
    "batchbridge_sends_pieces": "Sends of large or slow responses, which leave by themselves.",
    "batchbridge_sends_zero_copy": "Of these, those without a copy.",
    "batchbridge_sends_zero_copy_size_bytes_min": "From this size on, what is sent at a time is not copied.",
    "batchbridge_cache_objects": "Objects that the cache may answer with.",
    "batchbridge_cache_size_bytes": "What its objects, tags and directories take.",
    "batchbridge_cache_unreclaimed": "Objects that were purged and whose memory is still to be reclaimed.",
    "batchbridge_cache_groups": "Tags and directories of its objects.",
    "batchbridge_cache_leaving": "Objects that have left the cache and are still being sent.",
    "batchbridge_cache_leaving_size_bytes": "What these take, beside the cache's size.",
    "batchbridge_cache_evictions": "Objects that made room for others.",
    "batchbridge_cache_expired": "Objects removed since their time was over.",
    "batchbridge_cache_purged": "Objects hit by purges.",
    "batchbridge_cache_refused": "Objects that were not taken: too large, or with too many tags.",
    "batchbridge_cache_fragments_living": "Pieces of 64 KiB that large objects consist of.",
    "batchbridge_cache_fragments_present": "Of them, those that were read.",
    "batchbridge_cache_fragments_pins": "References to fragments, of sends and reads under way.",
    "batchbridge_cache_fragments_files": "Files that are open since not all of them was read.",
    "batchbridge_cache_fragments_read_at_once": "Fragments that the page cache had.",
    "batchbridge_cache_fragments_read_later": "Fragments that a disk had to be waited for.",
    "batchbridge_cache_fragments_reads_failed": "Fragments that could not be read: the file was shorter, or changed.",
    "batchbridge_cache_fragments_copies": "First fragments that were copied, since another head was on its way.",
    "batchbridge_cache_arena_size_bytes": "What large objects take of the arena.",
    "batchbridge_cache_arena_size_bytes_max": "Addresses that the arena has reserved.",
    "batchbridge_cache_arena_pieces": "Fragments in the arena.",
    "batchbridge_cache_arena_open_size_bytes": "What the arena has of the machine's memory.",
    "batchbridge_cache_arena_registered_size_bytes": "Of that, what is registered with the kernel as fixed buffers.",
    "batchbridge_cache_arena_refused": "Times that the arena had no room.",
    "batchbridge_cache_arena_faults": "Pieces given back that were not taken: a mistake in the server.",
    "batchbridge_cache_plain_memory_pieces": "Fragments outside of the arena.",
    "batchbridge_cache_plain_memory_size_bytes": "What they take.",
    "batchbridge_cache_page_cache_pieces": "Fragments, on their way, of files that are too large to be kept.",
    "batchbridge_fills_under_way": "Fragments that are being waited for.",
    "batchbridge_openings_later": "Paths of files that a disk had to be waited for before they could be opened.",
    "batchbridge_openings_under_way": "Of them, those that are being waited for.",
    "batchbridge_route_queued": "Requests that wait for a batch now.",
}


def _help(name: str) -> str:
    return HELP.get(name) or name.removeprefix("batchbridge_").replace("_", " ").capitalize() + "."


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _leaf(name: str, key: str, value: float) -> Metric:
    if key in GAUGES:
        return GaugeMetricFamily(name, _help(name), value=value)
    return CounterMetricFamily(name, _help(name), value=value)


class StatsCollector(Collector):
    """Asks `stats` (a server's method) at each scrape, and tells what it says."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        stats = self._stats()
        for section, values in stats.items():
            if not isinstance(values, Mapping):
                if _is_number(values):
                    yield _leaf(f"batchbridge_{section}", section, values)
            elif section == "requests":
                yield from _requests(values)
            elif section == "routes":
                yield from _routes(values)
            elif section == "bytes":
                yield from (_leaf(f"batchbridge_{key}_bytes", key, n) for key, n in values.items() if _is_number(n))
            elif section == "bridge":
                # Batches and items are told by route, where their sum is these.
                told = {"batches", "items"} if "routes" in stats else set()
                yield from _section("", {key: n for key, n in values.items() if key not in told})
            else:
                yield from _section(f"{section}_", values)


def _section(prefix: str, values: Stats) -> Iterator[Metric]:
    words = {key: value for key, value in values.items() if isinstance(value, str)}
    if words:
        yield InfoMetricFamily(f"batchbridge_{prefix.rstrip('_')}", "What it is.", value=words)
    for key, value in values.items():
        name = f"batchbridge_{prefix}{key}"
        if _is_number(value):
            yield _leaf(name, key, value)
        elif isinstance(value, Mapping):
            yield from _section(f"{prefix}{key}_", value)


def _requests(values: Stats) -> Iterator[Metric]:
    outcomes = values.get("outcomes", {})
    family = CounterMetricFamily("batchbridge_requests", _help("batchbridge_requests"), labels=["outcome"])
    for outcome, count in outcomes.items():
        family.add_metric([outcome], count)
    yield family
    if "read" in values:
        yield CounterMetricFamily("batchbridge_requests_read", _help("batchbridge_requests_read"), value=values["read"])
        name = "batchbridge_requests_in_progress"
        # The counters are read one after the other, without stopping the engine: the difference may be -1 for a moment.
        yield GaugeMetricFamily(name, _help(name), value=max(0, values["read"] - sum(outcomes.values())))
    yield from _section("requests_", {key: n for key, n in values.items() if key not in ("read", "outcomes")})


def _routes(routes: Stats) -> Iterator[Metric]:
    batches = CounterMetricFamily("batchbridge_batches", _help("batchbridge_batches"), labels=["route", "reason"])
    items = CounterMetricFamily("batchbridge_batch_items", _help("batchbridge_batch_items"), labels=["route"])
    sizes = HistogramMetricFamily("batchbridge_batch_size", _help("batchbridge_batch_size"), labels=["route"])
    others: dict[str, Metric] = {}
    for route, values in routes.items():
        for reason, count in values.get("reasons", {}).items():
            batches.add_metric([route, reason], count)
        items.add_metric([route], values.get("items", 0))
        if "batch_size_histogram" in values:
            sizes.add_metric([route], *_histogram(values["batch_size_histogram"], values.get("items", 0)))
        for key, value in values.items():
            if key in ("items", "batches") or not _is_number(value):
                continue
            name = f"batchbridge_route_{key}"
            kind = GaugeMetricFamily if key in GAUGES else CounterMetricFamily
            family = others.setdefault(key, kind(name, _help(name), labels=["route"]))
            family.add_metric([route], value)  # type: ignore[attr-defined]
    yield from (batches, items, sizes, *others.values())


def _histogram(counts: list[int], items: int) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets out of counts by power of two: counts[i] batches had at most 2**i requests, and more than the
    bucket before."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for power, count in enumerate(counts):
        total += count
        buckets.append((str(float(1 << power)), total))
    return [*buckets, ("+Inf", total)], items


def registry_for(stats: Callable[[], Stats]) -> CollectorRegistry:
    """A registry of its own with the server's metrics and the process's (CPU, memory, descriptors)."""
    registry = CollectorRegistry()
    registry.register(StatsCollector(stats))
    ProcessCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The scrape, as text; its media type is CONTENT_TYPE_LATEST."""
    return generate_latest(registry)
