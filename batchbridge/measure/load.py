"""Load on a server from a process of its own, so that nothing the caller's Python does disturbs it.

The process is ``python -P -m batchbridge.measure.load HOST PORT --flags``: what it runs with is seen in its arguments,
the requests come as msgpack on its standard input, and the figures leave as msgpack on its standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from ..cython_ext.histogram import bucket_bounds
from ..cython_ext.load import ARRIVALS, Exchange, Load
from ..errors import BatchBridgeError

__all__ = [
    "ARRIVALS",
    "IDLE_SHARE_MIN",
    "OPEN_IDLE_SHARE_MIN",
    "LoadError",
    "LoadFigures",
    "LoadInterrupted",
    "run_load",
]

#: A client of a closed loop that waits less than this share of the time may be what limits the figures.
IDLE_SHARE_MIN = 0.15
#: The same of an open loop. There the client wakes for each request that is due, as long as it can, and takes several
#: at once only when it cannot: a request costs it 23 µs at 20,000/s and 9 at 100,000, with the same lateness. So its
#: core looks busy long before it is the limit.
OPEN_IDLE_SHARE_MIN = 0.05

SECONDS_MAX = 86400
#: At the end, what was sent is still answered for so long.
DRAIN_S = 2.0
#: Beyond a run's own time, for the process to start, to set up and to tell.
PATIENCE_S = 30.0
INTERRUPTION_PATIENCE_S = 3.0

EXCHANGE_FIELDS = ("data", "weight", "statuses", "body", "length", "crc32", "name")


class LoadError(BatchBridgeError):
    """The load could not be run at all, or what it should send makes no sense. One sentence."""


@dataclass
class LoadFigures:
    """What a run measured. Where `is_valid` is false, none of it is a result, and `invalid_reason` says why.

    In a closed loop latencies count from when a request was sent; in an open loop from the moment at which it should
    have been, whether or not a connection was free then (no coordinated omission).
    """

    requests: int
    """Sent in all, with those of the warm-up."""
    responses: int
    """Whole ones within the measured time."""
    seconds: float
    """The measured time."""
    requests_per_s: float
    """Responses by the measured time."""
    offered_per_s: float | None
    """Open loop: requests that the schedule had in the measured time, by that time."""
    latency_us: dict[str, float]
    """p50, p90, p99, p999, max, mean."""
    histogram: list[tuple[int, int]]
    """Latencies: (least_us of a bucket, requests), in rising order. A bucket is no wider than 0.1% of its least.

    Of a request that was never sent (`unissued`) it is the time that it had waited at the end, so at least that.
    """
    idle_share: float
    """Of the measured time: in how much of it the client's thread neither ran nor waited for its core."""
    saturated: bool
    """`is_saturated`: the server may be able to do more than `requests_per_s`."""
    late_us: dict[str, float] | None
    """Open loop: how long after its moment the client looked at a request (p99, max). Its fault, not the server's."""
    wrong: dict[str, int]
    """Wrong answers, by kind; `answers` counts each once."""
    failures: dict[str, int]
    """Connections that failed, by kind, where there were any."""
    is_valid: bool
    invalid_reason: str | None
    """A sentence."""
    command: list[str]
    """The process that made the load."""
    service_us: dict[str, float] | None = None
    """Open loop: as `latency_us`, but from when a request was really sent."""
    unissued: int = 0
    """Open loop: requests of the schedule that had not been sent when the run ended."""
    unanswered: int = 0
    """Requests that were sent and never answered."""
    received_bytes: int = 0
    began_us: int = 0
    """When the measured time began, and ended (CLOCK_MONOTONIC)."""
    ended_us: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    """Answers of the whole run, by status."""
    client_us_per_request: float = 0.0
    """Microseconds of the client's core that a request took."""

    def run_fields(self) -> dict[str, Any]:
        """What a results.Run has of these figures, by its fields' names."""
        return {
            "seconds": self.seconds,
            "responses": self.responses,
            "requests_per_s": self.requests_per_s,
            "offered_per_s": self.offered_per_s,
            "latency_us": dict(self.latency_us),
            "histogram": list(self.histogram),
            "client_idle_share": self.idle_share,
        }


class LoadInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a run early; `figures` are of the time until then."""

    def __init__(self, figures: LoadFigures) -> None:
        super().__init__()
        self.figures = figures


def run_load(
    host: str,
    port: int,
    exchanges: Iterable[Exchange],
    *,
    connections: int = 64,
    seconds: float = 5.0,
    warmup_s: float = 0.5,
    rate_per_s: float | None = None,
    arrivals: str = "poisson",
    pipeline: int = 1,
    close: bool = False,
    cpu: int | None = None,
    seed: int = 1,
    timeout_s: float = 10.0,
    prefix: Sequence[str] = (),
) -> LoadFigures:
    """Loads a server for `seconds`, after `warmup_s` which do not count.

    Closed loop unless `rate_per_s` is given, which makes it an open one whose gaps are exponential ("poisson") or all
    the same ("constant"). `close`: a connection for each request. `cpu`: the core that the client is kept on.
    `timeout_s`: of an answer. `prefix`: what stands before the process's command (`Place.prefix`). A server that fails
    or answers wrongly makes the figures invalid; LoadError is for what cannot be run: a setting out of its range, a
    host without an address, no io_uring. Ctrl-C raises LoadInterrupted, a KeyboardInterrupt, where there are figures.
    """
    for name, value in (("seconds", seconds), ("warmup_s", warmup_s), ("timeout_s", timeout_s)):
        if not 0 <= value <= SECONDS_MAX:
            raise LoadError(f"{name}: {value} is not a number from 0 to {SECONDS_MAX}")
    options = [f"--connections={connections}", f"--seconds={seconds}", f"--warmup={warmup_s}", f"--seed={seed}"]
    options += [f"--pipeline={pipeline}", f"--timeout={timeout_s}"]
    if rate_per_s is not None:
        options += [f"--rate={rate_per_s}", f"--arrivals={arrivals}"]
    if close:
        options.append("--close")
    if cpu is not None:
        options.append(f"--cpu={cpu}")
    command = [*prefix, sys.executable, "-P", "-m", "batchbridge.measure.load", host, str(port), *options]
    asked = [{name: getattr(exchange, name) for name in EXCHANGE_FIELDS} for exchange in exchanges]
    pipe = subprocess.PIPE
    try:
        # A group of its own: Ctrl-C is for the caller, and is passed on once.
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, process_group=0)
    except OSError as error:
        raise LoadError(f"cannot run {command[0]}: {(error.strerror or str(error)).lower()}") from None
    with process:
        try:
            return _ask(process, command, msgpack.packb(asked), warmup_s + seconds + timeout_s + DRAIN_S + PATIENCE_S)
        finally:
            process.kill()


def _ask(process: subprocess.Popen[bytes], command: list[str], job: bytes, patience_s: float) -> LoadFigures:
    """What the process measured."""
    try:
        output, errors = process.communicate(job, timeout=patience_s)
    except subprocess.TimeoutExpired:
        raise LoadError(f"the load had not ended after {patience_s:.0f} s") from None
    except KeyboardInterrupt as interruption:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(timeout=DRAIN_S + INTERRUPTION_PATIENCE_S)
            if process.returncode == 0:
                raise LoadInterrupted(_figures(output, command)) from None
        raise interruption
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise LoadError(lines[-1] if lines else f"the load's process ended with status {process.returncode}")
    return _figures(output, command)


def _figures(output: bytes, command: list[str]) -> LoadFigures:
    told = msgpack.unpackb(output, strict_map_key=False)
    results, histogram = told["results"], told["histogram"]
    idle_share = results["client"]["idle_share"]
    figures = LoadFigures(
        requests=results["sent"],
        responses=results["requests"],
        seconds=results["seconds"],
        requests_per_s=results["requests_per_s"],
        offered_per_s=results["offered_per_s"],
        latency_us=results["latency_us"],
        histogram=[(bucket_bounds(latency_us)[0], count) for latency_us, count in histogram],
        idle_share=idle_share,
        saturated=is_saturated(idle_share, is_open=results["offered_per_s"] is not None),
        late_us=results["late_us"],
        wrong=results["wrong"],
        failures={kind: count for kind, count in results["errors"].items() if count},
        is_valid=True,
        invalid_reason=None,
        command=command,
        service_us=results["service_us"],
        unissued=results["unissued"],
        unanswered=results["unanswered"],
        received_bytes=results["bytes"],
        began_us=results["began_us"],
        ended_us=results["ended_us"],
        statuses=dict(results["statuses"]),
        client_us_per_request=results["client"]["cpu_s"] * 1e6 / max(results["requests"], 1),
    )
    figures.invalid_reason = _fault(figures, results["wrong_example"])
    figures.is_valid = figures.invalid_reason is None
    return figures


def is_saturated(idle_share: float, *, is_open: bool) -> bool:
    """Whether a client that waited for this share of the time may be what limits the figures of its loop."""
    return idle_share < (OPEN_IDLE_SHARE_MIN if is_open else IDLE_SHARE_MIN)


def _fault(figures: LoadFigures, wrong_example: str) -> str | None:
    """Why the figures are no result; None: they are one."""
    wrong = figures.wrong["answers"]
    if wrong:
        return f"{wrong:,} of the server's answers were wrong, the first of them: {wrong_example}"
    if figures.failures:
        kinds = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in figures.failures.items())
        return f"connections failed: {kinds}"
    if figures.unanswered:
        return f"{figures.unanswered:,} requests were never answered"
    if figures.responses == 0:
        return "nothing was answered in the measured time"
    if figures.unissued and figures.saturated:
        return (
            f"{figures.unissued:,} requests of the schedule were never sent, and the client was idle for only "
            f"{figures.idle_share:.0%} of the time, so it may be the client that was too slow"
        )
    return None


# --- the process ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The process that makes the load: msgpack in, msgpack out; what goes wrong is one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -P -m batchbridge.measure.load")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    for name in ("connections", "seed", "pipeline", "cpu"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("seconds", "warmup", "timeout", "rate"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--arrivals", default=ARRIVALS[0])
    parser.add_argument("--close", action="store_true")
    options = parser.parse_args(arguments)
    try:
        if options.cpu is not None:
            pin(options.cpu)
        sys.stdout.buffer.write(msgpack.packb(serve(options, msgpack.unpackb(sys.stdin.buffer.read()))))
    except KeyboardInterrupt:
        return 130
    except socket.gaierror as error:
        print(f"{options.host} has no address: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return 1
    except (LoadError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def pin(cpu: int) -> None:
    """Keeps this process on one core. Raises LoadError where it may not run on that."""
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, OverflowError, ValueError):
        raise LoadError(f"the client cannot be kept on core {cpu}: this machine has {os.cpu_count()}, from 0") from None


def serve(options: argparse.Namespace, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """Runs the load that was asked for. Raises ValueError for what makes no sense, OSError where it cannot run."""
    load = Load(
        options.host,
        options.port,
        [Exchange(**fields) for fields in asked],
        options.connections,
        options.seconds,
        warmup_s=options.warmup,
        close=options.close,
        pipeline=options.pipeline,
        seed=options.seed,
        timeout_s=options.timeout,
        drain_s=DRAIN_S,
        rate_per_s=options.rate,
        arrivals=options.arrivals,
    )
    # Ctrl-C has ended the run then; what was measured until then is told.
    with contextlib.suppress(KeyboardInterrupt):
        load.run()
    return {"results": load.results(), "histogram": load.histogram()}


if __name__ == "__main__":
    sys.exit(main())
