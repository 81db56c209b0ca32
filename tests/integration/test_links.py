"""An interface's settings are made and read back, and what the kernel does not do is said. In namespaces of the test's
own, so that nothing of the machine's is touched.
"""

import json
import subprocess
import sys

import pytest

from batchbridge.measure.links import Link, LinkError, read
from support.skips import skip_if

SCRIPT = """
import json, subprocess, sys
from batchbridge.measure.links import Link, LinkError, apply, read
subprocess.run(["ip", "link", "add", "one", "type", "veth", "peer", "name", "two"], check=True)
before = read("one")
try:
    apply("one", Link(**json.loads(sys.argv[1])))
    told = ""
except LinkError as error:
    told = str(error)
print(json.dumps([before, read("one"), read("two"), told]))
"""

needs_namespaces = skip_if(
    subprocess.run(["unshare", "-n", "ip", "link"], check=False, capture_output=True).returncode != 0,
    "no-namespaces", "network namespaces cannot be made here",
)  # fmt: skip


def applied(**link):
    command = ["unshare", "-n", sys.executable, "-P", "-c", SCRIPT, json.dumps(link)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return json.loads(done.stdout)


@needs_namespaces
def test_what_is_not_asked_for_stays():
    before, after, _, told = applied()
    assert after == before == {"mtu_bytes": 1500, "tx_checksums": True, "gso": True, "tso": True} and told == ""


@needs_namespaces
def test_settings_are_made_on_one_interface():
    before, after, peer, told = applied(mtu_bytes=9000, tso=False, gso=False)
    assert told == "" and after == {"mtu_bytes": 9000, "tx_checksums": True, "gso": False, "tso": False}
    assert peer == before


@needs_namespaces
def test_without_checksums_there_are_no_large_segments():
    _, after, _, told = applied(tx_checksums=False)
    assert told == "" and after["tx_checksums"] is False and after["tso"] is False
    _, _, _, told = applied(tx_checksums=False, tso=True)
    assert "keeps tso off" in told


@needs_namespaces
def test_an_mtu_that_cannot_be_is_refused():
    _, after, _, told = applied(mtu_bytes=1_000_000)
    assert "one cannot be set so" in told and after["mtu_bytes"] == 1500


def test_an_interface_that_is_not_there_is_said():
    with pytest.raises(LinkError, match="no-such-if cannot be looked at: no such device"):
        read("no-such-if")


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (Link(), ""),
        (Link(mtu_bytes=9000), "MTU 9000"),
        (Link(tso=False, gso=False), "no TSO, no GSO"),
        (Link(tx_checksums=True, steering=False), "tx checksums, no packet steering"),
    ],
)
def test_what_differs_is_put_into_words(link, words):
    assert link.words == words
