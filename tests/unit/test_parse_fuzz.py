"""A bounded number of hostile inputs, the same ones each time, passes all checks of `tests/fuzz/fuzz_parse.py`."""

import random

import pytest
from fuzz import fuzz_parse


@pytest.mark.parametrize("seed", fuzz_parse.SEEDS, ids=range(len(fuzz_parse.SEEDS)))
def test_seeds_cut_anywhere(seed):
    for length in range(len(seed) + 1):
        fuzz_parse.check(seed[:length])
        fuzz_parse.check(seed[length:])


@pytest.mark.parametrize("batch", range(10))
def test_mutations(batch):
    chance = random.Random(batch)
    for _ in range(500):
        fuzz_parse.check(fuzz_parse.mutate(chance))


def test_noise():
    chance = random.Random(0)
    for length in range(300):
        fuzz_parse.check(chance.randbytes(length))
