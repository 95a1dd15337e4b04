"""A run is continued on the images that it was begun with, or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixerbench.config.schema import Settings
from mixerbench.data.source import SOURCES
from mixerbench.errors import Refusal
from mixerbench.training.run import run_training


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Let the random images be of that version; None: of before there were versions."""
    synthetic = SOURCES.get("synthetic")
    return lambda number: monkeypatch.setattr(synthetic, "generator_version", number)


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (1, "its images were others (then synthetic version=1 "),
        (None, "begun before fingerprints said what the images are"),
    ],
)
def test_a_run_on_other_images_is_not_continued(
    before: int | None,
    words: str,
    version: Callable[[int | None], None],
    tiny: Callable[..., Settings],
    stopped: Callable[..., Path],
    trained: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    version(before)
    folder = stopped("train/loss", 6)
    version(2)
    with pytest.raises(Refusal) as refusal:
        run_training(tiny(f"run.resume='{folder}'"))
    (line,) = str(refusal.value).splitlines()
    assert str(folder) in line
    assert words in line
    assert "synthetic version=2 image_size=16 num_classes=4 train_images=64 val_images=24" in line
    capsys.readouterr()
    assert trained("run.resume=auto").folder != folder
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "unfinished" in line]
    assert words in line
    version(before)
    assert trained("run.resume=auto").folder == folder
