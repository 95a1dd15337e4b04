"""The columns of a board: its figures, what an entry is, and how sure its rank is."""

from typing import NamedTuple

from leaderboard.text import nearest
from mixerbench.tracking.figures import FIGURES, HEADLINE, Figure
from mixers.core.errors import Refusal


class Column(NamedTuple):
    name: str  # in `sort`, JSON and data frames
    header: str
    key: str  # of a figure's metric, or an attribute of Entry
    format: str  # how a number is shown; "s": a text
    high_first: bool = False
    meaning: str = ""  # a part of a sentence, for those who ask
    priority: int | None = None  # as of a `Figure`
    shown_at_first: bool = True  # as of a `Figure`
    in_tables: bool = True  # else in CSV, JSON and data frames only
    figure: Figure | None = None  # None: an attribute of Entry

    @property
    def is_cost(self) -> bool:
        return self.figure is not None and self.figure.is_cost


def _of(figure: Figure) -> Column:
    return Column(
        name=figure.name,
        header=figure.title,
        key=figure.key,
        format=figure.format,
        high_first=figure.better == "high",
        meaning=figure.meaning,
        priority=figure.priority,
        shown_at_first=figure.shown_at_first,
        figure=figure,
    )


_OTHERS = [figure for figure in FIGURES if figure is not HEADLINE]
# fmt: off
COLUMNS = (
    Column("rank", "rank by mean", "rank", "d", in_tables=False,
           meaning="by mean top-1 among all entries of the protocol, chance or not"),
    Column("ranks", "rank", "ranks", "s",
           meaning="range of ranks: 1 + entries that are better beyond chance, to all but those "
                   "that are worse beyond chance (paired tests, corrected by Holm); "
                   "?: not tested against all others"),
    Column("model", "model", "label", "s"),
    Column("mixer", "mixer", "mixer", "s", priority=3),
    Column("size", "size", "size", "s", priority=4, shown_at_first=False),
    Column("backbone", "backbone", "backbone", "s", priority=2, shown_at_first=False),
    Column("stem", "stem", "stem", "s", priority=5, shown_at_first=False),
    _of(HEADLINE),
    Column("interval", "95 % interval", "interval_text", "s",
           meaning="of top-1: Student's t over seeds; of a single seed Wilson's over images"),
    Column("top1_low", "top-1 low (%)", "top1_low", ".2f", True, in_tables=False),
    Column("top1_high", "top-1 high (%)", "top1_high", ".2f", True, in_tables=False),
    Column("top1_std", "± std (seeds)", "top1_std", ".2f", in_tables=False),
    *(_of(figure) for figure in _OTHERS if not figure.is_cost),
    Column("calibration_error", "ECE (%)", "calibration_error", ".2f", priority=10,
           meaning="expected calibration error in 15 bins: mean gap of confidence and accuracy"),
    Column("unreadable", "unreadable images", "unreadable", "d",
           meaning="of the validation images, all seeds together: left out of the accuracies"),
    *(_of(figure) for figure in _OTHERS if figure.is_cost),
    Column("seeds", "seeds", "seeds", "d", True),
    Column("mixed", "seeds differ in", "mixed", "s",
           meaning="versions or code that not all runs of the entry share"),
    Column("versions", "versions", "versions", "s", priority=0, shown_at_first=False,
           meaning="of what a result can depend on, as the runs recorded them"),
)
# fmt: on


def check_sort(sort: str) -> Column:
    """The column of this name.

    Raises:
        Refusal: there is none.
    """
    columns = {column.name: column for column in COLUMNS}
    if sort not in columns:
        raise Refusal(f"cannot sort by {sort!r}: {nearest(sort, columns)}")
    return columns["rank" if sort == "ranks" else sort]
