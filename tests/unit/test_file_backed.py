"""The servers that large files are measured against send the file, and figures are told a MiB of it."""

from pathlib import Path

import pytest

from batchbridge.cython_ext import ring
from batchbridge.measure.processes import CommandProcess, free_port
from batchbridge.measure.results import Results, Run
from bench.file_backed import MIB, SENDERS, figures_of, sender, table
from support.native import require_compiler
from support.skips import skip
from support.wire import Client, together


@pytest.mark.parametrize("way", SENDERS)
def test_the_least_servers_send_the_file(tmp_path: Path, way: str) -> None:
    require_compiler("cc")
    if way == "splice" and (error := ring.probe()["ring_error"]):
        skip("no-io-uring", f"io_uring: {error}")
    content = bytes(range(251)) * 12_345
    (tmp_path / "file").write_bytes(content)
    port = free_port()

    def ask() -> None:
        with Client(f"http://127.0.0.1:{port}", receive_buffer_bytes=65_536) as client:
            for _ in range(3):
                assert client.ask("GET", "/").body == content

    command = [str(sender(tmp_path)), way, str(port), str(tmp_path / "file"), "0"]
    with CommandProcess(command, port) as server:
        together([ask] * 4)
        assert server.process.poll() is None


def run(size_bytes: int, server: float | None, client: float | None = None, share: float | None = None) -> Run:
    return Run(
        "io_uring", 0, {"size_bytes": size_bytes}, requests_per_s=50.0, server_cpu_us_per_request=server,
        client_core_us_per_request=client, server_threads_share=share,
    )  # fmt: skip


def test_figures_are_a_mib() -> None:
    told = figures_of(run(10 * MIB, 4000.0, 2000.0, 0.5))
    assert told == {"server": 400.0, "client": 200.0, "both": 600.0, "threads": 1000.0, "MiB/s": 500.0}
    assert figures_of(run(MIB, None)) == {"MiB/s": 50.0}


def test_the_table_has_medians_of_what_is_known() -> None:
    results = Results("versus")
    results.runs += [run(MIB, 300.0), run(MIB, 500.0), run(MIB, 900.0), run(MIB, None, share=0.01)]
    (line,) = table(results)
    assert "server    500.0" in line and "client        ?" in line and "threads    200.0" in line and "(4 runs)" in line
