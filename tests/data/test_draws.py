"""Seeds: a function of their arguments, the same on every machine, and for every generator."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixerbench.draws import seed_generators, seed_of


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        (("init", 0), 1171178459717116466),
        (("sample", 0, 0, 0, 0), 4847243390604509953),
        (("step", 1, 2, 3), 2672902235790102262),
    ],
)
def test_seeds_are_frozen(arguments, seed):
    assert seed_of(*arguments) == seed


@given(st.lists(st.integers(-(2**40), 2**40), max_size=5))
def test_a_seed_has_63_bits(numbers):
    assert 0 <= seed_of("any", *numbers) < 2**63


def test_no_two_samples_share_a_seed():
    arguments = [
        (purpose, seed, epoch, image, repeat)
        for purpose in ("sample", "step")
        for seed in (0, 1, 11)
        for epoch in (0, 1, 11)
        for image in range(300)
        for repeat in range(3)
    ]
    assert len({seed_of(*numbers) for numbers in arguments}) == len(arguments)


@pytest.mark.parametrize(
    "other", [("step", 0, 1), ("sample", 1, 0), ("sample", 0, 2), ("sample", 0)]
)
def test_every_argument_changes_all_three_generators(other):
    seed_generators("sample", 0, 1)
    first = draws()
    seed_generators(*other)
    assert all(one != two for one, two in zip(first, draws(), strict=True))


def test_what_was_drawn_before_does_not_matter():
    seed_generators("sample", 4, 2)
    first = draws()
    for _ in range(7):
        draws()
    seed_generators("sample", 4, 2)
    assert draws() == first


@pytest.mark.parametrize("generator", range(3), ids=["python", "numpy", "torch"])
def test_consecutive_samples_draw_uniformly(generator):
    values = []
    for image in range(4000):
        seed_generators("sample", 0, 0, image, 0)
        values.append(draws()[generator])
    counts, _ = np.histogram(values, bins=10, range=(0.0, 1.0))
    # Chi-squared of 9 degrees of freedom: above 28 once in a thousand seeds, and ours is fixed.
    assert ((counts - 400) ** 2 / 400).sum() < 28
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.06  # four sigma
