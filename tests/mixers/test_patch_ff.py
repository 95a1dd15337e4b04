"""patch_ff against the formula of Do You Even Need Attention?, arXiv:2105.02723."""

import math

import pytest
import torch
from torch import Tensor

from mixers import TokenGrid, TokenMixer, create_mixer

GRIDS = [TokenGrid(2, 3), TokenGrid(3, 1), TokenGrid(2, 2, prefix=1), TokenGrid(1, 3, prefix=2)]


def oracle(mixer: TokenMixer, x: Tensor, grid: TokenGrid) -> Tensor:
    """For each sample and each channel: W2 GELU(W1 column + b1) + b2, one neuron at a time."""
    samples, tokens, channels = x.shape
    w1, b1, w2, b2 = mixer.fc1.weight, mixer.fc1.bias, mixer.fc2.weight, mixer.fc2.bias
    result = []
    for b in range(samples):
        for c in range(channels):
            column = [x[b, n, c] for n in range(tokens)]
            if not mixer.pre_norm:
                mean = sum(column) / tokens
                variance = sum((value - mean) ** 2 for value in column) / tokens
                column = [
                    (value - mean) / torch.sqrt(variance + 1e-6) * gain + shift
                    for value, gain, shift in zip(
                        column, mixer.norm.weight, mixer.norm.bias, strict=True
                    )
                ]
            hidden = []
            for u in range(len(b1)):
                total = sum(w1[u, n] * column[n] for n in range(tokens)) + b1[u]
                hidden.append(0.5 * total * (1 + torch.erf(total / math.sqrt(2))))
            for n in range(tokens):
                result.append(sum(w2[n, u] * hidden[u] for u in range(len(hidden))) + b2[n])
    return torch.stack(result).reshape(samples, channels, tokens).transpose(1, 2)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("norm", ["channels", "tokens"])
@pytest.mark.parametrize("hidden", [{"hidden_ratio": 1.5}, {"hidden_dim": 4}], ids=["ratio", "dim"])
def test_is_the_papers_formula(grid, norm, hidden, assert_matches_oracle):
    mixer = create_mixer("patch_ff", 3, grid, norm=norm, **hidden)
    assert_matches_oracle(mixer, oracle, grid)


@pytest.mark.parametrize(("ratio", "hidden"), [(4.0, 28), (0.5, 4), (1.0, 7)])
def test_hidden_ratio_is_a_multiple_of_all_tokens(ratio, hidden):
    grid = TokenGrid(2, 3, prefix=1)
    assert create_mixer("patch_ff", 4, grid, hidden_ratio=ratio).fc1.out_features == hidden


def test_hidden_dim_replaces_the_ratio():
    mixer = create_mixer("patch_ff", 4, TokenGrid(3, 3), hidden_ratio=4.0, hidden_dim=5)
    assert mixer.fc1.out_features == 5


def test_a_fixed_hidden_width_makes_the_weights_linear_in_tokens():
    def weights(tokens: int, **options: float) -> int:
        mixer = create_mixer("patch_ff", 4, TokenGrid(tokens, 1), **options)
        return mixer.fc1.weight.numel() + mixer.fc2.weight.numel()

    assert weights(20, hidden_dim=8) == 2 * weights(10, hidden_dim=8)
    assert weights(20, hidden_ratio=4.0) == 4 * weights(10, hidden_ratio=4.0)


@pytest.mark.parametrize("norm", ["channels", "tokens"])
def test_every_channel_passes_through_the_same_weights(norm, randomize):
    grid = TokenGrid(2, 3)
    mixer = randomize(create_mixer("patch_ff", 5, grid, norm=norm).double())
    x = torch.randn(2, grid.tokens, 5, dtype=torch.float64)
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(mixer(x[..., order], grid), mixer(x, grid)[..., order])


def test_norm_over_tokens_replaces_the_blocks_norm_over_channels():
    grid = TokenGrid(2, 3)
    assert create_mixer("patch_ff", 4, grid, norm="channels").pre_norm
    assert not create_mixer("patch_ff", 4, grid, norm="tokens").pre_norm


@pytest.mark.parametrize(
    ("options", "word"),
    [({"norm": "batch"}, "'batch'"), ({"hidden_dim": 0}, "0"), ({"hidden_ratio": 0.01}, "0")],
)
def test_a_wrong_option_is_refused_in_one_line(options, word):
    with pytest.raises(ValueError, match=word) as error:
        create_mixer("patch_ff", 4, TokenGrid(2, 3), **options)
    assert "\n" not in str(error.value)
