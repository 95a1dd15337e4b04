"""Position embeddings: what is stored, and how it is resized."""

import math
from itertools import product

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from mixerbench.models.positions import PositionEmbedding
from mixers import TokenGrid

DIM = 5
RESIZES = ("bicubic", "bilinear")


def _embedding(grid: TokenGrid, dtype: torch.dtype = torch.float64, **options) -> PositionEmbedding:
    embedding = PositionEmbedding(DIM, grid, **options).to(dtype)
    torch.nn.init.normal_(embedding.table)
    return embedding


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_on_its_own_grid_the_table_is_added_as_it_is(prefix):
    grid = TokenGrid(3, 4, prefix)
    embedding = _embedding(grid)
    assert embedding.table.shape == (1, grid.tokens, DIM)
    assert embedding(grid) is embedding.table


@pytest.mark.parametrize("prefix", [0, 1])
def test_bilinear_from_14_to_7_is_the_mean_of_each_four(prefix):
    embedding = _embedding(TokenGrid(7, 7, prefix), table=(14, 14), resize="bilinear")
    resized = embedding(TokenGrid(7, 7, prefix))[0, prefix:].unflatten(0, (7, 7))
    table = embedding.table[0, prefix:].unflatten(0, (14, 14))
    for i, j in product(range(7), repeat=2):
        mean = table[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum(dim=(0, 1)) / 4
        torch.testing.assert_close(resized[i, j], mean, rtol=0, atol=1e-15)


@pytest.mark.parametrize("to", [(6, 4), (2, 9), (3, 5), (1, 1), (7, 10)], ids=str)
def test_bilinear_takes_the_four_nearest_without_antialiasing(to):
    embedding = _embedding(TokenGrid(*to), table=(3, 5), resize="bilinear")
    table = embedding.table[0].unflatten(0, (3, 5))
    resized = embedding(TokenGrid(*to))[0].unflatten(0, to)
    for i, j in product(range(to[0]), range(to[1])):
        expected = torch.zeros(DIM, dtype=torch.float64)
        y = max((i + 0.5) * 3 / to[0] - 0.5, 0.0)  # pixel centres, align_corners=False
        x = max((j + 0.5) * 5 / to[1] - 0.5, 0.0)
        top, left = math.floor(y), math.floor(x)
        for row, column in product((top, top + 1), (left, left + 1)):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            expected += weight * table[min(row, 2), min(column, 4)]
        torch.testing.assert_close(resized[i, j], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("to", [(7, 7), (28, 28), (14, 20), (10, 3)], ids=str)
def test_bicubic_is_timms(prefix, to):
    embedding = _embedding(TokenGrid(14, 12, prefix), torch.float32)
    theirs = resample_abs_pos_embed(
        embedding.table, list(to), old_size=[14, 12], num_prefix_tokens=prefix
    )
    assert torch.equal(embedding(TokenGrid(*to, prefix)), theirs)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("to", [(3, 5), (17, 6)], ids=str)
def test_float64_keeps_its_accuracy(resize, to):
    """The weights of a resized position add up to 1: a constant table stays that constant."""
    embedding = _embedding(TokenGrid(8, 8), resize=resize)
    torch.nn.init.constant_(embedding.table, math.pi)
    resized = embedding(TokenGrid(*to))
    assert resized.dtype == torch.float64
    torch.testing.assert_close(resized, torch.full_like(resized, math.pi), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("resize", RESIZES)
def test_half_precision_is_float32_rounded(dtype, resize):
    grid, to = TokenGrid(6, 6, 1), TokenGrid(4, 9, 1)
    half = _embedding(grid, dtype, resize=resize)
    single = _embedding(grid, torch.float32, resize=resize)
    with torch.no_grad():
        single.table.copy_(half.table)
    assert half(to).dtype == dtype
    assert torch.equal(half(to), single(to).to(dtype))


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_prefix_vectors_are_not_resized(prefix, resize, dtype):
    embedding = _embedding(TokenGrid(4, 6, prefix), dtype, resize=resize)
    resized = embedding(TokenGrid(8, 3, prefix))
    assert resized.shape == (1, prefix + 24, DIM)
    assert torch.equal(resized[:, :prefix], embedding.table[:, :prefix])


@pytest.mark.parametrize("resize", RESIZES)
def test_rows_are_not_columns(resize):
    embedding = _embedding(TokenGrid(2, 6), resize=resize)
    table = embedding.table.detach().unflatten(1, (2, 6))
    turned = _embedding(TokenGrid(6, 2), resize=resize)
    with torch.no_grad():
        turned.table.copy_(table.transpose(1, 2).flatten(1, 2))
    here = embedding(TokenGrid(4, 9)).unflatten(1, (4, 9))
    there = turned(TokenGrid(9, 4)).unflatten(1, (9, 4))
    torch.testing.assert_close(here, there.transpose(1, 2))


@pytest.mark.parametrize("resize", RESIZES)
def test_the_whole_table_learns_through_a_resize(resize):
    embedding = _embedding(TokenGrid(4, 6, 1), resize=resize)
    embedding(TokenGrid(7, 9, 1)).sum().backward()
    gradient = embedding.table.grad[0]
    assert gradient.abs().min() > 0
    torch.testing.assert_close(gradient.sum(), torch.tensor(DIM * 64.0, dtype=torch.float64))


def test_a_stored_table_of_another_size_is_resized_even_on_the_models_grid():
    embedding = _embedding(TokenGrid(4, 4, 1), table=(2, 3))
    assert embedding.table.shape == (1, 1 + 6, DIM)
    assert embedding(TokenGrid(4, 4, 1)).shape == (1, 1 + 16, DIM)
    assert embedding(TokenGrid(2, 3, 1)) is embedding.table


def test_it_starts_small_and_takes_no_weight_decay(micro):
    table = PositionEmbedding(64, TokenGrid(14, 14)).table
    assert table.std().item() == pytest.approx(0.02, rel=0.05)
    assert table.abs().max() < 0.2
    assert "pos_embed.table" in micro().no_weight_decay()


def test_the_table_of_a_model_may_be_larger_than_its_grid(micro, images):
    model = micro(pool="token", pos_table=(14, 14), pos_resize="bilinear")
    assert model.pos_embed.table.shape == (1, 1 + 196, 64)
    model(images()).sum().backward()
    assert model.pos_embed.table.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pos_resize": "nearest"}, "pos_resize is 'bicubic' or 'bilinear', not 'nearest'"),
        pytest.param(
            {"pos_table": (1, 2, 3)},
            "pos_table",
        ),
        pytest.param(
            {"pos_table": (0, 0)},
            "pos_table",
        ),
    ],
    ids=str,
)
def test_what_is_no_table_is_refused_in_one_line(options, message, micro):
    with pytest.raises(ValueError, match=message) as error:
        micro(**options)
    assert "\n" not in str(error.value)
