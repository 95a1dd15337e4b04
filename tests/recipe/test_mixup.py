"""Mixup and CutMix: the box, the pixels, the targets, and where the draws come from."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixerbench.config.compose import compose
from mixerbench.errors import Refusal
from mixerbench.recipe.mixup import create_mixup, cutmix_box

SEEDS = st.integers(0, 2**32 - 1)
FLOAT32 = 1e-6  # values up to 1 after two products and a sum


def one_hot(label: int, classes: int, smoothing: float) -> Tensor:
    """1 - s for the label, and s spread over all classes (Szegedy et al., section 7)."""
    row = torch.full((classes,), smoothing / classes, dtype=torch.float64)
    row[label] += 1.0 - smoothing
    return row


def numbered(count: int, height: int, width: int) -> Tensor:
    """Images whose every pixel is the image's number."""
    numbers = torch.arange(float(count)).view(-1, 1, 1, 1)
    return numbers.expand(count, 3, height, width).clone()


@settings(deadline=None)
@given(
    height=st.integers(1, 24), width=st.integers(1, 24), lam=st.floats(0.0, 1.0), seed=SEEDS
)  # fmt: skip
def test_box_holds_the_pixels_of_cutmixs_own_formula(height, width, lam, seed):
    np.random.seed(seed)
    row, column = np.random.randint(height), np.random.randint(width)
    half_height = int(height * (1.0 - lam) ** 0.5) // 2
    half_width = int(width * (1.0 - lam) ** 0.5) // 2
    inside = {
        (r, c)
        for r in range(height)
        for c in range(width)
        if row - half_height <= r < row + half_height
        and column - half_width <= c < column + half_width
    }

    np.random.seed(seed)
    (top, bottom, left, right), corrected = cutmix_box(height, width, lam)

    assert {(r, c) for r in range(top, bottom) for c in range(left, right)} == inside
    assert corrected == pytest.approx(1.0 - len(inside) / (height * width), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.integers(1, 4),
    height=st.integers(2, 17),
    width=st.integers(2, 17),
    classes=st.integers(2, 6),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    seed=SEEDS,
    data=st.data(),
)
def test_cutmix_targets_are_the_shares_of_pixels_that_were_mixed(
    pairs, height, width, classes, smoothing, seed, data, protocol
):
    count = 2 * pairs
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    recipe = protocol(recipe__mixup__mixup=0.0, recipe__loss__label_smoothing=smoothing).recipe
    np.random.seed(seed)
    images, targets = create_mixup(recipe, classes)(
        numbered(count, height, width), torch.tensor(labels)
    )
    assert targets.shape == (count, classes)
    for number in range(count):
        partner = count - 1 - number
        assert set(images[number].unique().tolist()) <= {float(number), float(partner)}
        own = (images[number] == number).double().mean().item()
        first, second = (one_hot(labels[i], classes, smoothing) for i in (number, partner))
        expected = own * first + (1.0 - own) * second
        torch.testing.assert_close(targets[number].double(), expected, rtol=0, atol=FLOAT32)
        assert targets[number].sum().item() == pytest.approx(1.0, abs=FLOAT32)


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.integers(1, 4),
    classes=st.integers(2, 6),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    seed=SEEDS,
    data=st.data(),
)
def test_mixup_targets_are_the_weights_of_the_images_that_were_mixed(
    pairs, classes, smoothing, seed, data, protocol
):
    count = 2 * pairs
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    recipe = protocol(recipe__mixup__cutmix=0.0, recipe__loss__label_smoothing=smoothing).recipe
    np.random.seed(seed)
    images, targets = create_mixup(recipe, classes)(numbered(count, 3, 2), torch.tensor(labels))
    own = 1.0 - images[0, 0, 0, 0].item() / (count - 1)  # image 0 is 0, its partner count - 1
    assert 0.0 <= own <= 1.0
    for number in range(count):
        partner = count - 1 - number
        expected = torch.full((3, 3, 2), own * number + (1.0 - own) * partner, dtype=torch.float64)
        torch.testing.assert_close(images[number].double(), expected, rtol=0, atol=8 * FLOAT32)
        first, second = (one_hot(labels[i], classes, smoothing) for i in (number, partner))
        expected = own * first + (1.0 - own) * second
        torch.testing.assert_close(targets[number].double(), expected, rtol=0, atol=FLOAT32)
        assert targets[number].sum().item() == pytest.approx(1.0, abs=FLOAT32)


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_mixing_is_a_function_of_numpys_seed(seed, protocol):
    mixup = create_mixup(protocol().recipe, 5)
    labels = torch.tensor([0, 1, 2, 3])
    results = []
    for other in (1, 2):  # neither Python's nor torch's generator matters
        random.seed(other)
        torch.manual_seed(other)
        np.random.seed(seed)
        results.append(mixup(numbered(4, 9, 9), labels))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_another_seed_mixes_differently(protocol):
    mixup = create_mixup(protocol().recipe, 5)

    def mixed(seed: int) -> Tensor:
        np.random.seed(seed)
        return mixup(numbered(4, 9, 9), torch.arange(4))[0]

    assert not torch.equal(mixed(0), mixed(1))


def kinds(mixup: object, draws: int) -> list[str]:
    """What was done to each of so many batches."""
    found = []
    for seed in range(draws):
        np.random.seed(seed)
        images, _ = mixup(numbered(2, 16, 16), torch.tensor([0, 1]))
        values = images.unique().tolist()
        if torch.equal(images, numbered(2, 16, 16)):
            found.append("nothing")
        else:
            found.append("cutmix" if values == [0.0, 1.0] else "mixup")
    return found


def test_deit_mixes_every_batch_one_half_by_each_method(protocol):
    found = kinds(create_mixup(protocol().recipe, 2), 1000)
    # A box of less than two pixels is empty: 2 x 1 pixel of 16 x 16, 1.6 % of the boxes.
    assert found.count("nothing") < 20
    assert 430 < found.count("mixup") < 570  # four sigma of 16


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"recipe__mixup__switch_prob": 0.0}, {"mixup"}),
        ({"recipe__mixup__switch_prob": 1.0}, {"cutmix", "nothing"}),
        ({"recipe__mixup__cutmix": 0.0}, {"mixup"}),
        ({"recipe__mixup__mixup": 0.0}, {"cutmix", "nothing"}),
        ({"recipe__mixup__prob": 0.0}, {"nothing"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_each_probability_chooses_the_method(fields, expected, protocol):
    assert set(kinds(create_mixup(protocol(**fields).recipe, 2), 100)) == expected


def test_batches_that_are_not_mixed_keep_smooth_targets(protocol):
    mixup = create_mixup(protocol(recipe__mixup__prob=0.0).recipe, 4)
    _, targets = mixup(numbered(2, 4, 4), torch.tensor([3, 1]))
    expected = torch.stack([one_hot(3, 4, 0.1), one_hot(1, 4, 0.1)])
    torch.testing.assert_close(targets.double(), expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize(("field", "alpha"), [("mixup", 0.8), ("cutmix", 1.0), ("mixup", 0.2)])
def test_weights_follow_the_beta_distribution_of_the_recipe(field, alpha, protocol):
    other = {"mixup": "cutmix", "cutmix": "mixup"}[field]
    fields = {f"recipe__mixup__{field}": alpha, f"recipe__mixup__{other}": 0.0}
    mixup = create_mixup(protocol(**fields).recipe, 2)
    lams = [mixup._params_per_batch()[0] for _ in range(4000)]
    # Beta(a, a): variance 1 / (4 (2a + 1)). The sampled one is known to about 1.5 %.
    assert np.mean(lams) == pytest.approx(0.5, abs=0.03)
    assert np.var(lams) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_modes_in_which_timm_draws_its_own_wider_box_are_refused(mode):
    with pytest.raises(Refusal, match=f"mixup.mode={mode}: choose one of batch"):
        compose(["protocol=imagenet_deit", f"recipe.mixup.mode={mode}"])


def test_no_mixup_and_no_cutmix_is_none(protocol):
    recipe = protocol(recipe__mixup__mixup=0.0, recipe__mixup__cutmix=0.0).recipe
    assert create_mixup(recipe, 10) is None
