"""What is told of the machine: all facts are there, are plain data, and make half a line."""

import json
import os

from batchbridge.measure import machine

CPUINFO = "processor\t: 0\nmodel name\t: A  Chip @ 2.5GHz\nflags\t\t: fpu hypervisor sse2\n"
MEMINFO = "MemTotal:       24684092 kB\nMemFree: 1 kB\n"


def test_this_machines_facts_are_plain_data():
    facts = machine.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert facts["kernel"] == f"Linux {os.uname().release}"
    assert facts["memory_bytes"] > 2**24 and facts["batchbridge"] and facts["python"].startswith("CPython 3.")
    assert machine.sentence() == machine.sentence(facts)


def test_facts_are_read_from_what_the_kernel_says(tmp_path, monkeypatch):
    files = {"CPUINFO": CPUINFO, "MEMINFO": MEMINFO, "CLOCK_SOURCE": "tsc\n", "GOVERNOR": None}
    for name, content in files.items():
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        monkeypatch.setattr(machine, name, str(path))
    vulnerabilities = tmp_path / "vulnerabilities"
    vulnerabilities.mkdir()
    (vulnerabilities / "meltdown").write_text("Not affected\n")
    (vulnerabilities / "spectre_v2").write_text("Mitigation: Retpolines; STIBP: disabled; RSB filling\n")
    (vulnerabilities / "mds").write_text("Vulnerable: Clear CPU buffers attempted, no microcode\n")
    monkeypatch.setattr(machine, "VULNERABILITIES", str(vulnerabilities))
    facts = machine.facts()
    assert facts["processor"] == "A Chip @ 2.5GHz" and facts["is_virtual"]
    assert facts["memory_bytes"] == 24_684_092 * 1024
    assert facts["mitigations"] == {
        "mds": "Vulnerable: Clear CPU buffers attempted, no microcode",
        "spectre_v2": "Retpolines",
    }
    assert (facts["clock_source"], facts["frequency_governor"]) == ("tsc", None)


def test_a_sentence_is_made_of_a_files_facts_too():
    assert machine.sentence({"processor": "A Chip", "cores": 1, "kernel": "Linux 9"}) == "A Chip, 1 core, Linux 9"
    assert machine.sentence({"cores": 4}) == "unknown processor, 4 cores, unknown kernel"
