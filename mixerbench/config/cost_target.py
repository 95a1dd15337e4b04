"""``match=params:22M``: what a model is to cost, and who finds the size. No torch here."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from mixerbench.config.schema import Settings
from mixerbench.config.sizes import Size
from mixerbench.errors import Refusal

TOLERANCE = 0.01
"""How far a cost may be from what it is to be, as a share of that."""

_TARGET = re.compile(r"(params|flops):(\d+(?:\.\d+)?)([kKMG]?)")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class Target:
    """So many trainable parameters, or so many multiply-adds of one image."""

    text: str  # as it was given: params:22M
    kind: str  # params or flops
    value: int

    @property
    def unit(self) -> str:
        return "parameters" if self.kind == "params" else "multiply-adds"


Match = Callable[[Settings, Target], Size]
"""From settings and what their model is to cost to the size that does."""


def read_target(text: str) -> Target:
    """``params:22M`` or ``flops:4.6G``, as it stands after ``match=``.

    Raises:
        Refusal: what came, what is expected, an example.
    """
    found = _TARGET.fullmatch(text)
    value = round(Decimal(found[2]) * _UNITS[found[3].replace("K", "k")]) if found else 0
    if found is None or value < 1:
        raise Refusal(
            f"match={text}: give params:NUMBER or flops:NUMBER (multiply-adds of one image) with "
            "k, M, G or nothing behind the number, such as match=params:22M or match=flops:4.6G."
        )
    return Target(text, found[1], value)
