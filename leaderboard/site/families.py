"""The colour of each family of mixers, and which family an entry is of."""

import re
from collections.abc import Mapping

from leaderboard.mixer_description import MIXED, OTHER, MixerDescription
from leaderboard.ranking.board import Board

# Each three times as light or dark as both backgrounds. The usual ones (attention, convolution,
# mlp, none, other, mixed) are told apart by red-green blind readers; ten colours cannot all be,
# which is why names stand beside them. The families are those of `mixers.core.spec.Family`.
COLORS: Mapping[str, str] = {
    "attention": "#3574d6",
    "convolution": "#cc5a1e",
    "mlp": "#1a8f6c",
    "shift": "#b0509b",
    "fourier": "#7c8a1a",
    "recurrence": "#7d64cf",
    "pooling": "#4b8aa8",
    "none": "#8a5a2b",
    OTHER: "#cf4560",
    MIXED: "#76797f",
}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "cross", "x", "pentagon")


def looks(board: Board, descriptions: Mapping[str, MixerDescription]) -> dict[str, dict[str, str]]:
    """Family, colour and symbol of every entry: one colour a family, however they are sorted."""
    found = {}
    seen = dict.fromkeys(COLORS, 0)
    for entry in sorted(board.everyone, key=lambda entry: (entry.rank, entry.label)):
        family = family_of(entry.mixer, descriptions)
        found[entry.key] = {
            "family": family,
            "color": COLORS[family],
            "symbol": SYMBOLS[seen[family] % len(SYMBOLS)],
        }
        seen[family] += 1
    return found


def family_of(mixer: str, descriptions: Mapping[str, MixerDescription]) -> str:
    """One of `COLORS`; a plan without a description is known by its name, ``a-b`` or ``a+b``."""
    if mixer in descriptions:
        return descriptions[mixer].family
    return MIXED if re.fullmatch(r"\w+([-+]\w+)+", mixer) else OTHER


def legend(looks: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The families among ``looks`` and their colours."""
    present = {look["family"] for look in looks.values()}
    return {family: color for family, color in COLORS.items() if family in present}
