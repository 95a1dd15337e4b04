"""attention against the formula of ViT, with Swin's relative position bias."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixers import TokenGrid, TokenMixer, create_mixer

GRIDS = [TokenGrid(2, 3), TokenGrid(3, 1), TokenGrid(3, 2, prefix=1), TokenGrid(1, 3, prefix=2)]


def oracle(mixer: TokenMixer, x: Tensor, grid: TokenGrid) -> Tensor:
    """softmax(q·k / √d + bias) v, one sample, one head and one query at a time.

    timm's layout: rows of ``qkv.weight`` are all of q, all of k, all of v, each head by head.
    Swin's table: row (Δrow + H - 1) * (2W - 1) + (Δcolumn + W - 1), Δ = query - key.
    """
    samples, tokens, channels = x.shape
    d = channels // mixer.num_heads

    def project(part: int, b: int, head: int, n: int) -> Tensor:
        rows = slice(part * channels + head * d, part * channels + (head + 1) * d)
        bias = 0 if mixer.qkv.bias is None else mixer.qkv.bias[rows]
        return mixer.qkv.weight[rows] @ x[b, n] + bias

    def relative_bias(query: int, key: int, head: int) -> Tensor | float:
        if mixer.rel_pos_table is None or query < grid.prefix or key < grid.prefix:
            return 0.0
        row, column = divmod(query - grid.prefix, grid.width)
        other_row, other_column = divmod(key - grid.prefix, grid.width)
        line = (row - other_row + grid.height - 1) * (2 * grid.width - 1)
        return mixer.rel_pos_table[line + column - other_column + grid.width - 1, head]

    result = []
    for b in range(samples):
        for n in range(tokens):
            heads = []
            for head in range(mixer.num_heads):
                query = project(0, b, head, n)
                weights = [
                    torch.exp(
                        query @ project(1, b, head, m) / math.sqrt(d) + relative_bias(n, m, head)
                    )
                    for m in range(tokens)
                ]
                mixed = sum(weights[m] * project(2, b, head, m) for m in range(tokens))
                heads.append(mixed / sum(weights))
            result.append(mixer.proj.weight @ torch.cat(heads) + mixer.proj.bias)
    return torch.stack(result).reshape(samples, tokens, channels)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("rel_pos_bias", [False, True], ids=["no position", "relative bias"])
@pytest.mark.parametrize("heads", [1, 2])
def test_is_the_papers_formula(grid, rel_pos_bias, heads, assert_matches_oracle):
    mixer = create_mixer("attention", 6, grid, heads, rel_pos_bias=rel_pos_bias)
    assert_matches_oracle(mixer, oracle, grid)


def test_is_the_papers_formula_without_qkv_bias(assert_matches_oracle):
    mixer = create_mixer("attention", 6, TokenGrid(2, 3), 3, qkv_bias=False)
    assert mixer.qkv.bias is None
    assert_matches_oracle(mixer, oracle, TokenGrid(2, 3))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    prefix=st.integers(0, 2),
    data=st.data(),
)
def test_without_position_the_order_of_tokens_does_not_matter(height, width, prefix, data):
    grid = TokenGrid(height, width, prefix)
    order = data.draw(st.permutations(range(grid.tokens)))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    mixer = create_mixer("attention", 8, grid, 2).double()
    x = torch.randn(2, grid.tokens, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(x[:, order], grid), mixer(x, grid)[:, order])


def test_with_relative_bias_the_order_of_tokens_matters(randomize):
    grid = TokenGrid(2, 3)
    mixer = randomize(create_mixer("attention", 8, grid, 2, rel_pos_bias=True).double())
    x = torch.randn(2, grid.tokens, 8, dtype=torch.float64)
    order = [1, 0, 2, 3, 4, 5]
    difference = mixer(x[:, order], grid) - mixer(x, grid)[:, order]
    assert difference.abs().max() > 1e-3


def test_only_with_relative_bias_there_is_a_table_that_takes_no_weight_decay():
    for rel_pos_bias in (False, True):
        mixer = create_mixer("attention", 8, TokenGrid(2, 3), 2, rel_pos_bias=rel_pos_bias)
        parameters = dict(mixer.named_parameters())
        assert all((name in parameters) == rel_pos_bias for name in mixer.no_weight_decay)
    assert parameters["rel_pos_table"].shape == (3 * 5, 2)


def test_relative_bias_makes_the_grid_binding():
    mixer = create_mixer("attention", 8, TokenGrid(2, 3), 2, rel_pos_bias=True)
    with pytest.raises(ValueError, match=r"built for 2 x 3 .* got 3 x 2"):
        mixer(torch.randn(1, 6, 8), TokenGrid(3, 2))


@pytest.mark.parametrize("option", ["attn_drop", "proj_drop"])
def test_dropout_acts_in_training_only(option):
    grid = TokenGrid(3, 3)
    x = torch.randn(2, grid.tokens, 8)
    mixer = create_mixer("attention", 8, grid, 2, **{option: 0.5})
    plain = create_mixer("attention", 8, grid, 2)
    plain.load_state_dict(mixer.state_dict())
    assert not torch.equal(mixer(x, grid), mixer(x, grid))
    assert torch.equal(mixer.eval()(x, grid), plain.eval()(x, grid))


def test_proj_drop_zeroes_outputs_and_attn_drop_does_not():
    grid = TokenGrid(6, 6)
    x = torch.randn(2, grid.tokens, 8)
    zeros = {
        option: (create_mixer("attention", 8, grid, 2, **{option: 0.5})(x, grid) == 0)
        .float()
        .mean()
        for option in ("proj_drop", "attn_drop")
    }
    assert zeros["proj_drop"] == pytest.approx(0.5, abs=0.1)
    assert zeros["attn_drop"] == 0


def test_heads_that_do_not_divide_the_width_are_refused_in_one_line():
    with pytest.raises(ValueError, match="10 channels among 3 heads") as error:
        create_mixer("attention", 10, TokenGrid(2, 2), 3)
    assert "\n" not in str(error.value)
