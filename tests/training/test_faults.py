"""What a machine does to a run: full disks, too little memory, broken images, one bad process."""

import hashlib
import json
import os
import resource
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from processes import differences, finish, start_group
from sklearn.datasets import load_sample_images
from small_disks import Disk, mounted

from mixerbench.commands._packing import pack_folder
from mixerbench.config.compose import compose
from mixerbench.config.schema import Settings
from mixerbench.errors import Refusal, TrainingStopped
from mixerbench.launching import rank
from mixerbench.launching.job import Job
from mixerbench.tracking.journal import FILE_NAME, is_finished, read
from mixerbench.tracking.keys import Metric, Tag
from mixerbench.training import checkpoint
from mixerbench.training.checkpoint import CHECKPOINTS
from mixerbench.training.group import Group, join
from mixerbench.training.progress import ProgressView
from mixerbench.training.run import run_training


def _stop(work: Callable[[], object]) -> str:
    """What a run says that cannot go on: one or two lines."""
    with pytest.raises(TrainingStopped) as stopped:
        work()
    message = str(stopped.value)
    print(message)
    assert len(message.splitlines()) <= 2
    return message


def _folder(root: Path) -> Path:
    """That of the only run."""
    (path,) = root.glob(f"*/*/{FILE_NAME}")
    return path.parent


def _newest(folder: Path) -> Path:
    path = checkpoint.newest(folder / CHECKPOINTS)
    assert path is not None
    checkpoint.load(path)  # it is whole
    return path


# --- a full disk ------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", "8m") as disk:
        yield disk


def _fill_page(journal: Path) -> None:
    """Let the journal end with a page: until then it takes records even on a full disk."""
    record = {"time": 0, "kind": "tags", "values": {"filler": ""}}
    missing = -(journal.stat().st_size + len(json.dumps(record)) + 1) % resource.getpagesize()
    record["values"] = {"filler": "x" * missing}
    with journal.open("a") as file:
        file.write(json.dumps(record) + "\n")


@pytest.mark.parametrize(
    ("left", "what"), [(30_000, "the checkpoint"), (0, FILE_NAME)], ids=["checkpoint", "journal"]
)
def test_a_full_disk_stops_a_run_that_goes_on_once_there_is_room(
    left: int,
    what: str,
    disk: Disk,
    plain: Any,
    trained: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fill_in_step_6(self: ProgressView, name: str, record: dict[str, Any]) -> None:
        if record.get("step") == 6 and "train/loss" in record["values"]:
            if what == FILE_NAME:
                _fill_page(_folder(disk.root) / FILE_NAME)
            disk.fill(left)

    root = f"run.root={disk.root}"
    often = "tracking.system_metrics_every_seconds=0.001"  # the other one who writes
    with monkeypatch.context() as patch:
        patch.setattr(ProgressView, "show", fill_in_step_6)
        message = _stop(lambda: trained(root, often))
    folder = _folder(disk.root)
    assert what in message
    assert "No space left on device" in message
    assert f"run.resume={folder}" in message
    assert len(message.splitlines()) == 1
    assert _newest(folder) == checkpoint.path_of(folder / CHECKPOINTS, 4)
    assert not list(folder.rglob("*.part"))
    assert "Traceback" not in capfd.readouterr().err

    disk.make_room()
    trained(f"run.resume={folder}")
    assert differences(plain.folder, folder) == []


def test_a_disk_that_is_full_before_a_run_begins_stops_it_in_one_line(
    disk: Disk, plain: Any, tiny: Callable[..., Settings], trained: Callable[..., Any]
) -> None:
    root = f"run.root={disk.root}"
    disk.fill(0)
    with pytest.raises((Refusal, TrainingStopped), match="No space left on device") as stopped:
        trained(root)
    print(stopped.value)
    assert len(str(stopped.value).splitlines()) == 1
    disk.make_room()
    assert differences(plain.folder, trained(root, "run.resume=auto").folder) == []


# --- a faulty mixer, in one process or in one of several --------------------------------------

PLUGIN = '''
import os
from pathlib import Path
import torch
from torch import nn
from mixers import TokenMixer, register_mixer

@register_mixer("faulty")
class Faulty(TokenMixer):
    """A linear layer that fails in its sixth pass, in one process, as long as there is a file."""
    any_grid, mixes_prefix, mixes_tokens, paper = True, False, False, "none"
    passes = 0

    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, grid):
        x = self.proj(x)
        if self.training and os.environ.get("RANK", "{rank}") == "{rank}":
            self.passes += 1
            if self.passes == 6 and Path("{fault}").exists():
                {failure}
        return x
'''
OUT_OF_MEMORY = 'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")'
NOT_A_NUMBER = "return x * float('nan')"


@pytest.fixture
def faulty(tmp_path: Path, tiny: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings of a run whose mixer fails so in that process, until ``fault`` is removed."""

    def make(failure: str, rank: int, *overrides: str) -> Settings:
        plugin, fault = tmp_path / "plugin.py", tmp_path / "fault"
        plugin.write_text(PLUGIN.format(failure=failure, rank=rank, fault=fault))
        fault.touch()
        steps = "run.checkpoint_every_steps=1"
        return tiny("mixer=faulty", f"plugins=[{plugin}]", steps, *overrides)

    return make


def _work(place: Path) -> None:
    """One of the processes of a job, as the agent starts it."""
    sys.argv[1:] = [str(place)]
    rank.main()


def _train(settings: Settings, outcome: Path) -> None:
    with join() as group:
        try:
            run_training(settings, group)
        except TrainingStopped as error:
            (outcome / f"{type(error).__name__}-{group.rank}").write_text(str(error))


def test_without_memory_a_run_stops_and_says_what_keeps_the_protocol(
    tmp_path: Path, faulty: Callable[..., Settings], trained: Callable[..., Any]
) -> None:
    settings = faulty(OUT_OF_MEMORY, 0)
    message = _stop(lambda: run_training(settings))
    folder = _folder(tmp_path / "runs")
    assert "micro-batch of 8 images" in message
    assert "run.grad_checkpointing=true" in message
    _newest(folder)
    (tmp_path / "fault").unlink()
    again = [*settings.overrides, f"run.resume={folder}", "run.grad_checkpointing=true"]
    assert run_training(compose(again)).folder == folder
    assert is_finished(folder / FILE_NAME)


@pytest.mark.slow
def test_one_process_without_memory_stops_all_for_good(
    tmp_path: Path, faulty: Callable[..., Settings]
) -> None:
    job = Job.create(tmp_path / "job", faulty(OUT_OF_MEMORY, 1, "run.devices=2"))
    finish(start_group(_work, 2, job.path))
    assert "micro-batch of 8 images" in _stop(job.outcome)
    folder = _folder(tmp_path / "runs")
    before = (folder / FILE_NAME).read_bytes()
    _newest(folder)
    # The agent starts all anew, since one has broken off: they end at once.
    assert finish(start_group(_work, 2, job.path)) == [0, 0]
    assert (folder / FILE_NAME).read_bytes() == before


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_stops_all_alike(
    tmp_path: Path, faulty: Callable[..., Settings]
) -> None:
    settings = faulty(NOT_A_NUMBER, 1, "run.devices=2")
    assert finish(start_group(_train, 2, settings, tmp_path)) == [0, 0]
    first, second = ((tmp_path / f"TrainingStopped-{n}").read_text() for n in range(2))
    print(first)
    assert first == second
    folder = _folder(tmp_path / "runs")
    found = json.loads((folder / "non_finite.json").read_text())
    assert found["virtual_rank"] == 1
    assert 1 <= len(found["images"]) <= 8
    assert f"Last good checkpoint: {_newest(folder)}" in first
    assert _newest(folder) == checkpoint.path_of(folder / CHECKPOINTS, found["step"] - 1)


def _told_alone(settings: Settings, place: Path) -> None:
    """The second of two processes gets the signal that a scheduler sends to one."""
    shown = Group.largest
    asked = 0

    def largest(self: Group, number: int) -> int:
        nonlocal asked
        asked += 1
        if asked == 5 and self.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return shown(self, number)

    Group.largest = largest  # type: ignore[method-assign]
    _train(settings, place)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(
    tmp_path: Path, tiny: Callable[..., Settings]
) -> None:
    settings = tiny("run.devices=2")
    assert finish(start_group(_told_alone, 2, settings, tmp_path)) == [0, 0]
    first, second = ((tmp_path / f"Preempted-{n}").read_text() for n in range(2))
    assert first == second
    assert "told to stop (SIGUSR1)" in first
    folder = _folder(tmp_path / "runs")
    again = tiny("run.devices=2", f"run.resume={folder}")
    whole = tiny("run.devices=2", f"run.root={tmp_path / 'whole'}")
    for one in (again, whole):
        assert finish(start_group(_train, 2, one, tmp_path)) == [0, 0]
    assert differences(_folder(tmp_path / "whole"), folder) == []


# --- images that cannot be read ---------------------------------------------------------------

VALIDATION = sorted(f"{('temple', 'flower')[n % 2]}/{n:02}.JPEG" for n in range(100))


@pytest.fixture
def photographs(tmp_path: Path, tiny: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings of a run on 32 + 100 real JPEG files of two classes; one of each is broken."""
    root, pictures = tmp_path / "images", load_sample_images().images
    for split, count in (("train", 32), ("val", len(VALIDATION))):
        for number in range(count):
            path = root / split / ("temple", "flower")[number % 2] / f"{number:02}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            left, top = 37 * number % 500, 29 * number % 300
            crop = pictures[number % 2][top : top + 40, left : left + 48]
            Image.fromarray(crop).save(path, quality=92)
    for broken in ("train/temple/04.JPEG", "val/flower/03.JPEG"):
        path = root / broken
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def make(*overrides: str) -> Settings:
        return tiny(
            "data=folder", "data.train_images=null", "data.val_images=null",
            "data.num_classes=null", f"data.root={root}", "recipe.epochs=2", *overrides,
        )  # fmt: skip

    return make


def _listed(folder: Path) -> list[str]:
    return [line.split("\t")[0] for line in (folder / "corrupt_images.txt").open()]


def _predicted(folder: Path) -> list[str]:
    names: list[str] = pq.read_table(folder / "predictions.parquet")["image"].to_pylist()
    return names


BROKEN = ["train/temple/04.JPEG", "val/flower/03.JPEG"]
READABLE = [name for name in VALIDATION if f"val/{name}" not in BROKEN]


@pytest.mark.parametrize("size", [1, 2])
def test_broken_images_are_listed_alike_on_any_number_of_processes(
    size: int, tmp_path: Path, photographs: Callable[..., Settings]
) -> None:
    settings = photographs("data.max_corrupt=0.2", f"run.devices={size}")
    assert finish(start_group(_train, size, settings, tmp_path)) == [0] * size
    folder = _folder(tmp_path / "runs")
    assert is_finished(folder / FILE_NAME)
    assert _listed(folder) == BROKEN
    records = [record for record, _ in read(folder / FILE_NAME)]
    counts = [r["values"].get("data/corrupt_images") for r in records if r["kind"] == "metrics"]
    assert counts[-1] == 2
    values = {k: v for r in records if r["kind"] == "metrics" for k, v in r["values"].items()}
    assert values[Metric.UNREADABLE_VAL_IMAGES] == 1
    assert values[Metric.VAL_IMAGES] == 99
    assert any(r.get("path") == "corrupt_images.txt" for r in records)
    # In training another stands in for it; what was not seen has no prediction.
    assert _predicted(folder) == READABLE
    assert not any(Tag.VAL_PIXELS in r["values"] for r in records if r["kind"] == "tags")


@pytest.mark.parametrize("size", [1, 2])
def test_too_many_broken_images_stop_a_run_with_a_list(
    size: int, tmp_path: Path, photographs: Callable[..., Settings]
) -> None:
    settings = photographs("data.max_corrupt=0.01", f"run.devices={size}")
    assert finish(start_group(_train, size, settings, tmp_path)) == [0] * size
    (message,) = {path.read_text() for path in tmp_path.glob("TrainingStopped-*")}
    print(message)
    folder = _folder(tmp_path / "runs")
    assert "protocol.data.max_corrupt=0.01" in message
    assert f"All of them are in {folder / 'corrupt_images.txt'}" in message
    assert _listed(folder) == BROKEN[:1]


def test_more_processes_than_batches_of_validation_images(
    tmp_path: Path, photographs: Callable[..., Settings]
) -> None:
    settings = photographs(
        "data.max_corrupt=0.2", "run.devices=4", "recipe.batch.micro_batch_size=4",
        "run.evaluation_batch_size=60",
    )  # fmt: skip
    assert finish(start_group(_train, 4, settings, tmp_path)) == [0] * 4
    assert _predicted(_folder(tmp_path / "runs")) == READABLE


def test_one_in_a_hundred_validation_images_may_be_missing_and_no_more(
    tmp_path: Path, photographs: Callable[..., Settings]
) -> None:
    (tmp_path / "images/val/temple/08.JPEG").write_text("gone")
    message = _stop(lambda: run_training(photographs("data.max_corrupt=1")))
    assert "2 of 100 val images could not be read, which is 2.00%" in message
    assert "more than the 1.00% of validation images that an accuracy may lack" in message
    assert "The first is val/flower/03.JPEG (OSError: " in message
    folder = _folder(tmp_path / "runs")
    assert _listed(folder) == ["val/flower/03.JPEG", "val/temple/08.JPEG"]
    assert not any(
        "val/top1" in record["values"]
        for record, _ in read(folder / FILE_NAME)
        if record["kind"] == "metrics"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_split_of_which_nothing_can_be_read_stops_a_run_in_one_line(
    workers: int, tmp_path: Path, photographs: Callable[..., Settings]
) -> None:
    for path in (tmp_path / "images/train").rglob("*.JPEG"):
        path.write_text("gone")
    settings = photographs("data.max_corrupt=1", f"run.workers={workers}")
    message = _stop(lambda: run_training(settings))
    assert message.startswith(f"{tmp_path / 'images/train'}")
    assert "cannot be identified as an image" in message
    assert "none could be read" in message
    assert len(message.splitlines()) == 1


# --- images that change -----------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path, photographs: Callable[..., Settings]) -> Callable[..., Settings]:
    """The settings of ``photographs`` with all files mended."""

    def make(*overrides: str) -> Settings:
        settings = photographs(*overrides)
        for broken in BROKEN:
            path = tmp_path / "images" / broken
            path.write_bytes((path.parent / "05.JPEG" if "flower" in broken else
                              path.parent / "06.JPEG").read_bytes())  # fmt: skip
        return settings

    return make


def test_a_run_knows_the_pixels_that_it_was_evaluated_on(
    tmp_path: Path, whole: Callable[..., Settings]
) -> None:
    root = tmp_path / "images"

    def digest(*overrides: str) -> str:
        run_training(whole("recipe.epochs=1", *overrides))
        newest = max(tmp_path.rglob(FILE_NAME), key=lambda path: path.stat().st_mtime)
        table = pq.read_table(newest.parent / "predictions.parquet").to_pydict()
        expected = hashlib.sha256()
        for name, checksum in zip(table["image"], table["checksum"], strict=True):
            pixels = np.asarray(Image.open(root / "val" / name).convert("RGB"))
            assert checksum == zlib.crc32(pixels.tobytes())
            expected.update(f"{name}\0{checksum}\n".encode())
        tags = [r["values"] for r, _ in read(newest) if r["kind"] == "tags"]
        assert tags[-1] == {Tag.VAL_PIXELS: expected.hexdigest()[:16]}
        return str(tags[-1][Tag.VAL_PIXELS])

    before = digest()
    assert digest("run.seed=1", "run.evaluation_batch_size=7", "run.workers=1") == before
    packed = tmp_path / "packed"
    pack_folder(["data=folder", f"data.root={root}", f"out={packed}"])
    assert digest(f"data.root={packed}") == before
    picture = root / "val/flower/01.JPEG"
    picture.write_bytes((root / "val/flower/03.JPEG").read_bytes())
    assert digest() != before


def test_a_validation_image_that_changes_stops_the_run_and_every_resume(
    tmp_path: Path, whole: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = whole("recipe.epochs=3")
    picture = tmp_path / "images/val/flower/01.JPEG"
    original = picture.read_bytes()
    Image.open(picture).transpose(Image.Transpose.ROTATE_180).save(
        tmp_path / "other.JPEG", quality=5
    )
    other = (tmp_path / "other.JPEG").read_bytes()
    assert len(other) < len(original)
    as_large = other.ljust(len(original), b"\0")  # only its pixels give it away

    def replace_in_second_epoch(self: ProgressView, name: str, record: dict[str, Any]) -> None:
        if record.get("step") == 3 and "train/loss" in record["values"]:
            picture.write_bytes(as_large)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressView, "show", replace_in_second_epoch)
        message = _stop(lambda: run_training(settings))
    folder = _folder(tmp_path / "runs")
    assert "validation image flower/01.JPEG has other pixels" in message
    assert f"run.resume={folder}" in message
    assert len(message.splitlines()) == 1
    assert _newest(folder) == checkpoint.path_of(folder / CHECKPOINTS, 2)  # nothing after it

    again = compose([*settings.overrides, f"run.resume={folder}"])
    assert "flower/01.JPEG" in _stop(lambda: run_training(again))
    picture.write_bytes(other)
    again = compose([*settings.overrides, f"run.resume={folder}"])
    with pytest.raises(Refusal, match="its images were others"):
        run_training(again)
    picture.write_bytes(original)
    again = compose([*settings.overrides, f"run.resume={folder}"])
    assert run_training(again).folder == folder
    steps = [r["step"] for r, _ in read(folder / FILE_NAME)
             if r["kind"] == "metrics" and "val/top1" in r["values"]]  # fmt: skip
    assert steps == [2, 4, 6]
