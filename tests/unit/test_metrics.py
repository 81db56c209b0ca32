"""What the server counts is what Prometheus reads: the text parses, and the figures are those of `stats`."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchbridge.metrics import registry_for, render

STATS = {
    "requests": {"read": 100, "outcomes": {"hit_user": 40, "file": 20, "batch": 30, "error_4xx": 5, "client_gone": 2}},
    "connections": {"accepted": 9, "open": 3, "closed": 6, "refused": 1},
    "bytes": {"received": 1000, "sent": 50_000},
    "bridge": {"gil_entries": 7, "batches": 7, "items": 30, "dropped_expired": 1, "body_copies": 4, "late": 0},
    "routes": {
        "/score/{model}": {
            "batches": 4, "items": 20, "reasons": {"full": 1, "idle": 3}, "queued": 5, "dropped": 2,
            "batch_size_histogram": [1, 0, 2, 1],
        },
        '/a"b\\c\n': {"batches": 3, "items": 10, "reasons": {"delay": 3}, "queued": 0},
    },
    "cache": {"hits": 40, "misses": 60, "objects": 12, "size_bytes": 4096},
    "engine": {"name": "io_uring", "threads": 2, "loops": 8, "submits": 9, "system_calls": 10},
    "something_new": {"count": 3, "deep": {"er": 1}, "word": "x", "list": [1], "flag": True},
    "uptime_s": 12.5,
}  # fmt: skip


def scrape(stats):
    text = render(registry_for(lambda: stats)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def samples():
    return scrape(STATS)


def value(samples, metric, **labels):
    return samples[metric, frozenset(labels.items())]


def test_requests_by_outcome_and_what_is_in_progress(samples):
    for outcome, count in STATS["requests"]["outcomes"].items():
        assert value(samples, "batchbridge_requests_total", outcome=outcome) == count
    assert value(samples, "batchbridge_requests_read_total") == 100
    assert value(samples, "batchbridge_requests_in_progress") == 3


def test_connections_bytes_and_bridge(samples):
    assert value(samples, "batchbridge_connections_open") == 3
    assert value(samples, "batchbridge_connections_accepted_total") == 9
    assert value(samples, "batchbridge_sent_bytes_total") == 50_000
    assert value(samples, "batchbridge_gil_entries_total") == 7


def test_routes_with_reasons_and_sizes(samples):
    route = "/score/{model}"
    assert value(samples, "batchbridge_batches_total", route=route, reason="idle") == 3
    assert value(samples, "batchbridge_batches_total", route='/a"b\\c\n', reason="delay") == 3
    assert value(samples, "batchbridge_batch_items_total", route=route) == 20
    assert value(samples, "batchbridge_route_queued", route=route) == 5
    assert value(samples, "batchbridge_route_dropped_total", route=route) == 2
    buckets = [value(samples, "batchbridge_batch_size_bucket", route=route, le=f"{1 << i}.0") for i in range(4)]
    assert buckets == [1, 1, 3, 4]
    assert value(samples, "batchbridge_batch_size_bucket", route=route, le="+Inf") == 4
    assert value(samples, "batchbridge_batch_size_sum", route=route) == 20


def test_what_is_added_later_is_told_too(samples):
    assert value(samples, "batchbridge_cache_hits_total") == 40
    assert value(samples, "batchbridge_cache_objects") == 12
    assert value(samples, "batchbridge_engine_info", name="io_uring") == 1
    assert value(samples, "batchbridge_engine_threads") == 2
    assert value(samples, "batchbridge_something_new_count_total") == 3
    assert value(samples, "batchbridge_something_new_deep_er_total") == 1
    assert value(samples, "batchbridge_uptime_s_total") == 12.5


def test_the_process_is_told(samples):
    assert value(samples, "process_resident_memory_bytes") > 0


def test_little_or_nothing_is_no_error():
    assert scrape({"requests": {}, "routes": {}, "bridge": {}})
    counters_read_apart = scrape({"requests": {"read": 1, "outcomes": {"file": 2}}})
    assert value(counters_read_apart, "batchbridge_requests_in_progress") == 0
