import csv
import io
import json
import re
from typing import Any

import pytest
from made_runs import DIGITS, LONGER, RANDOM

from leaderboard import leaderboard_text, render
from leaderboard.ranking.boards import boards
from leaderboard.ranking.columns import COLUMNS
from leaderboard.reading.results import Reading

HEADERS = [column.header for column in COLUMNS]


def text(reading: Reading, format: str, *filters: str, **options: Any) -> str:
    shown = boards(reading.runs, filters=filters)
    return render.render(shown, reading.skipped, format=format, **options)


def markdown_tables(markdown: str) -> list[list[list[str]]]:
    tables: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        tables.append([[cell.strip() for cell in line] for line in lines])
    return tables


def test_csv_parses_back_with_full_precision(reading: Reading):
    rows = list(csv.DictReader(io.StringIO(text(reading, "csv", f"protocol={DIGITS}"))))
    assert [row["mixer"] for row in rows] == ["attention", "pooling", "shift", "fourier"]
    first = rows[0]
    assert set(HEADERS) < set(first)
    assert float(first["top-1 (%)"]) == pytest.approx((80.1 + 81.7 + 79.4) / 3, abs=1e-12)
    assert float(first["± std (seeds)"]) == pytest.approx(1.1789826, abs=1e-6)
    assert first["inference (images/s)"] == ""
    assert {row["fingerprint"] for row in rows} == {DIGITS}


def test_csv_refuses_to_mix_protocols_and_says_how_to_choose(reading: Reading):
    with pytest.raises(ValueError, match=f"one protocol, here are 3.*protocol={LONGER}"):
        text(reading, "csv")


def test_json_holds_values_per_seed_run_ids_and_skipped_runs(reading: Reading):
    content = json.loads(text(reading, "json"))
    assert content["skipped"] == reading.skipped
    board = next(b for b in content["boards"] if b["fingerprint"] == DIGITS)
    attention = board["entries"][0]
    assert attention["top1"]["values"] == {"0": 80.1, "1": 81.7, "2": 79.4}
    assert attention["top1"]["std"] == pytest.approx(1.1789826, abs=1e-6)
    assert [run["seed"] for run in attention["runs"]] == ["0", "1", "2"]
    assert {run["run_id"] for run in attention["runs"]} <= {run.run_id for run in reading.runs}
    assert board["fields"]["protocol.recipe.epochs"] == "30"
    assert attention.keys() >= content["columns"].keys()


def test_markdown_parses_back_with_a_table_per_protocol(reading: Reading):
    markdown = text(reading, "markdown")
    tables = markdown_tables(markdown)
    assert len(tables) == 3
    for header, *rows in tables:
        assert "GMACs (multiply-adds)" not in header  # nobody logged it
        assert {"rank", "top-1 (%)", "parameters"} <= set(header) <= set(HEADERS)
        assert {len(row) for row in rows} == {len(header)}
    header, _, first, *_ = tables[0]
    assert dict(zip(header, first, strict=True))["top-1 (%)"] == "80.40"
    assert "2 without final/top1" in markdown


@pytest.mark.parametrize("width", [64, 80, 100, 120, 160])
def test_the_terminal_shows_every_row_within_the_width(reading: Reading, width: int):
    output = text(reading, "terminal", "mixer=attention", "mixer=pooling", width=width)
    assert max(map(len, output.splitlines())) <= width
    for words in (
        f"digits · {DIGITS} · models: 2, runs: 4",
        r"1–4 \? +attention_micro_patch .*80\.40 .*1,000",
        r"1–4 \? +pooling_micro_patch .*70\.50",
        r"Not on a board: 1 failed, 1 not finished",
    ):
        assert re.search(words, output), words
    hidden = " ".join(re.findall(r"hidden at \d+ characters: ([^\n]+)", output))
    for header in ("mixer", "size", "stem"):
        assert header in hidden or re.search(rf"rank .*\b{header}\b", output)


def test_random_images_are_marked_in_each_text(reading: Reading):
    for format in ("terminal", "markdown"):
        assert "random images: accuracy means nothing" in text(reading, format)
    assert "true" in text(reading, "csv", f"protocol={RANDOM}").splitlines()[1].split(",")
    assert [b["synthetic"] for b in json.loads(text(reading, "json"))["boards"]].count(True) == 1


def test_hostile_names_stay_text_in_csv(reading: Reading):
    (row,) = csv.DictReader(io.StringIO(text(reading, "csv", f"protocol={RANDOM}")))
    for cell in (row["model"], row["mixer"]):
        assert cell.startswith("'=cmd|")
        assert cell.isprintable()


def test_hostile_names_stay_text_in_markdown(reading: Reading):
    (table,) = markdown_tables(text(reading, "markdown", f"protocol={RANDOM}"))
    header, _, row = table
    mixer = dict(zip(header, row, strict=True))["mixer"]
    assert mixer == r"\=cmd\|' /C calc'\!A0\`\[bold\] \[31m\_\_x\_\_\<img\>"


def test_hostile_names_stay_text_in_the_terminal(reading: Reading):
    output = text(reading, "terminal", f"protocol={RANDOM}", width=200, color=True)
    assert "[bold]" in output
    assert "\x1b[31m" not in output
    assert "\x1b[1m" in output  # colour was on: the title is bold


def test_hostile_names_survive_in_json(reading: Reading):
    (board,) = json.loads(text(reading, "json", f"protocol={RANDOM}"))["boards"]
    assert board["entries"][0]["mixer"] == "=cmd|' /C calc'!A0`[bold]\n\x1b[31m__x__<img>"


def test_no_run_is_said_in_words():
    assert render.terminal([], {"failed": 2}) == (
        "No finished run to show.\nNot on a board: 2 failed.\n"
    )
    assert json.loads(render.json([]))["boards"] == []
    assert len(render.csv([]).splitlines()) == 1


def test_one_call_goes_from_store_to_text(store: Any):
    output = leaderboard_text(
        store.uri, filters=[f"protocol={DIGITS}"], sort="parameters", width=100
    )
    rows = re.findall(r"^1–4 \? +(\w+)", output, re.MULTILINE)
    assert rows[0] == "shift_micro_patch"


@pytest.mark.parametrize("options", [{"format": "html"}, {"sort": "x"}])
def test_a_wrong_option_is_refused_before_reading(options: dict[str, Any]):
    with pytest.raises(ValueError, match="known: "):
        leaderboard_text("sqlite:////nowhere/mlflow.db", **options)
