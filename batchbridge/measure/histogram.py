"""Latency histograms in the forms that HdrHistogram's tools read.

A histogram here is what LoadFigures has: pairs of the least time of a bucket, in microseconds, and how many requests it
counts, in rising order. The buckets are those of an HdrHistogram with three significant digits (exact below 2,048 µs,
from there on no wider than 0.1% of their least), so nothing is lost on the way out or back.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Sequence
from typing import Any

from ..cython_ext.histogram import bucket_bounds
from ..errors import BatchBridgeError

__all__ = ["HistogramError", "decode", "encode", "from_hgrm", "to_hgrm"]

LARGEST_US = (1 << 36) - 1
SIGNIFICANT_DIGITS = 3

ROW = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s+([01]\.[0-9]+)\s+([0-9]+)\s+(?:[0-9.]+|inf)\s*")
HEADING = ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]

Pairs = Sequence[tuple[int, int]]


class HistogramError(BatchBridgeError):
    """A text is no histogram, or the library for it is missing. One sentence."""


def to_hgrm(histogram: Pairs) -> str:
    """The table of percentiles (`.hgrm`) that HdrHistogram's plotters read; values in microseconds.

    It has a row for each bucket, with its largest value, so that from_hgrm() finds all of it again.
    """
    total = sum(count for _, count in histogram)
    lines = [f"{HEADING[0]:>12} {HEADING[1]:>14} {HEADING[2]:>10} {HEADING[3]:>14}", ""]
    seen = 0
    for least_us, count in histogram:
        seen += count
        inverse = "" if seen == total else f"{total / (total - seen):14.2f}"
        lines.append(f"{bucket_bounds(least_us)[1]:12.3f} {seen / total:14.12f} {seen:10} {inverse}".rstrip())
    middles = [(sum(bucket_bounds(least_us)) / 2, count) for least_us, count in histogram]
    mean = sum(value * count for value, count in middles) / max(total, 1)
    deviation = math.sqrt(sum((value - mean) ** 2 * count for value, count in middles) / max(total, 1))
    largest = bucket_bounds(histogram[-1][0])[1] if histogram else 0
    lines.append(f"#[Mean    = {mean:12.3f}, StdDeviation   = {deviation:12.3f}]")
    lines.append(f"#[Max     = {largest:12.3f}, Total count    = {total:12}]")
    return "\n".join(lines) + "\n"


def from_hgrm(text: str) -> list[tuple[int, int]]:
    """The histogram of a table of percentiles in microseconds, as far as the table tells it. Raises HistogramError."""
    lines = text.splitlines()
    if not lines or lines[0].split() != HEADING:
        raise HistogramError("this is no table of percentiles: its first line is not Value, Percentile, TotalCount, …")
    found: dict[int, int] = {}
    before = 0
    for number, line in enumerate(lines[1:], 2):
        if not line.strip() or line.startswith("#"):
            continue
        row = ROW.fullmatch(line + " inf" if len(line.split()) == 3 else line)
        count = int(row[3]) - before if row else -1
        if row is None or count < 0:
            raise HistogramError(f"line {number} is no row of a table of percentiles: {line!r}")
        if count:
            least_us = bucket_bounds(min(round(float(row[1])), LARGEST_US))[0]
            found[least_us] = found.get(least_us, 0) + count
            before += count
    return sorted(found.items())


def encode(histogram: Pairs) -> str:
    """HdrHistogram's own compressed form (V2, base64), as its logs have it.

    Raises HistogramError where its library is missing.
    """
    encoder = _library()(1, LARGEST_US, SIGNIFICANT_DIGITS)
    for least_us, count in histogram:
        encoder.record_value(least_us, count)
    encoded = encoder.encode()
    return str(encoded, "ascii") if isinstance(encoded, bytes) else str(encoded)


def decode(encoded: str) -> list[tuple[int, int]]:
    """The histogram of HdrHistogram's compressed form. Raises HistogramError for what is none."""
    library = _library()
    try:
        recorded = library.decode(encoded).get_recorded_iterator()
        pairs = [(item.value_iterated_to, item.count_added_in_this_iter_step) for item in recorded]
    except Exception as error:
        raise HistogramError(f"this is no encoded histogram: {error or type(error).__name__}") from None
    found: dict[int, int] = {}
    for value_us, count in pairs:
        least_us = bucket_bounds(value_us)[0]
        found[least_us] = found.get(least_us, 0) + count
    return sorted(found.items())


def _library() -> Any:
    try:
        return importlib.import_module("hdrh.histogram").HdrHistogram
    except ModuleNotFoundError:
        raise HistogramError("this needs the package hdrhistogram: pip install hdrhistogram") from None
