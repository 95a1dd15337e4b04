"""The types of settings: numbers, lists and texts with what they may be, beyond a Python type."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from mixerbench.config.rules import Bound


def choice(*names: str) -> Bound:
    """One of these texts."""
    return Bound(f"choose one of {', '.join(names)}", names.__contains__)


def between(least: float, most: float) -> Bound:
    """Counts have an upper bound too: a typing error must not start a million processes."""
    return Bound(f"give {least} or more, up to {most}", lambda value: least <= value <= most)


def above_zero(most: float) -> Bound:
    """A number that is not 0, up to ``most``."""
    return Bound(f"give a number above 0, up to {most}", lambda value: 0 < value <= most)


def matching(pattern: str, hint: str) -> Bound:
    """A text that a regular expression matches from end to end."""
    return Bound(hint, lambda value: re.fullmatch(pattern, value) is not None)


def _low_to_high(most: float) -> Callable[[Any], bool]:
    return lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= most


_BELOW_ONE = Bound("give 0 or more, below 1", lambda value: 0 <= value < 1)

ZeroOrMore = Annotated[float, Bound("give 0 or more", lambda value: value >= 0)]
Positive = Annotated[float, Bound("give a number above 0", lambda value: value > 0)]
Share = Annotated[float, Bound("give a number from 0 to 1", lambda value: 0 <= value <= 1)]
BelowOne = Annotated[float, _BELOW_ONE]

Pixels = Annotated[int, between(1, 16384)]  # of an image's or a patch's side
Images = Annotated[int, between(1, 10**9)]  # of a data set
BatchSize = Annotated[int, between(1, 2**20)]
Epochs = Annotated[int, between(1, 1_000_000)]
Steps = Annotated[int, between(1, 10**9)]
Times = Annotated[int, between(1, 1000)]
Seconds = Annotated[float, above_zero(24 * 60 * 60)]
Processes = Annotated[int, between(1, 1024)]  # or threads
Jobs = Annotated[int, between(1, 100_000)]  # or machines
Count = Annotated[int, between(1, 1_000_000)]

Means = Annotated[
    list[float], Bound("give one number for each of 3 channels", lambda value: len(value) == 3)
]
Deviations = Annotated[
    list[float],
    Bound(
        "give one number above 0 for each of 3 channels",
        lambda value: len(value) == 3 and min(value) > 0,
    ),
]
Betas = Annotated[
    list[float],
    Bound(
        "give two numbers from 0 to 1",
        lambda value: len(value) == 2 and all(map(_BELOW_ONE.allows, value)),
    ),
]
Ratios = Annotated[list[float], Bound("give [low, high] above 0", _low_to_high(float("inf")))]
Shares = Annotated[list[float], Bound("give [low, high] above 0 and up to 1", _low_to_high(1))]

Device = Annotated[str, matching(r"auto|cpu|cuda(:\d+)?", "give auto, cpu, cuda or cuda:<number>")]
FolderName = Annotated[
    str,
    matching(
        r"[\w-][\w.-]*",
        "give letters, digits, '.', '_' and '-', as it names a folder, and no '.' first",
    ),
]
