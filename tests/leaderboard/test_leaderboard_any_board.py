"""Pages of boards of every kind: whatever is missing, large or strange, each page works."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import Browser, open_browser
from made_stores import START_MS, made_predictions

from leaderboard.ranking.board import Board
from leaderboard.ranking.boards import boards
from leaderboard.reading.cache import Cache
from leaderboard.reading.curves import Curves
from leaderboard.reading.results import Reading, TrainedRun
from leaderboard.site import Site, write_site
from mixerbench.tracking.keys import Artifact, Hardest, Metric, Prediction, Tag

pytestmark = [
    pytest.mark.everything,  # many boards in the browser
    pytest.mark.xdist_group("any_board"),  # one site, whatever the number of processes
]

OPEN_ALL = "all => all.forEach(one => { one.open = true; })"
MEASURED = {Metric.IMAGES_PER_SECOND: 1000.0, Metric.LATENCY_MS: 2.0, Metric.MEMORY_MIB: 30.0}
CURVE = {
    Metric.VAL_TOP1: [(10, 40.0), (20, 60.0)],
    Metric.TRAIN_LOSS: [(10, 2.0), (20, 1.0)],
    Metric.EPOCH: [(10, 1.0), (20, 2.0)],
    Metric.TRAIN_SECONDS: [(10, 5.0), (20, 10.0)],
}
INVISIBLE = "\u202e\u2066\u200b\ufeff\u2028\x00\x1b[31m\x07"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)
YEAR_287396_MS = 9_007_199_254_740_991


@dataclass
class MadeSource:
    """Runs as a store gives them, without a store."""

    folder: Path
    name: str = "made"
    runs: list[TrainedRun] = field(default_factory=list)
    curves_of: dict[str, Curves] = field(default_factory=dict)

    @cached_property
    def cache(self) -> Cache:
        return Cache(f"made {self.folder}")

    def read(self) -> Reading:
        return Reading(tuple(self.runs), {})

    def artifact(self, run: TrainedRun, name: str, *, again: bool = False) -> Path | None:
        path = self.folder / run.run_id / name
        return path if path.exists() else None

    def curves(self, run: TrainedRun) -> Curves:
        return self.curves_of.get(run.run_id, {})

    def add(
        self,
        protocol: str,
        label: str,
        *,
        seed: int = 0,
        predictions: Mapping[str, Any] | None = None,
        top1: float = 50.0,
        curve: Curves = CURVE,
        metrics: Mapping[str, float] = MEASURED,
        hardest: Mapping[str, Any] | bytes | None = None,
        finished: int = START_MS,
        tags: Mapping[str, str] = {},
    ) -> TrainedRun:
        run_id = f"r{len(self.runs)}"
        folder = self.folder / run_id
        folder.mkdir()
        if predictions is not None:
            pq.write_table(pa.table(dict(predictions)), folder / Artifact.PREDICTIONS)
            correct = np.asarray(predictions[Prediction.TARGET]) == predictions[Prediction.TOP1]
            top1 = 100 * float(correct.mean())
        if isinstance(hardest, bytes):
            (folder / Artifact.HARDEST).write_bytes(hardest)
        elif hardest is not None:
            pq.write_table(pa.table(dict(hardest)), folder / Artifact.HARDEST)
        run = TrainedRun(
            run_id=run_id,
            experiment_id="1",
            name=f"{label}-{seed}",
            experiment="made",
            started=START_MS - 1000,
            finished=finished,
            model=label,
            model_fingerprint=f"{abs(hash((protocol, label))):016x}"[:16],
            mixer="attention",
            size="micro",
            backbone="vit",
            stem="patch",
            protocol_name=protocol,
            protocol_fingerprint=f"{protocol.encode().hex():0<16}"[:16],
            seed=str(seed),
            synthetic=False,
            hardware="2 x CPU",
            tags={Tag.COMMAND: "mixerbench train", **tags},
            params={"model": {"model.dim": "8"}, "protocol": {"protocol.name": protocol}},
            metrics={Metric.FINAL_TOP1: top1, Metric.IMAGES_SEEN: 100.0, **metrics},
        )
        self.runs.append(run)
        self.curves_of[run_id] = curve
        return run


def predictions(number: int, *, images: int = 40, classes: int = 10) -> dict[str, Any]:
    accuracy = 0.3 + 0.5 / (1 + number)
    return made_predictions(accuracy, images=images, classes=classes, seed=number)[0]


def hardest(classes: int = 10, text: str = "tench") -> dict[str, Any]:
    return {
        Hardest.IMAGE: [f"val/{i}.jpg" for i in range(12)],
        Hardest.TARGET: [i % classes for i in range(12)],
        Hardest.TARGET_NAME: [f"{text} {i % classes}" for i in range(12)],
        Hardest.TOP1: [(i + 1) % classes for i in range(12)],
        Hardest.TOP1_NAME: [f"{text} {(i + 1) % classes}" for i in range(12)],
        Hardest.TARGET_PROBABILITY: [i / 100 for i in range(12)],
        Hardest.THUMBNAIL: [PNG] * 11 + [None],
    }


def fill(source: MadeSource) -> None:
    """A board of each kind, called after it."""
    add = source.add
    add("bare", "one", curve={}, metrics={})
    add("one", "one", predictions=predictions(0), hardest=hardest())
    add("mixed", "whole", predictions=predictions(0), hardest=hardest())
    add("mixed", "no predictions", hardest=hardest())
    add("mixed", "no curves", predictions=predictions(1), curve={}, metrics={})
    add("mixed", "no clock", curve={k: v for k, v in CURVE.items() if k == Metric.VAL_TOP1})
    for number, images in enumerate((40, 30)):
        add("unlike", f"m{number}", predictions=predictions(number, images=images))
    for number in range(2):
        for classes in (100, 101):
            add(f"{classes}c", f"m{number}", predictions=predictions(number, classes=classes))
    for number in range(41):
        add("forty-one", f"m{number:03}", predictions=predictions(number), hardest=hardest())
    for number in range(201):
        add("two hundred", f"m{number:03}", predictions=predictions(number), curve={})
    for number in range(51):  # more than 50,000 accuracies of classes
        made = predictions(number, images=1000, classes=1000)
        add("51 x 1000", f"m{number:03}", predictions=made, hardest=hardest(1000))
    for number in range(30):
        add("seeds", "one", seed=number, predictions=predictions(number))
    _fill_strange(add)


def _fill_strange(add: Any) -> None:
    """What no run of ours writes, in files that a store gives all the same."""
    far = predictions(0)
    far[Prediction.TOP1] = far[Prediction.TOP1].copy()
    far[Prediction.TOP1][:3] = 2**62
    below = predictions(0)
    below[Prediction.TARGET] = below[Prediction.TARGET] - 5
    strange = hardest(text="</script><script>window.pwned=1</script>" + INVISIBLE)
    add("strange", "class numbers", predictions=far, hardest=strange)
    add("strange", "classes below 0", predictions=below, hardest=b"PAR1 cut off")
    add("strange", "other columns", hardest={"image": ["x"]}, predictions=predictions(2))
    nothing = {key: [None] * 12 for key in hardest()}
    add("strange", "no values", hardest=nothing, predictions=predictions(3))
    add("strange", "large", hardest=hardest() | {Hardest.THUMBNAIL: [PNG * 20_000] * 12})
    huge = {key: [(0, 1e308), (1, 1.7e308)] for key in CURVE}
    for seed in range(3):
        add("strange", "huge numbers", seed=seed, curve=huge, metrics={Metric.GMACS: 1e300})
    add("strange", "at once", curve={key: [(0, 0.0)] for key in CURVE})
    add("strange", "the year 287396", finished=YEAR_287396_MS)
    add("strange", "before all", finished=-YEAR_287396_MS)
    add("strange", INVISIBLE + "gnp.exe" + INVISIBLE, tags={Tag.GIT_COMMIT: INVISIBLE * 3})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, dict[str, Board]]:
    folder = tmp_path_factory.mktemp("any")
    source = MadeSource(folder)
    fill(source)
    found = boards(source.runs, source=source)
    site = write_site(source, found, folder / "site")
    return site, {board.protocol: board for board in found}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


KINDS = (
    *("bare", "one", "mixed", "unlike", "100c", "101c", "forty-one", "two hundred", "51 x 1000"),
    *("seeds", "strange"),
)


def pages(site: Site, board: Board) -> list[str]:
    """Addresses: the board, a comparison, the first and the last entries, in the order of rank."""
    slug = board.fingerprint
    ids = [entry.model_fingerprint for entry in board.entries]
    some = ids if len(ids) <= 12 else [ids[0], ids[-1]]
    compared = f"#pick={'.'.join(ids[:2] + ids[-1:])}"
    return [
        (site.folder / f"board-{slug}.html").as_uri(),
        (site.folder / f"compare-{slug}.html").as_uri() + compared,
        *((site.folder / f"entry-{slug}-{one}.html").as_uri() for one in some),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_of_any_board_works(
    kind: str, made: tuple[Site, dict[str, Board]], browser: Browser
):
    site, found = made
    browser.errors.clear()
    for address in pages(site, found[kind]):
        opened = browser.open(address)
        opened.locator("details").evaluate_all(OPEN_ALL)
        for plot in opened.locator(".plot:visible").all():
            name = plot.get_attribute("id")
            assert plot.locator("svg.main-svg").count() > 0, f"{address}: {name} draws nothing"
        for heading in opened.locator("h2:visible").all():
            assert heading.inner_text().strip(), f"{address}: a heading says nothing"
        text = opened.locator("main").inner_text()
        assert "undefined" not in text and "NaN" not in text, address
        assert opened.evaluate("window.pwned") is None, address
        opened.close()
    assert browser.errors == []
    assert browser.blocked == []


def cells(page: Any, heading: str) -> list[list[str]]:
    """The body of the table below this heading."""
    script = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    rows = page.locator(f"h2:text-is('{heading}') + table tbody tr")
    found: list[list[str]] = rows.evaluate_all(script)
    return found


def test_of_a_thousand_classes_an_entry_shows_ends_spread_and_what_it_confuses(
    made: tuple[Site, dict[str, Board]], browser: Browser
):
    site, found = made
    board = found["51 x 1000"]
    entry = board.entries[0]
    own = predictions(int(entry.label[1:]), images=1000, classes=1000)
    wrong = own[Prediction.TARGET] != own[Prediction.TOP1]
    page = browser.open(pages(site, board)[2])
    assert page.locator("#confusion-plot").count() == 0

    def named(number: int) -> str:
        return f"{number} · tench {number}" if number < 13 else str(number)

    # One image of each class, so each is either right or wrong.
    assert cells(page, "Hardest classes") == [
        [named(number), "0.00"] for number in np.flatnonzero(wrong)[:10]
    ]
    assert cells(page, "Easiest classes") == [
        [named(number), "100.00"] for number in np.flatnonzero(~wrong)[:-11:-1]
    ]
    assert cells(page, "Most confused classes") == [
        [named(number), named(own[Prediction.TOP1][number]), "1.00", "100.0"]
        for number in np.flatnonzero(wrong)[:20]
    ]
    spread = page.evaluate("document.getElementById('classes-plot').data[0].y")
    assert (spread[0], sum(spread[1:-1]), spread[-1]) == (wrong.sum(), 0, (~wrong).sum())
    page.close()


def test_a_comparison_of_many_classes_begins_with_those_that_differ(
    tmp_path: Path, browser: Browser
):
    source = MadeSource(tmp_path)
    target = np.arange(404) % 101
    made = {
        Prediction.IMAGE: [str(i) for i in range(404)],
        Prediction.TARGET: target,
        Prediction.CONFIDENCE: np.full(404, 0.9),
    }
    source.add("p", "a", predictions={**made, Prediction.TOP1: target}, hardest=hardest(101))
    swapped = np.where(target == 7, 8, target)
    source.add("p", "b", predictions={**made, Prediction.TOP1: swapped}, hardest=hardest(101))
    found = boards(source.runs, source=source)
    site = write_site(source, found, tmp_path / "site")
    page = browser.open(pages(site, found[0])[1])
    page.locator("details").evaluate_all(OPEN_ALL)
    script = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    rows = page.locator("#classes-table tbody tr").evaluate_all(script)
    assert rows[0] == ["7 · tench 7", "100", "0"]
    assert len(rows) == 101
    page.close()
