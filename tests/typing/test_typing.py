"""Typed programs check: mypy, strict, finds in `usage.py` exactly the errors that it says are there; the installed
package says that it is typed; and its stubs name what the compiled modules have.
"""

import importlib
import importlib.resources
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

import batchbridge
from support.skips import skip

USAGE = Path(__file__).with_name("usage.py")
STUBBED = ["engine", "headers", "memory", "messages", "native", "response", "states", "worker"]

#: Names that a stub's class has from what it says it is.
INHERITED = {"Headers": set(dir(Mapping)), "Batch": set(dir(Sequence))}


def mypy(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec("mypy") is None:
        skip("no-mypy", "mypy is not installed; pip install mypy")
    options = ["--strict", "--warn-unreachable", "--no-error-summary", "--hide-error-context", "--config-file="]
    return subprocess.run(
        [sys.executable, "-P", "-m", "mypy", *options, f"--cache-dir={cwd / 'cache'}", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,  # not the checkout, whose own folder batchbridge would be taken for the package
    )


def test_programs_are_typed_as_they_say(tmp_path: Path) -> None:
    run = mypy(str(USAGE), cwd=tmp_path)
    assert run.returncode == 0, f"{run.stdout}{run.stderr}"
    assert run.stdout == ""


def test_the_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files(batchbridge).joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", batchbridge.__all__)
def test_what_the_package_offers_is_there_and_documented(name: str) -> None:
    thing = getattr(batchbridge, name)
    assert name == "__version__" or inspect.getdoc(thing)


def stub_of(name: str) -> str:
    return importlib.resources.files("batchbridge.cython_ext").joinpath(f"{name}.pyi").read_text()


def members_of(stub: str, kind: str) -> set[str]:
    """The names that a stub gives a class."""
    body = re.search(rf"^class {kind}\b.*?:\n((?:(?:    .*)?\n)*)", stub, re.M)
    assert body, f"no class {kind}"
    return {one or other for one, other in re.findall(r"^    (?:async )?def (\w+)|^    (\w+):", body[1], re.M)}


@pytest.mark.parametrize("name", STUBBED)
def test_what_a_stub_names_is_there(name: str) -> None:
    module: ModuleType = importlib.import_module(f"batchbridge.cython_ext.{name}")
    stub = stub_of(name)
    for kind in re.findall(r"^class (\w+)", stub, re.M):
        fields = set(re.findall(r"^    (\w+): ", stub, re.M))  # which may only be there in an instance
        missing = {name for name in members_of(stub, kind) - fields if not hasattr(getattr(module, kind), name)}
        assert not missing, f"{kind} has no {missing}"
    for names in re.findall(r"^def (\w+)|^(\w+): Final", stub, re.M):
        assert hasattr(module, "".join(names))


@pytest.mark.parametrize(
    ("room", "kind"),
    [("response", "Response"), ("messages", "Batch"), ("messages", "Request"), ("headers", "Headers")],
)
def test_what_handlers_are_given_is_all_named_in_the_stub(room: str, kind: str) -> None:
    module = importlib.import_module(f"batchbridge.cython_ext.{room}")
    public = {name for name in vars(getattr(module, kind)) if not name.startswith("_")}
    assert public - members_of(stub_of(room), kind) - INHERITED.get(kind, set()) == set()
