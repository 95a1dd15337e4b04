"""1,000 classes and 50,000 validation images through all that is done with results."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import open_browser
from made_stores import MadeStore, fill
from PIL import Image
from tiny_runs import MODEL

from leaderboard.opening import open_source
from leaderboard.ranking.board import Board
from leaderboard.ranking.boards import boards
from leaderboard.server import Refresher
from mixerbench.commands.leaderboard._bundle import export_bundle, import_bundle_folder
from mixerbench.commands.leaderboard._publishing import publish
from mixerbench.commands.leaderboard.site import site
from mixerbench.config.compose import compose
from mixerbench.tracking.keys import Artifact, Hardest
from mixerbench.tracking.store import Store
from mixerbench.training.run import run_training

pytestmark = [
    pytest.mark.everything,  # large files
    pytest.mark.xdist_group("imagenet_size"),  # one store, whatever the number of processes
]

CLASSES = 1000
ENTRIES, SEEDS = 3, 2
FIXED_BYTES = 2_000_000  # the libraries that draw, whatever the board
ENTRY_BYTES = 100_000  # of each entry: its own page, and its part of the board's and comparison's


@dataclass(frozen=True)
class Shared:
    """A store with a board of made runs of ImageNet's size, and one of a real run."""

    place: Path
    uri: str


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    place = tmp_path_factory.mktemp("imagenet")
    store = MadeStore(place, classes=CLASSES, whole=True)
    fill(store, entries=ENTRIES, seeds=SEEDS, images=50_000, classes=CLASSES)
    train(place, store.uri)
    return Shared(place, store.uri)


def train(place: Path, uri: str) -> None:
    """On a folder of a thousand classes, an image each for training and validation."""
    pixels = np.random.default_rng(0).integers(0, 256, (CLASSES, 8, 8, 3), np.uint8)
    for number in range(CLASSES):
        for split in ("train", "val"):
            folder = place / "data" / split / f"n{number:08}"
            folder.mkdir(parents=True)
            Image.fromarray(pixels[number]).save(folder / "0.jpg")
    run_training(
        compose(
            [
                *("mixer=attention", "protocol=folder", f"data.root={place / 'data'}", *MODEL),
                *("protocol.image_size=32", "protocol.patch_size=16", "recipe.epochs=1"),
                *("recipe.batch.size=250", "recipe.batch.micro_batch_size=250"),
                *("recipe.schedule.warmup_epochs=0", "run.device=cpu", "run.measure=false"),
                *("run.progress=false", "tracking.upload_weights=false"),
                *(f"tracking.uri={uri}", f"run.root={place / 'runs'}"),
            ]
        )
    )


def boards_of(place: str) -> dict[str, Board]:
    source = open_source(place)
    reading = source.read()
    assert not reading.skipped
    found = boards(reading.runs, reading.measurements, source=source)
    return {board.protocol: board for board in found}


def of_board(folder: Path, board: Board) -> list[Path]:
    return sorted(folder.glob(f"*{board.fingerprint}*"))


def test_boards_have_their_tests_and_intervals(shared: Shared):
    found = boards_of(shared.uri)
    made, real = found["digits"], found["folder"]
    assert [entry.ranks for entry in made.entries] == ["1", "2", "3"]
    assert len(made.analysis.comparisons) == 3
    assert real.fields["protocol.data.num_classes"] == str(CLASSES)
    assert real.entries[0].top1_interval is not None


@pytest.fixture(scope="module")
def folder(shared: Shared) -> Path:
    """The pages of both boards."""
    folder = shared.place / "site"
    assert "2 boards, 4 entries" in site(shared.uri, folder)
    return folder


def test_pages_stay_small_and_open(shared: Shared, folder: Path):
    found = boards_of(shared.uri)
    size = sum(path.stat().st_size for path in folder.iterdir())
    own = sum(path.stat().st_size for path in of_board(folder, found["digits"]))
    assert size - own < FIXED_BYTES
    assert own < ENTRIES * ENTRY_BYTES
    with open_browser() as browser:
        for board in found.values():
            for kind in ("board", "compare", "entry"):
                opened = browser.open(
                    next(folder.glob(f"{kind}-{board.fingerprint}*.html")).as_uri()
                )
            assert opened.get_by_text("Hardest classes").is_visible()
            assert opened.locator("#classes-plot svg.main-svg").count() > 0
        assert browser.errors == []


def test_classes_have_the_names_that_the_hardest_images_tell(shared: Shared, folder: Path):
    board = boards_of(shared.uri)["folder"]
    source = open_source(shared.uri)
    path = source.artifact(board.entries[0].runs[0], Artifact.HARDEST)
    assert path is not None
    row = pq.read_table(path).to_pylist()[0]
    assert row[Hardest.TARGET_NAME] == f"n{row[Hardest.TARGET]:08}"
    (data,) = folder.glob(f"board-{board.fingerprint}.js")
    content = json.loads(data.read_text().removeprefix("window.mixerbench = ").rstrip(";\n"))
    assert content["classNames"][str(row[Hardest.TARGET])] == row[Hardest.TARGET_NAME]
    (page,) = folder.glob(f"entry-{board.fingerprint}-*.html")
    assert re.search(r"\d+ · n\d{8}", page.read_text())


def test_a_bundle_is_exported_read_and_imported(shared: Shared, tmp_path: Path):
    bundle = tmp_path / "bundle"
    export_bundle(shared.uri, [], bundle)
    assert [e.ranks for e in boards_of(str(bundle))["digits"].entries] == ["1", "2", "3"]
    new = f"sqlite:///{tmp_path / 'new.db'}"
    Store(new, 30)
    import_bundle_folder(bundle, new)
    before, after = boards_of(shared.uri), boards_of(new)
    assert after.keys() == before.keys()
    for name, board in before.items():
        assert [e.ranks for e in after[name].entries] == [e.ranks for e in board.entries]
        ours, theirs = board.analysis.comparisons, after[name].analysis.comparisons
        assert [c.interval for c in ours.values()] == [c.interval for c in theirs.values()]
    said = site(str(bundle), tmp_path / "site")
    assert "2 boards, 4 entries" in said


def test_pages_are_published_and_served(shared: Shared, tmp_path: Path):
    said = publish(shared.uri, [])
    assert said.count(Artifact.PAGE) == 2
    refresher = Refresher(shared.uri, 30, tmp_path)
    refresher._refresh()
    assert refresher.folder is not None
    assert len(list(refresher.folder.glob("entry-*.html"))) == 4
