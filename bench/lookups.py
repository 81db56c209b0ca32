"""What a lookup and a purge cost in a large cache: ``python -P -m bench.lookups`` (JSON with ``--json``).

Lookups are of random objects, from the key's bytes to the object, hash and hit count included; `alone` one after the
other, `batched` 32 at a time with prefetching. `memory` is what this machine's memory takes of `alone`: the same key
hashed, and two reads, one of the index and one of where that leads. The arms take turns; the median and the least of
the rounds are told.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import click
import numpy as np

from batchbridge.cython_ext.cache_testing import TAG, Store

BATCH = 32
LOOKUPS = 200_000
PAYLOAD_SIZE_BYTES = 64
TAGGED = 100_000
#: How many are looked up at a time; 0: only the memory is read.
ARMS = {"alone": 1, "memory": 0, "batched": BATCH, "absent": 1}


def measure(objects: int, rounds: int) -> dict[str, Any]:
    """The figures of a cache with so many objects; times in nanoseconds."""
    store = Store(8 << 30)
    tagged = min(TAGGED, objects // 2)
    store.fill(0, objects - tagged, PAYLOAD_SIZE_BYTES)
    store.fill(objects - tagged, tagged, PAYLOAD_SIZE_BYTES, b"tagged")
    chance = np.random.default_rng(1)
    arms: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm, batch in ARMS.items():
            first = objects if arm == "absent" else 0
            numbers = chance.integers(first, first + objects, LOOKUPS).astype(np.int32)
            took_ns, found = store.lookups_ns(numbers, batch)
            assert found == (0 if arm == "absent" else LOOKUPS)
            arms[arm].append(took_ns)
    began = time.perf_counter_ns()
    purged = store.purge(TAG, b"tagged")
    purge_ns = time.perf_counter_ns() - began
    assert purged == tagged
    return {
        "objects": objects,
        **{f"{arm}_ns": {"median": statistics.median(took), "least": min(took)} for arm, took in arms.items()},
        "purged": purged,
        "purge_ns": purge_ns,
    }


@click.command()
@click.option("--objects", default=1_000_000, show_default=True, type=click.IntRange(1000, 10_000_000))
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1, 1000))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(objects: int, rounds: int, as_json: bool) -> None:
    """Measure lookups and a purge by tag."""
    figures = measure(objects, rounds)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    for arm in ARMS:
        took = figures[f"{arm}_ns"]
        click.echo(f"{arm:8} {took['median']:6.0f} ns a lookup (least {took['least']:.0f})")
    click.echo(f"a purge by tag of {figures['purged']:,} objects: {figures['purge_ns'] / 1e6:.3f} ms")


if __name__ == "__main__":
    main()
