"""Numbers as pages hold them: as exact as a screen shows, and none that JSON lacks."""

import math
from collections.abc import Iterable
from typing import Any


def short(value: Any, digits: int = 5) -> Any:
    """Five digits are more than a screen shows, and a third of the bytes; None for infinity."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def shorts(values: Iterable[Any]) -> list[Any]:
    return [short(float(value)) for value in values]
