"""One mixer layer by itself: what it costs by tokens, and which tokens it reaches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixerbench import create_model
from mixerbench.measure import tokens
from mixerbench.measure.flops import count_macs
from mixerbench.measure.tokens import (
    formula_macs_by_tokens,
    growth_exponent,
    macs_by_tokens,
    reach,
)
from mixers import MIXERS, TokenMixer, list_mixers
from mixers.core.catalog import mixer_catalog
from mixers.core.spec import MISSING

pytestmark = pytest.mark.slow  # models are traced

every_mixer = pytest.mark.parametrize("name", list_mixers())
few = settings(deadline=None, max_examples=15, derandomize=True)
SMALL = {"dim": 8, "num_heads": 2}


# --- multiply-adds --------------------------------------------------------------------------


@few
@given(
    head_dim=st.integers(1, 8),
    heads=st.integers(1, 4),
    sides=st.lists(st.integers(1, 8), min_size=1, max_size=3),
)
def test_attention_costs_4nd2_and_2n2d(head_dim, heads, sides):
    d = head_dim * heads
    macs = macs_by_tokens("attention", {}, dim=d, num_heads=heads, sides=sides)
    assert macs == {n: n * 4 * d**2 + 2 * n**2 * d for n in (side * side for side in sides)}


@few
@given(ratio=st.integers(1, 6), dim=st.integers(1, 16), sides=st.lists(st.integers(1, 7)))
def test_patch_ff_costs_two_products_over_tokens(ratio, dim, sides):
    macs = macs_by_tokens(
        "patch_ff", {"hidden_ratio": float(ratio)}, dim=dim, num_heads=1, sides=sides
    )
    assert macs == {side**2: 2 * ratio * side**4 * dim for side in sides}


def test_convolution_costs_its_kernel_at_every_token():
    full = macs_by_tokens("convolution", {"kernel_size": 5}, **SMALL, sides=(4, 9))
    assert full == {16: 16 * 25 * 8 * 8, 81: 81 * 25 * 8 * 8}
    depthwise = macs_by_tokens("convolution", {"depthwise": True}, **SMALL, sides=(4,))
    assert depthwise == {16: 16 * 9 * 8}


@every_mixer
def test_a_layer_costs_what_one_more_block_of_a_model_does(name):
    """The board's figure is the sum of its layers."""
    shape = {"image_size": 28, "patch_size": 4, "num_classes": 10}
    micro = {"size": "micro", **shape}
    model, bare = (count_macs(create_model(one, **micro), 28).total for one in (name, "none"))
    layer = macs_by_tokens(name, {}, dim=64, num_heads=4, sides=(7,))
    assert model - bare == 4 * layer[49]  # micro: 4 blocks, 64 channels, 4 heads


@pytest.mark.parametrize(
    ("name", "options", "exponent"),
    [
        ("convolution", {}, 1.0),
        ("local_attention", {}, 1.0),
        ("local_attention", {"border": "masked"}, 1.0),
        ("patch_ff", {}, 2.0),
        ("patch_ff", {"hidden_dim": 64}, 1.0),
    ],
    ids=str,
)
def test_the_exponent_is_the_asymptotic_one_without_terms_of_lower_order(name, options, exponent):
    macs = macs_by_tokens(name, options, **SMALL, sides=(28, 42))
    assert growth_exponent(macs) == pytest.approx(exponent)


def test_attentions_exponent_grows_to_2_with_tokens():
    def at(side: int) -> float:
        small = {n: n * 4 * 64**2 + 2 * n**2 * 64 for n in (side**2, (2 * side) ** 2)}
        exponent = growth_exponent(small)
        assert exponent is not None
        return exponent

    assert 1 < at(4) < at(8) < at(16) < at(64) < 2
    assert at(1000) == pytest.approx(2, abs=1e-3)


def test_the_exponent_that_the_documentation_names():
    macs = {n: n * 4 * tokens.DIM**2 + 2 * n**2 * tokens.DIM for n in (7**2, 28**2, 42**2)}
    assert growth_exponent(macs) == pytest.approx(1.75, abs=0.005)


@given(
    power=st.floats(0, 4),
    scale=st.floats(1e-3, 1e12),
    counts=st.lists(st.integers(1, 10_000), min_size=2, unique=True),
)
def test_the_exponent_is_that_of_a_power_law_in_any_order_and_unit(power, scale, counts):
    macs = {n: scale * n**power for n in counts}
    assert growth_exponent(macs) == pytest.approx(power, abs=1e-6 * max(counts))
    turned = dict(reversed(macs.items()))
    assert growth_exponent(turned) == growth_exponent(macs)


def test_only_the_two_largest_grids_count():
    assert growth_exponent({4: 1e9, 16: 16.0, 64: 64.0}) == pytest.approx(1)


@pytest.mark.parametrize("macs", [{}, {16: 5}, {4: 0, 16: 0}, {4: 0, 16: 3}])
def test_nothing_grows_where_nothing_is_multiplied(macs):
    assert growth_exponent(macs) is None


@pytest.mark.parametrize("name", ["none", "identity"])
def test_a_trivial_mixer_costs_nothing(name):
    assert macs_by_tokens(name, {}, sides=(2, 3)) == {4: 0, 9: 0}


def test_the_papers_count_of_local_attention_is_linear():
    macs = formula_macs_by_tokens("local_attention", {"window": 5}, **SMALL, sides=(4, 14))
    assert macs == {n: n * 8 * (4 * 8 + 3 * 25) for n in (16, 196)}


@every_mixer
def test_the_papers_count_is_empty_where_the_code_executes_just_that(name):
    own = MIXERS.get(name).formula_macs is not TokenMixer.formula_macs
    assert bool(formula_macs_by_tokens(name, {}, **SMALL, sides=(2,))) == own


# --- reach ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("none", {}, 0),
        ("identity", {}, 1),
        ("convolution", {}, 9),
        ("convolution", {"kernel_size": 5, "depthwise": True}, 25),
        ("local_attention", {}, 49),
        ("local_attention", {"border": "masked", "window": 4}, 16),
        ("attention", {}, 196),
        ("attention", {"rel_pos_bias": True}, 196),
        ("patch_ff", {}, 196),
        ("patch_ff", {"norm": "tokens", "hidden_dim": 8}, 196),
    ],
    ids=str,
)
def test_a_mixer_reaches_the_tokens_of_its_definition(name, options, count):
    influence, share = reach(name, options, side=14)
    flat = [value for row in influence for value in row]
    assert [len(row) for row in influence] == [14] * 14
    assert sum(value > 0 for value in flat) == count
    assert share == pytest.approx(count / 196)
    assert max(flat) == (1 if count else 0)
    assert min(flat) >= 0


@few
@given(
    name=st.sampled_from(["convolution", "local_attention"]),
    half=st.integers(0, 3),
    side=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_a_window_is_a_square_around_the_centre(name, half, side, seed):
    option = "window" if name == "local_attention" else "kernel_size"
    found = reach(name, {option: 2 * half + 1}, side=side, seed=seed, **SMALL, inputs=2)
    near = [abs(place - side // 2) <= half for place in range(side)]
    reached = [[value > 0 for value in row] for row in found.influence]
    assert reached == [[row and column for column in near] for row in near]


@few
@given(
    name=st.sampled_from(["attention", "patch_ff"]), side=st.integers(1, 6), seed=st.integers(0, 99)
)
def test_a_global_mixer_reaches_every_token_whatever_the_seed(name, side, seed):
    assert reach(name, {}, side=side, seed=seed, **SMALL, inputs=2).share == 1


def test_the_window_of_an_even_side_reaches_further_down_and_right():
    influence, _ = reach("local_attention", {"window": 2}, side=5, **SMALL)
    reached = [(r, c) for r, row in enumerate(influence) for c, value in enumerate(row) if value]
    assert reached == [(2, 2), (2, 3), (3, 2), (3, 3)]


def test_the_influence_is_the_norm_of_the_jacobian(clean_registry):
    @MIXERS.register("test_weighted")
    class Weighted(TokenMixer):
        any_grid, mixes_prefix, paper = True, False, ""

        def forward(self, x, grid):
            return x + 2 * x.roll(1, dims=1)  # from the left, and twice as much

    influence, share = reach("test_weighted", {}, side=3, **SMALL)
    assert influence == ((0, 0, 0), (1.0, 0.5, 0), (0, 0, 0))
    assert share == pytest.approx(2 / 9)


def test_a_layer_that_starts_at_zero_hides_nothing(clean_registry):
    @MIXERS.register("test_gated")
    class Gated(TokenMixer):
        any_grid, mixes_prefix, paper = True, False, ""

        def __init__(self, dim, grid, num_heads):
            super().__init__(dim, grid, num_heads)
            self.gate = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, grid):
            return self.gate * x.mean(1, keepdim=True).expand_as(x)

    assert reach("test_gated", {}, side=3, **SMALL).share == 1


@every_mixer
def test_the_seed_decides_the_influence(name):
    first, again = (reach(name, {}, side=4, seed=5, **SMALL) for _ in range(2))
    assert first == again


# --- both -----------------------------------------------------------------------------------


@every_mixer
def test_default_options_given_by_name_change_nothing(name):
    options = {o.name: o.default for o in mixer_catalog()[name].options if o.default is not MISSING}
    assert macs_by_tokens(name, options, **SMALL, sides=(4,)) == macs_by_tokens(
        name, {}, **SMALL, sides=(4,)
    )
    assert reach(name, options, side=4, **SMALL) == reach(name, {}, side=4, **SMALL)


def test_measuring_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    macs_by_tokens("patch_ff", {}, **SMALL, sides=(3,))
    formula_macs_by_tokens("local_attention", {}, **SMALL, sides=(3,))
    reach("patch_ff", {}, side=3, **SMALL)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("measure", [macs_by_tokens, formula_macs_by_tokens, reach])
def test_an_unknown_mixer_is_refused_with_the_nearest(measure):
    with pytest.raises(ValueError, match="Did you mean 'attention'"):
        measure("atention", {})


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'window'"):
        macs_by_tokens("local_attention", {"windw": 3}, sides=(2,))


def test_the_tiles_of_local_attention_waste_alike_on_the_grids_of_the_exponent():
    """It is taken between the last two of ``SIDES``: what is executed grows as the tokens do."""
    macs = list(macs_by_tokens("local_attention", {}).values())
    assert macs[-1] / macs[-2] == pytest.approx(
        (tokens.SIDES[-1] / tokens.SIDES[-2]) ** 2, rel=0.02
    )
