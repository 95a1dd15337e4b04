"""What a mixer is, as its page tells it. Filled by ``mixerbench.commands.leaderboard``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Part(NamedTuple):
    """One layer of one mixer, measured."""

    name: str
    dim: int  # channels of the layer whose multiply-adds are counted
    macs: Mapping[int, int]  # tokens -> multiply-adds that are executed, as the board counts them
    formula_macs: Mapping[int, int]  # the paper's count; empty where the code executes just these
    exponent: float | None  # p in macs ∝ tokens^p between the two largest grids; None: no macs
    reach: tuple[tuple[float, ...], ...]
    """(rows, columns) of the grid: the influence of each token on the centre one, 0 to 1.

    Row and column ``side // 2`` are the centre's.
    """
    reach_share: float  # of all tokens, those with an influence


MIXED = "mixed"
"""The family of a plan whose mixers are of several."""
OTHER = "other"
"""The family of a mixer that declares none, or whose code is not here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerDescription:
    """What a mixer is, for its page."""

    name: str
    family: str = OTHER  # what kind of operation mixes the tokens
    summary: str  # the first paragraph of its docstring
    formula: str  # a line of Unicode mathematics; "" unknown
    paper: str  # title and arXiv number, as in `mixerbench list mixers`; "" unknown
    paper_url: str  # https://arxiv.org/abs/... where the paper names a number, else ""
    options: Mapping[str, str]  # name -> default, as on the command line
    facts: tuple[str, ...]  # sentences
    parts: tuple[Part, ...]
    """One for a mixer, one for each distinct mixer of a schedule.

    Empty for a mixer that cannot be measured; ``facts`` then says why.
    """
    recorded: bool = False  # its code is not here: ``options`` are those of the runs
