"""Runs of milliseconds: 64 random images of 16 x 16 pixels, one block of 16 channels."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import DATA, MODEL, RECIPE, RUN

from mixerbench.config.compose import compose
from mixerbench.config.schema import Settings
from mixerbench.tracking.journal import FILE_NAME, Record, read
from mixerbench.training.run import Finished, run_training

STEPS = 4  # of an epoch


@pytest.fixture(scope="session")
def tiny_below() -> Callable[..., Settings]:
    """Settings of a tiny run below a folder; everything random is on."""

    def make(folder: Path, *overrides: str) -> Settings:
        root = f"run.root={folder / 'runs'}"
        return compose([*DATA, *MODEL, *RECIPE, *RUN, root, *overrides])

    return make


@pytest.fixture
def tiny(tmp_path: Path, tiny_below: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings of a tiny run below the test's own folder."""
    return partial(tiny_below, tmp_path)


@dataclass(frozen=True)
class Trained:
    """A finished run and what its journal says."""

    finished: Finished
    settings: Settings

    @property
    def folder(self) -> Path:
        return self.finished.folder

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return self.finished.result.model.state_dict()

    def records(self) -> list[Record]:
        return [record for record, _ in read(self.folder / FILE_NAME)]

    def curve(self, key: str) -> list[tuple[int, float]]:
        return [
            (record["step"], record["values"][key])
            for record in self.records()
            if record["kind"] == "metrics" and key in record["values"]
        ]

    def losses(self) -> list[float]:
        return [value for _, value in self.curve("train/loss")]


@pytest.fixture
def trained(tiny: Callable[..., Settings]) -> Callable[..., Trained]:
    """Train tiny settings with these overrides to the end."""

    def run(*overrides: str) -> Trained:
        settings = tiny(*overrides)
        return Trained(run_training(settings), settings)

    return run


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_below: Callable[..., Settings]) -> Trained:
    """The run without overrides, trained once for all tests. Look, don't touch."""
    settings = tiny_below(tmp_path_factory.mktemp("plain"))
    return Trained(run_training(settings), settings)


class Stop(Exception):  # noqa: N818 - it says what it does
    """What a test throws to end a run."""


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """End the next run right after it has written ``key`` of ``step`` to its journal."""
    from mixerbench.training.progress import ProgressView

    def arm(key: str, step: int) -> None:
        def show(self: ProgressView, name: str, record: dict[str, Any]) -> None:
            if record.get("step") == step and key in record["values"]:
                monkeypatch.setattr(ProgressView, "show", shown)
                raise Stop

        shown = ProgressView.show
        monkeypatch.setattr(ProgressView, "show", show)

    return arm


@pytest.fixture
def stopped(
    tiny: Callable[..., Settings], stop_at: Callable[[str, int], None]
) -> Callable[..., Path]:
    """Train tiny settings until ``key`` of ``step`` is logged; returns the unfinished folder."""

    def run(key: str, step: int, *overrides: str) -> Path:
        folders: list[Path] = []
        stop_at(key, step)
        try:
            run_training(tiny(*overrides), on_folder=folders.append)
        except Stop:
            return folders[0]
        raise AssertionError(f"{key} of step {step} was never logged")

    return run
