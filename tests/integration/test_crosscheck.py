"""Our load generator beside wrk, h2load and httperf, on one server: all count as it does.

How far their rates agree is for a quiet machine: ``python -m bench.crosscheck`` asks for 5%. Here the cores are shared,
so only the counts are held to anything.
"""

import shutil

import pytest

from batchbridge.cython_ext import ring
from batchbridge.measure.processes import ServerProcess
from bench import crosscheck, crosscheck_app
from support.skips import skip, skip_if

pytestmark = skip_if(
    bool(ring.probe()["ring_error"]), "no-io-uring", "the load generator sends and receives by io_uring"
)


@pytest.fixture(scope="module")
def generators():
    with ServerProcess(f"{crosscheck_app.__file__}:server", access_log="off") as server:
        yield crosscheck.Bench(server, None, 1.0)


@pytest.mark.parametrize(("case", "name"), [(case, name) for case, those in crosscheck.CASES.items() for name in those])
def test_a_generator_counts_as_the_server_does(generators, case, name):
    if name != "ours" and shutil.which(name) is None:
        skip(f"no-{name}", f"{name} is not installed")
    line = crosscheck.Line(case, name)
    for _ in crosscheck.measure(generators, [line], 1):
        pass
    (told,) = line.told
    assert line.miscounts == 0 and told.answers > 0 and told.requests_per_s > 0 and told.mean_us > 0


def test_agreement_is_within_five_percent_and_right_counts():
    def line(name, rate, miscounts=0):
        return crosscheck.Line("case", name, [crosscheck.Told(100, rate, 50.0)], miscounts)

    for rate, miscounts, agrees in ((1040.0, 0, True), (940.0, 0, False), (1000.0, 1, False)):
        _, agree = crosscheck.table([line("ours", 1000.0), line("wrk", rate, miscounts)])
        assert agree is agrees
