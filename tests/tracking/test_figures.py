"""One row for each figure: whoever shows, explains or limits it reads the row."""

import dataclasses
import runpy
from pathlib import Path

from leaderboard.ranking.columns import COLUMNS
from mixerbench.measure.model_costs import Measures
from mixerbench.tracking.figures import FIGURES, HEADLINE, MEASURED_BY_ITSELF

ROOT = Path(__file__).parents[2]


def test_a_figure_has_a_name_of_its_own_and_says_what_it_is() -> None:
    for attribute in ("key", "name", "title"):
        assert len({getattr(figure, attribute) for figure in FIGURES}) == len(FIGURES)
    assert all(figure.meaning for figure in FIGURES)


def test_each_figure_is_a_column() -> None:
    shown = {column.name: column.figure for column in COLUMNS if column.figure}
    assert shown == {figure.name: figure for figure in FIGURES}
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)


def test_what_is_measured_by_itself_is_a_field_of_the_measures() -> None:
    fields = {field.name for field in dataclasses.fields(Measures)}
    measured = {f.name for f in FIGURES if f.key.startswith(MEASURED_BY_ITSELF)}
    assert measured <= fields
    assert fields - measured == {"batch_size", "hardware"}  # what the figures are of


def test_a_board_ranks_by_a_figure() -> None:
    assert HEADLINE in FIGURES and HEADLINE.better == "high"


def test_the_glossary_in_the_docs_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "glossary.py"))
    page = script["PAGE"].read_text(encoding="utf-8")
    assert script["with_glossary"](page) == page, "run: python docs/glossary.py"
