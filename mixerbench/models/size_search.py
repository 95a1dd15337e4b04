"""The size at which a model costs what it is to cost: width first, depth where it must be.

Pure search: what a size costs is asked of the caller.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mixerbench.config.cost_target import TOLERANCE
from mixerbench.config.sizes import Size

_ROUNDINGS = tuple((multiple, even) for even in (True, False) for multiple in (8, 4, 2))
"""What widths are multiples of, and must the channels of a head be even? GPUs like 8 and even."""

_PROBES = ((2, True), (4, True), (8, True))  # finest first; a stem may take multiples of 4 only

_MOST_BLOCKS, _FEW = 4, 6
"""How many blocks more or fewer are tried; a sixth of a stage is few."""

_WINDOW = 0.015
"""Natural logarithm; rounding moves a width, and through it the cost, about so far at most."""

_STEPS = 30
"""On each side of the window, and windows in which a width that a model takes is looked for."""

_COMBINATIONS, _FREE_TRIES = 81, 32
"""Of widths and heads where round ones do not land: how many there are, how many are counted."""

_LARGEST_SCALE = 64.0
"""Of the width, and the inverse of the smallest."""

_HEAD_DIM_RANGE = math.log(2) / 2 + 1e-9
"""Natural logarithm; every width is within a factor of √2 of some number of equal heads."""


@dataclass(frozen=True)
class Matched:
    """A size and what it costs."""

    size: Size
    cost: int


class NoMatchError(ValueError):
    """No size within the tolerance was found."""

    def __init__(self, nearest: Matched) -> None:
        super().__init__(f"nothing within {TOLERANCE:.0%}: the nearest is {nearest}.")
        self.nearest = nearest


def match_size(start: Size, target: int, count: Callable[[Size], int]) -> Matched:
    """The size nearest to ``start`` in shape whose cost is within 1 % of ``target``.

    All widths are scaled together; heads follow them, so that the channels of a head stay
    nearly what they are. Where no width lands, the deepest stage gets a block more or fewer.
    Fewest blocks changed come first, then rounder widths, then the nearest shape. Odd widths,
    with which GPUs are slow, come after a few blocks and before many.

    Args:
        count: what a size costs, growing with its width; ValueError where no model has it.

    Raises:
        NoMatchError: nothing is near enough.
        ValueError: ``start`` itself is no model's size.
    """
    costs: dict[Size, int | None] = {start: count(start)}

    def cost(size: Size) -> int | None:
        if size not in costs:
            try:
                costs[size] = count(size)
            except ValueError:  # a part of the model does not take this width
                costs[size] = None
        return costs[size]

    for size in _candidates(start, target, cost, costs):
        number = cost(size)
        if number is not None and abs(number - target) <= TOLERANCE * target:
            return Matched(size, number)
    counted = [Matched(size, number) for size, number in costs.items() if number is not None]
    raise NoMatchError(min(counted, key=lambda matched: abs(matched.cost - target)))


_Cost = Callable[[Size], int | None]


def _candidates(
    start: Size, target: int, cost: _Cost, costs: Mapping[Size, int | None]
) -> Iterator[Size]:
    """Sizes in the order in which they are wanted.

    Args:
        costs: those that have been counted so far.
    """
    yield start
    crossings: list[tuple[Size, float]] = []
    few = max(start.depths) // _FEW
    for change, depths in _depths(start, deeper_first=(cost(start) or 0) < target):
        if change == few + 1:  # rather an odd width than many blocks
            for base, scale in crossings:
                yield from _of_any_width(base, scale)
        base = dataclasses.replace(start, depths=depths)
        crossing = _crossing(base, target, cost)
        if crossing is None:
            continue
        for rounding in _ROUNDINGS:
            yield from _around(base, crossing, rounding)
        # What was probed on the way may have landed although it is rounded far.
        probed = [size for size in costs if size.depths == depths]
        yield from sorted(probed, key=lambda size: _departure(size, start))
        if change <= few:
            crossings.append((base, crossing))
        else:
            yield from _of_any_width(base, crossing)


def _depths(start: Size, deeper_first: bool) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(0, those of ``start``), then a block more or fewer in the deepest stage, and so on."""
    deepest = start.depths.index(max(start.depths))
    yield 0, start.depths
    for change in range(1, _MOST_BLOCKS + 1):
        for sign in (1, -1) if deeper_first else (-1, 1):
            depths = list(start.depths)
            depths[deepest] += sign * change
            if depths[deepest] >= 1:
                yield change, tuple(depths)


def _crossing(base: Size, target: int, cost: _Cost) -> float | None:
    """The scale of the widths at which the cost is about ``target``; None if it never is.

    Costs are nearly a power of the scale: interpolating their logarithms takes few counts.
    """
    limit, wanted = math.log(_LARGEST_SCALE), math.log(target)
    low: tuple[float, float] | None = None  # (log scale, log missing cost) that is too small
    high: tuple[float, float] | None = None  # ... too large
    aim = step = 0.0
    while abs(aim) <= limit:
        probed = _probe(base, math.exp(aim), cost)
        if probed is None:
            return None
        size, number = probed
        ratios = _ratios(size.dims, base.dims)
        middle, missing = sum(ratios) / len(ratios), wanted - math.log(number)
        if abs(missing) < TOLERANCE / 2:
            return math.exp(middle)
        if low is not None and high is not None and not low[0] < middle < high[0]:
            break  # no other width lies between them
        if missing > 0:
            low = (middle, missing)
        else:
            high = (middle, missing)
        if low is not None and high is not None:
            share = low[1] / (low[1] - high[1])
            aim = low[0] + (high[0] - low[0]) * min(max(share, 0.2), 0.8)
            if high[0] - low[0] < _WINDOW / 3:
                break
        else:
            # Costs grow with about the square of the width; where they do not, take longer steps.
            step = min(max(abs(missing) / 2, 1.5 * step, _WINDOW / 3), math.log(2))
            aim += math.copysign(step, missing)
    return math.exp(aim) if abs(aim) <= limit else None


def _probe(base: Size, scale: float, cost: _Cost) -> tuple[Size, int] | None:
    """The size at ``scale``, or the next one that the model takes, and its cost."""
    for nudge in range(_STEPS):
        for rounding in _PROBES:
            size = _scaled(base, scale * math.exp(_WINDOW * nudge), rounding)
            number = cost(size)
            if number is not None:
                return size, number
    return None


def _around(base: Size, scale: float, rounding: tuple[int, bool]) -> list[Size]:
    """The sizes near ``scale``, the nearest in shape first: each stage is rounded elsewhere."""
    steps = range(-_STEPS, _STEPS + 1)
    near = {_scaled(base, scale * math.exp(_WINDOW * i / _STEPS), rounding) for i in steps}
    # Where all stages are rounded far in one direction, the cost is that far off, too.
    fitting = [
        size
        for size in near
        if min(_ratios(size.dims, base.dims)) <= math.log(scale) + _WINDOW
        and max(_ratios(size.dims, base.dims)) >= math.log(scale) - _WINDOW
    ]
    return sorted(fitting, key=lambda size: _departure(size, base))


def _of_any_width(base: Size, scale: float) -> list[Size]:
    """Sizes near ``scale`` of any width and many numbers of heads, nearest to it first.

    For narrow models, in which a few channels more or fewer are some percent of the cost.
    """
    stages = len(base.dims)
    each = round(_COMBINATIONS ** (1 / stages))
    options = []
    for old, old_heads in zip(base.dims, base.num_heads, strict=True):
        around = range(max(round(scale * old) - each, 1), round(scale * old) + each + 1)
        pairs = [
            (dim, heads)
            for dim in around
            for heads in range(1, dim + 1)
            if dim % heads == 0 and (old / old_heads) / 2 <= dim / heads <= 2 * old / old_heads
        ]
        by_distance = [(abs(dim - scale * old), dim, heads) for dim, heads in pairs]
        options.append([(dim, heads) for _, dim, heads in sorted(by_distance)[:each]])
    sizes = []
    for stage_by_stage in itertools.product(*options):
        dims, num_heads = zip(*stage_by_stage, strict=True)
        sizes.append(Size(dims, base.depths, num_heads))
    log_scale = math.log(scale)

    def distance(size: Size) -> tuple[float, tuple[float, tuple[int, ...]]]:
        ratios = _ratios(size.dims, base.dims)
        return round(abs(sum(ratios) / stages - log_scale), 9), _departure(size, base)

    return sorted(sizes, key=distance)[:_FREE_TRIES]


def _scaled(base: Size, scale: float, rounding: tuple[int, bool]) -> Size:
    """``base`` with all widths times ``scale``, rounded, and heads to go with them."""
    pairs = [
        _width_and_heads(scale * dim, max(dim // heads, 1), *rounding)
        for dim, heads in zip(base.dims, base.num_heads, strict=True)
    ]
    dims, num_heads = zip(*pairs, strict=True)
    return Size(dims, base.depths, num_heads)


def _width_and_heads(width: float, head_dim: int, multiple: int, even: bool) -> tuple[int, int]:
    """The nearest multiple that heads of about ``head_dim`` channels divide, and how many do."""
    # A narrow stage is not rounded by more than about a sixteenth of its width.
    rounding = min(multiple, max(2, 2 ** int(math.log2(max(width / 8, 1)))))
    nearest = max(round(width / rounding), 1)
    for distance in itertools.count():
        for number in (nearest - distance, nearest + distance):
            dim = number * rounding
            heads = _heads(dim, head_dim, even and rounding % 2 == 0) if dim > 0 else 0
            if heads:
                return dim, heads
    raise AssertionError("a multiple of head_dim always fits")


@functools.cache
def _heads(dim: int, head_dim: int, even: bool) -> int:
    """How many heads of about ``head_dim`` channels make ``dim``; 0 if none are near enough.

    Args:
        even: must the channels of a head be even, if ``head_dim`` is?
    """
    best, best_heads = _HEAD_DIM_RANGE, 0
    for heads in range(1, 2 * dim // head_dim + 2):
        own, rest = divmod(dim, heads)
        if rest or own < 1 or (even and head_dim % 2 == 0 and own % 2):
            continue
        departure = abs(math.log(own / head_dim))
        if heads == 1 and own < head_dim:
            departure = min(departure, _HEAD_DIM_RANGE)  # a stage narrower than a head has one
        if departure <= best:
            best, best_heads = departure, heads
    return best_heads


def _departure(size: Size, start: Size) -> tuple[float, tuple[int, ...]]:
    """How far the channels of a head and the widths' proportions are from those of ``start``."""
    ratios, heads = _ratios(size.dims, start.dims), _ratios(size.num_heads, start.num_heads)
    per_head = max(abs(ratio - more) for ratio, more in zip(ratios, heads, strict=True))
    return round(per_head + max(ratios) - min(ratios), 9), size.dims


def _ratios(numbers: Sequence[int], others: Sequence[int]) -> list[float]:
    """Natural logarithms, stage by stage."""
    return [math.log(number / other) for number, other in zip(numbers, others, strict=True)]
