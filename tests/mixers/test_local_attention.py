"""local_attention against the formula of Stand-Alone Self-Attention, arXiv:1906.05909."""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mixerbench.measure.flops import count_macs
from mixers import TokenGrid, TokenMixer, create_mixer, local_attention

GRID = TokenGrid(3, 4)
TILES = {"all tokens at once": 99, "tiles of 2 x 2": 2, "a tile for each token": 1}


def cut_into(side: int) -> Callable[..., Any]:
    """In place of the mixer's own choice: tiles of so many queries a side."""

    def cuts(height: int, width: int, window: int) -> tuple[Any, Any]:
        return local_attention.cut_axis(height, side, window), local_attention.cut_axis(
            width, side, window
        )

    return cuts


@pytest.fixture(params=TILES)
def tiles(request, monkeypatch):
    """Every way to compute the same numbers, forced onto small grids."""
    monkeypatch.setattr(local_attention, "cheapest_cuts", cut_into(TILES[request.param]))


def oracle(mixer: TokenMixer, x: Tensor, grid: TokenGrid) -> Tensor:
    """Equations 2 and 3, one query and one offset of the window at a time.

    Outside the grid k = v = 0 (``zero``), or the position is left out (``masked``).
    """
    channels = x.shape[-1]
    d = channels // mixer.num_heads
    up_left = (mixer.window - 1) // 2

    @cache
    def project(part: int, head: int, n: int) -> Tensor:
        rows = slice(part * channels + head * d, part * channels + (head + 1) * d)
        bias = 0 if mixer.qkv.bias is None else mixer.qkv.bias[rows]
        return x[:, n] @ mixer.qkv.weight[rows].T + bias  # (B, d)

    result = []
    for i, j, head in product(range(grid.height), range(grid.width), range(mixer.num_heads)):
        query = project(0, head, i * grid.width + j)
        total, norm = torch.zeros_like(query), torch.zeros_like(query[:, :1])
        for a, c in product(range(mixer.window), repeat=2):
            y, z = i + a - up_left, j + c - up_left
            relative = torch.cat([mixer.rel_row[a, head], mixer.rel_column[c, head]])
            if 0 <= y < grid.height and 0 <= z < grid.width:
                key = project(1, head, y * grid.width + z)
                value = project(2, head, y * grid.width + z)
                weight = torch.exp((query * (key + relative)).sum(-1, keepdim=True))
                total = total + weight * value
            elif mixer.border == "zero":
                weight = torch.exp((query * relative).sum(-1, keepdim=True))
            else:
                continue
            norm = norm + weight
        result.append(total / norm)
    merged = torch.stack(result, dim=1).reshape(x.shape)
    return torch.stack([mixer.proj(merged[:, n]) for n in range(grid.tokens)], dim=1)


CASES = {  # window, grid, heads
    "only the token itself": (1, GRID, 2),
    "an even window": (2, GRID, 2),
    "an odd window": (3, GRID, 2),
    "one head": (3, GRID, 1),
    "heads of two channels": (3, TokenGrid(3, 2), 4),
    "an even window of 4": (4, GRID, 2),
    "a window larger than the grid": (7, GRID, 2),
    "an even window larger than the grid": (6, TokenGrid(2, 3), 2),
    "a single row": (3, TokenGrid(1, 5), 2),
    "a single column": (4, TokenGrid(4, 1), 2),
}


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("border", ["zero", "masked"])
@pytest.mark.parametrize("case", CASES)
def test_is_the_papers_formula(case, border, assert_matches_oracle):
    window, grid, heads = CASES[case]
    mixer = create_mixer("local_attention", 8, grid, heads, window=window, border=border)
    assert_matches_oracle(mixer, oracle, grid)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("border", ["zero", "masked"])
@pytest.mark.parametrize("options", [{"qkv_bias": True}, {"out_proj": False}], ids=str)
def test_is_the_papers_formula_with_each_projection_option(options, border, assert_matches_oracle):
    mixer = create_mixer("local_attention", 4, GRID, 1, window=3, border=border, **options)
    assert_matches_oracle(mixer, oracle, GRID)


LARGE = {  # window, grid: cut into tiles by the mixer's own choice
    "tiles that do not fit": (7, TokenGrid(23, 26)),
    "an even window of 8": (8, TokenGrid(24, 15)),
    "tiles that fit": (2, TokenGrid(28, 14)),
    "only the token itself": (1, TokenGrid(15, 9)),
    "a single row": (3, TokenGrid(1, 62)),
    "a single column": (7, TokenGrid(204, 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("border", ["zero", "masked"])
@pytest.mark.parametrize("case", LARGE)
def test_tiles_are_the_papers_formula(case, border, assert_matches_oracle):
    window, grid = LARGE[case]
    mixer = create_mixer("local_attention", 4, grid, 1, window=window, border=border)
    assert max(cut.tiles for cut in local_attention.cheapest_cuts(*grid[:2], window)) > 1
    assert_matches_oracle(mixer, oracle, grid)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    window=st.integers(1, 9),
    side=st.integers(1, 8),
    border=st.sampled_from(["zero", "masked"]),
    seed=st.integers(0, 99),
)
def test_tiles_of_any_side_equal_all_tokens_at_once(
    height, width, window, side, border, seed, randomize
):
    grid = TokenGrid(height, width)
    torch.manual_seed(seed)
    x = torch.randn(2, grid.tokens, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)

    def mix(side: int) -> list[Tensor]:
        torch.manual_seed(seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local_attention, "cheapest_cuts", cut_into(side))
            mixer = create_mixer("local_attention", 8, grid, 2, window=window, border=border)
        randomize(mixer.double())
        y = mixer(x, grid)
        return [y, *torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()])]

    for tiled, at_once in zip(mix(side), mix(99), strict=True):
        torch.testing.assert_close(tiled, at_once, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("grid", "window", "tiles"),
    [
        ((8, 8), 7, (1, 1)),
        ((14, 14), 7, (2, 2)),
        ((20, 20), 7, (2, 2)),
        ((56, 56), 7, (8, 8)),
        ((112, 112), 7, (16, 16)),
        ((1, 14), 7, (1, 1)),
        ((28, 28), 57, (1, 1)),  # every window holds the grid
    ],
)
def test_tiles_are_the_cheapest_in_pairs_and_keys(grid, window, tiles):
    """Measured, see ``_KEY_COST``: at 8 x 8 and below, cutting costs more than it saves."""
    cuts = local_attention.cheapest_cuts(*grid, window)
    assert tuple(cut.tiles for cut in cuts) == tiles


@given(length=st.integers(1, 60), side=st.integers(1, 70), window=st.integers(1, 12))
def test_each_tile_has_all_keys_that_its_windows_reach_and_none_off_the_grid(length, side, window):
    up, down = (window - 1) // 2, window // 2
    cut = local_attention.cut_axis(length, side, window)
    assert cut.queries <= side
    assert (cut.tiles - 1) * cut.queries < length <= cut.tiles * cut.queries
    for tile, first in enumerate(cut.first_keys):
        keys = set(range(first, first + cut.keys))
        assert keys <= set(range(length))
        for query in range(tile * cut.queries, min((tile + 1) * cut.queries, length)):
            assert set(range(max(query - up, 0), min(query + down + 1, length))) <= keys


class OnPixels(nn.Module):
    """A mixer whose tokens are an image's pixels."""

    def __init__(self, mixer: TokenMixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, image: Tensor) -> Tensor:
        return self.mixer(image.flatten(2).transpose(1, 2), self.mixer.grid)


@pytest.mark.parametrize("border", ["zero", "masked"])
def test_tiles_cost_a_fraction_of_all_tokens_at_once(border):
    mixer = create_mixer("local_attention", 64, TokenGrid(56, 56), 8, border=border)
    count = count_macs(OnPixels(mixer), 56, in_chans=64)
    N, C, heads, d = 56 * 56, 64, 8, 8
    outside = border == "zero"  # one more key, and the logits of the whole window
    keys, width = 13 * 13 + outside, d + 13 + 13 + outside  # of a tile of 7 x 7
    assert count.by_operator["matmul"] == heads * N * keys * (width + d)
    assert count.by_operator["einsum"] == heads * N * (13 + 13 + outside * 14) * (d // 2)
    assert count.by_operator["linear"] == N * C * 4 * C
    at_once = heads * N * N * 2 * (d + 56 + 56)  # its products alone; see tests/measure
    assert count.total * 50 < at_once


def test_the_formula_counts_the_window_and_not_what_is_appended():
    grid = TokenGrid(14, 28)
    mixer = create_mixer("local_attention", 64, grid, 8)
    assert mixer.formula_macs(grid) == 14 * 28 * (4 * 64 * 64 + 3 * 49 * 64) == 10_110_464
    bare = create_mixer("local_attention", 64, grid, 8, window=4, out_proj=False)
    assert bare.formula_macs(TokenGrid(3, 5)) == 15 * (3 * 64 * 64 + 3 * 16 * 64)


@pytest.fixture
def large(randomize):
    """A case of realistic size: its float64 values, and the mixer and input that give them."""

    def build(border: str) -> tuple[TokenMixer, Tensor, TokenGrid, Tensor, list[Tensor]]:
        grid = TokenGrid(7, 9)
        mixer = create_mixer("local_attention", 32, grid, 4, window=5, border=border)
        torch.nn.init.normal_(mixer.rel_row)
        torch.nn.init.normal_(mixer.rel_column)
        x = torch.randn(2, grid.tokens, 32)
        double = create_mixer("local_attention", 32, grid, 4, window=5, border=border).double()
        double.load_state_dict(mixer.state_dict())
        expected = double(x.double(), grid)
        expected.square().sum().backward()
        return mixer, x, grid, expected.detach(), [p.grad for p in double.parameters()]

    return build


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("border", ["zero", "masked"])
def test_float32_agrees_with_float64(border, large, assert_close):
    mixer, x, grid, expected, gradients = large(border)
    actual = mixer(x, grid)
    assert_close(actual, expected, torch.float32)
    actual.square().sum().backward()
    for (name, parameter), gradient in zip(mixer.named_parameters(), gradients, strict=True):
        assert_close(parameter.grad, gradient, torch.float32, f"gradients of {name}")


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("border", ["zero", "masked"])
def test_bfloat16_autocast_agrees_with_float64(border, large, assert_close):
    mixer, x, grid, expected, gradients = large(border)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = mixer(x, grid)
    assert actual.dtype == torch.bfloat16
    assert_close(actual, expected, torch.bfloat16)
    actual.float().square().sum().backward()
    for (name, parameter), gradient in zip(mixer.named_parameters(), gradients, strict=True):
        assert_close(parameter.grad, gradient, torch.bfloat16, f"gradients of {name}")


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    window=st.integers(1, 5),
    down=st.integers(-3, 3),
    right=st.integers(-3, 3),
    border=st.sampled_from(["zero", "masked"]),
    seed=st.integers(0, 99),
)
def test_inside_the_border_a_moved_image_gives_moved_tokens(window, down, right, border, seed):
    height, width, dim = 9, 10, 8
    grid = TokenGrid(height, width)
    torch.manual_seed(seed)
    mixer = create_mixer("local_attention", dim, grid, 2, window=window, border=border).double()
    image = torch.randn(1, height, width, dim, dtype=torch.float64)
    moved = torch.roll(image, (down, right), dims=(1, 2))  # wraps only within 3 of the border

    def mix(pixels: Tensor) -> Tensor:
        return mixer(pixels.flatten(1, 2), grid).reshape(pixels.shape)

    here, there = mix(image), mix(moved)
    before, after = (window - 1) // 2, window // 2
    rows = [i for i in range(height) if before <= min(i, i + down)]
    rows = [i for i in rows if max(i, i + down) + after < height]
    columns = [j for j in range(width) if before <= min(j, j + right)]
    columns = [j for j in columns if max(j, j + right) + after < width]
    assert len(rows) * len(columns) > 0, "the case compares nothing"
    for i, j in product(rows, columns):
        torch.testing.assert_close(there[0, i + down, j + right], here[0, i, j])


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("border", ["zero", "masked"])
@pytest.mark.parametrize(("window", "before", "after"), [(3, 1, 1), (4, 1, 2), (5, 2, 2)])
def test_only_the_tokens_of_the_window_matter(window, before, after, border, randomize):
    grid = TokenGrid(6, 7)
    mixer = create_mixer("local_attention", 8, grid, 2, window=window, border=border)
    randomize(mixer.double())
    x = torch.randn(1, grid.tokens, 8, dtype=torch.float64, requires_grad=True)
    for i, j in [(0, 0), (2, 3), (5, 6), (3, 0)]:
        (gradient,) = torch.autograd.grad(mixer(x, grid)[0, i * 7 + j].sum(), x)
        seen = gradient.reshape(6, 7, 8).ne(0).any(-1)
        for y, z in product(range(6), range(7)):
            assert seen[y, z] == (-before <= y - i <= after and -before <= z - j <= after)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("border", "share"), [("zero", 4 / 9), ("masked", 1.0)])
def test_a_zero_border_takes_its_share_of_the_softmax_and_a_masked_one_none(border, share):
    mixer = create_mixer("local_attention", 4, GRID, 1, window=3, border=border, out_proj=False)
    with torch.no_grad():  # all logits are 0: plain means over the window, v = x
        mixer.qkv.weight.copy_(torch.cat([torch.zeros(8, 4), torch.eye(4)]))
    corner = mixer(torch.ones(1, GRID.tokens, 4), GRID)[0, 0]
    torch.testing.assert_close(corner, torch.full((4,), share))


@pytest.mark.parametrize(
    ("dim", "options", "word"),
    [
        (8, {"window": 0}, "window of 0"),
        (8, {"border": "reflect"}, "'reflect'"),
        (6, {}, "3 channels"),
        (7, {}, "7 channels among 2 heads"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(dim, options, word):
    with pytest.raises(ValueError, match=word) as error:
        create_mixer("local_attention", dim, GRID, 2, **options)
    assert "\n" not in str(error.value)
