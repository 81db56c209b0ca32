"""Accept-Encoding is read as RFC 9110 section 12.5.3 says: weights, "*", "identity", lists over several lines; what is
malformed counts as not being there. A model of the section judges the same."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchbridge.cython_ext.codings import rank_for_tests

ALL = ["br", "zstd", "gzip"]


def rank(*values: bytes, preferred: list[str] = ALL) -> list[str]:
    return rank_for_tests(values, preferred)


@pytest.mark.parametrize(
    ("value", "ranked"),
    [
        (b"gzip", ["gzip", "identity"]),
        (b"gzip, br", ["br", "gzip", "identity"]),  # as much: the server's preference
        (b"gzip;q=1.0, br;q=0.9", ["gzip", "br", "identity"]),
        (b"gzip, deflate, br, zstd", ["br", "zstd", "gzip", "identity"]),
        (b"GZip", ["gzip", "identity"]),
        (b"x-gzip", ["gzip", "identity"]),
        (b"", ["identity"]),
        (b"identity", ["identity"]),
        (b"deflate, compress", ["identity"]),
        (b"*", ["br", "zstd", "gzip", "identity"]),
        (b"*;q=0", []),
        (b"*;q=0, identity", ["identity"]),
        (b"identity;q=0, gzip", ["gzip"]),
        (b"identity;q=0", []),
        (b"gzip;q=0, *", ["br", "zstd", "identity"]),
        (b"gzip;q=0.5, *;q=0.1", ["gzip", "br", "zstd", "identity"]),
        (b"gzip;q=0.5, identity;q=0.8", ["identity", "gzip"]),
        (b"gzip;q=0.001", ["gzip", "identity"]),
        (b"gzip;q=0.000", ["identity"]),
        (b"gzip;q=0.0001", ["identity"]),  # malformed, so not there
        (b"gzip;q=1.001", ["identity"]),
        (b"gzip;q=2", ["identity"]),
        (b"gzip;q=-1", ["identity"]),
        (b"gzip;q=", ["identity"]),
        (b"gzip;q", ["identity"]),
        (b"gzip;", ["identity"]),
        (b"gzip;p=1", ["identity"]),
        (b"gzip;q=1;q=0", ["identity"]),
        (b"gzip ; q=0.5", ["gzip", "identity"]),
        (b"gzip;\tQ=0.5 ", ["gzip", "identity"]),
        (b"gzip;q=1.", ["gzip", "identity"]),
        (b"gzip;q=0.", ["identity"]),
        (b"gzip br", ["identity"]),
        (b",, gzip ,,", ["gzip", "identity"]),
        (b"gzip;q=0, gzip", ["gzip", "identity"]),
        (b"=gzip, br", ["br", "identity"]),
        (b'"gzip", br', ["br", "identity"]),
        (b"gzipped, brotli", ["identity"]),
    ],
)
def test_one_line(value: bytes, ranked: list[str]) -> None:
    assert rank(value) == ranked


def test_without_the_field_only_identity_is_safe() -> None:
    assert rank() == ["identity"]


def test_several_lines_are_one_list() -> None:
    assert rank(b"gzip;q=0.5", b"identity;q=0, br") == ["br", "gzip"]
    assert rank(b"gzip", b"") == ["gzip", "identity"]


def test_only_what_is_looked_for_is_ranked() -> None:
    assert rank(b"gzip, br, zstd", preferred=["gzip"]) == ["gzip", "identity"]
    assert rank(b"gzip, br, zstd", preferred=["gzip", "br"]) == ["gzip", "br", "identity"]
    assert rank(b"*", preferred=[]) == ["identity"]


ELEMENT = re.compile(
    rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t]*[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?[ \t]*"
)


def model(lines: list[bytes], preferred: list[str]) -> list[str]:
    if not lines:
        return ["identity"]
    weights: dict[str, float] = {}
    for element in b",".join(lines).split(b","):
        if found := ELEMENT.fullmatch(element):
            name = found[1].decode().lower().removeprefix("x-") if found[1].lower() == b"x-gzip" else found[1].decode()
            weights[name.lower()] = 1.0 if found[2] is None else float(found[2])
    wanted = [(weights.get(name, weights.get("*", 0.0)), name) for name in preferred]
    wanted.append((weights.get("identity", weights.get("*", 0.0001)), "identity"))
    return [name for weight, name in sorted(wanted, key=lambda pair: -pair[0]) if weight]


names = st.sampled_from([b"gzip", b"br", b"zstd", b"identity", b"*", b"x-gzip", b"deflate", b"GZIP", b"", b"a b"])
weights = st.sampled_from(
    [b"", b";q=0", b";q=1", b"; q=0.5", b";q=0.25 ", b" ;Q=0.999", b";q=1.000", b";q=x", b";", b";q=0.1234"]
)
lines = st.lists(st.tuples(names, weights).map(b"".join), max_size=5).map(b", ".join)


@settings(max_examples=1000)
@given(st.lists(lines, max_size=3), st.permutations(ALL), st.integers(0, 3))
def test_rankings_are_those_of_the_model(values: list[bytes], preferred: list[str], count: int) -> None:
    assert rank(*values, preferred=preferred[:count]) == model([value.strip() for value in values], preferred[:count])
