"""identity and none: no mixing, said in two ways."""

import torch
from torch import Tensor

from mixers import TokenGrid, TokenMixer, create_mixer

GRID = TokenGrid(2, 3)


def _each_token(x: Tensor, factor: float) -> Tensor:
    rows = [[factor * token for token in sample] for sample in x]
    return torch.stack([torch.stack(sample) for sample in rows])


def test_identity_gives_every_token_back(assert_matches_oracle):
    def oracle(mixer: TokenMixer, x: Tensor, grid: TokenGrid) -> Tensor:
        return _each_token(x, 1.0)

    assert_matches_oracle(create_mixer("identity", 4, GRID), oracle, GRID)


def test_none_adds_nothing_to_the_residual():
    x = torch.randn(2, GRID.tokens, 4)
    assert torch.equal(create_mixer("none", 4, GRID)(x, GRID), _each_token(x, 0.0))


def test_neither_has_parameters():
    for name in ("identity", "none"):
        assert list(create_mixer(name, 4, GRID).parameters()) == []


def test_none_is_no_sub_layer_and_identity_is_one():
    assert not create_mixer("none", 4, GRID).adds_sub_layer
    assert create_mixer("identity", 4, GRID).adds_sub_layer
