"""The search for a size: with costs that are formulas, so that the search itself is tested."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from micro_backbones import SIZES

from mixerbench.config.cost_target import TOLERANCE
from mixerbench.config.sizes import Size
from mixerbench.models import create_model
from mixerbench.models.size_search import NoMatchError, match_size

pytestmark = pytest.mark.slow  # models are counted in many sizes

NAMED = [(backbone, name) for backbone, sizes in SIZES.items() for name in sizes]


def _stages(size: Size) -> list[tuple[int, int, int]]:
    """(dim, depth, heads) of each stage."""
    return list(zip(size.dims, size.depths, size.num_heads, strict=True))


def _cost(size: Size) -> int:
    """About the parameters of a transformer: each block has 12 C² and some."""
    blocks = sum(depth * (12 * dim**2 + 13 * dim) for dim, depth, _ in _stages(size))
    return blocks + 1000 * _stages(size)[-1][0]


def _depths(size: Size) -> list[int]:
    return [depth for _, depth, _ in _stages(size)]


@pytest.mark.parametrize(("backbone", "name"), NAMED)
@settings(max_examples=25, deadline=None)
@given(factor=st.floats(math.log(0.25), math.log(6)).map(math.exp))
def test_what_is_found_costs_what_it_is_to_cost(backbone: str, name: str, factor: float) -> None:
    start = SIZES[backbone][name]
    target = round(factor * _cost(start))
    try:
        found = match_size(start, target, _cost)
    except NoMatchError:
        assert name == "micro"  # whose channels are some percent each
        return
    assert found.cost == _cost(found.size)
    assert abs(found.cost - target) <= TOLERANCE * target
    assert len(found.size.dims) == len(start.dims)
    for dim, depth, heads in _stages(found.size):
        assert dim % heads == 0
        assert depth >= 1
    changes = [abs(a - b) for a, b in zip(_depths(found.size), _depths(start), strict=True)]
    assert max(changes) <= 4
    assert sum(change > 0 for change in changes) <= 1
    for (dim, _, heads), (old, _, old_heads) in zip(
        _stages(found.size), _stages(start), strict=True
    ):
        per_head, before = dim / heads, old / old_heads
        assert per_head <= 2 * before
        assert per_head >= before / 2 or heads == 1
    assert match_size(start, target, _cost) == found


@pytest.mark.parametrize(("backbone", "name"), NAMED)
def test_a_size_that_fits_already_is_left_as_it_is(backbone: str, name: str) -> None:
    start = SIZES[backbone][name]
    for share in (0.992, 1, 1.008):
        assert match_size(start, round(share * _cost(start)), _cost).size == start


def test_deits_sizes_are_found_from_each_other() -> None:
    tiny, small, base = (SIZES["vit"][name] for name in ("tiny", "small", "base"))
    for start, wanted in ((tiny, small), (small, base), (base, small), (small, tiny)):
        assert match_size(start, _cost(wanted), _cost).size == wanted


@pytest.mark.parametrize(("backbone", "name"), [n for n in NAMED if n[1] != "micro"])
def test_few_sizes_are_counted(backbone: str, name: str) -> None:
    counted = []

    def cost(size: Size) -> int:
        counted.append(size)
        return _cost(size)

    start = SIZES[backbone][name]
    for factor in (0.5, 0.9, 1.3, 3):
        counted.clear()
        match_size(start, round(factor * _cost(start)), cost)
        assert len(counted) == len(set(counted)) <= 20


def _only(takes: Callable[[Size], bool]) -> Callable[[Any], int]:
    def cost(size: Size) -> int:
        if not takes(size):
            raise ValueError("not this one")
        return _cost(size)

    return cost


def test_widths_that_the_model_does_not_take_are_left_out() -> None:
    start = SIZES["vit"]["base"]
    target = round(1.5 * _cost(start))
    found = match_size(start, target, _only(lambda size: size.dims[0] % 12 == 0)).size
    assert len(found.dims) == 1
    assert found.dims[0] % 12 == 0


def test_depth_gives_what_width_does_not() -> None:
    start = SIZES["vit"]["tiny"]
    deeper = Size((192,), (14,), (3,))
    found = match_size(start, _cost(deeper), _only(lambda size: size.dims[0] % 192 == 0))
    assert found.size == deeper


def test_the_deepest_stage_is_the_one_that_changes() -> None:
    start = SIZES["pyramid"]["medium"]
    deeper = Size((96, 192, 384, 768), (2, 2, 19, 2), (3, 6, 12, 24))
    takes = _only(lambda size: size.dims == start.dims)
    assert match_size(start, _cost(deeper), takes).size == deeper


def test_where_nothing_lands_the_nearest_is_told() -> None:
    start = SIZES["vit"]["tiny"]
    with pytest.raises(NoMatchError) as error:
        match_size(start, 1_000_000, lambda size: 5_000_000 + _cost(size))
    assert error.value.nearest.cost >= 5_000_000
    assert error.value.nearest.size != start


def test_a_start_that_is_no_size_is_refused_in_the_models_words() -> None:
    with pytest.raises(ValueError, match="not this one"):
        match_size(Size((65,), (2,), (4,)), 10_000, _only(lambda size: size.dims[0] % 4 == 0))


def test_what_is_found_builds() -> None:
    def parameters(size: Size) -> int:
        model = create_model("local_attention", size, image_size=32, num_classes=10)
        return sum(p.numel() for p in model.parameters())

    found = match_size(SIZES["vit"]["micro"], 400_000, parameters)
    assert abs(parameters(found.size) - 400_000) <= 4_000
