"""``mixerbench pack``: what it says, what it refuses, and how an interrupted one goes on."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mixerbench import cli
from mixerbench.commands import _packing as pack_command
from mixerbench.config.compose import compose
from mixerbench.data.packing.opening import open_packed
from mixerbench.data.source import open_images
from mixerbench.data.sources import folder as folder_module

Command = Callable[..., Any]
Refused = Callable[..., str]

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and two validation images, one of each unreadable."""
    root = tmp_path_factory.mktemp("source") / "my images"
    photograph = Image.fromarray(load_sample_images().images[0])
    for split, count in (("train", 6), ("val", 1)):
        for label in ("day", "night"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                left = 20 * number
                photograph.crop((left, 0, left + 120, 90)).save(folder / f"{number}.JPEG")
        (folder / "0.JPEG").write_text("no image")
    return root


@pytest.fixture
def packing(root: Path, tmp_path: Path) -> list[str]:
    return ["pack", "data=folder", f"data.root={root}", f"out={tmp_path / 'out'}", "shard_images=3"]


def test_files_as_they_are_keep_the_fingerprint(
    packing: list[str], command: Command, root: Path, tmp_path: Path
) -> None:
    outcome = command(*packing)
    assert outcome.code == 0, outcome.err
    images, unreadable, same, how = outcome.out.splitlines()
    assert images.startswith("12 training and 2 validation images, 5 shards of which 5 are new, ")
    assert unreadable == (
        "2 images could not be read, and the reasons are stored in their place. The first is "
        "train/night/0.JPEG."
    )
    assert same == "No pixel has changed: the protocol's fingerprint is that of the folder."
    assert f"data.root={tmp_path / 'out'}" in how
    again = command(*packing)
    assert (again.code, again.err) == (0, "")
    assert "5 shards of which 0 are new" in again.out


def test_settings_reach_the_images(
    packing: list[str], command: Command, root: Path, tmp_path: Path
) -> None:
    outcome = command(*packing, "short_side=40", "quality=70", "jobs=1")
    assert outcome.code == 0, outcome.err
    description = "short_side=40 jpeg quality=70 4:2:0 bicubic"
    assert f"The training images have changed ({description})" in outcome.out
    batch = ["recipe.batch.size=2", "recipe.batch.micro_batch_size=2"]
    protocol = compose(["protocol=folder", f"data.root={root}", *batch]).protocol
    found, source = (
        open_packed(tmp_path / "out", protocol.data.exif_orientation),
        open_images(protocol),
    )
    assert found.digest() == source.digest()
    assert found.train.load(0).shape == (40, 53, 3)
    assert found.val.load(0).shape == (90, 120, 3)
    about = json.loads((tmp_path / "out" / "pack.json").read_text())
    assert about["description"] == description
    assert about["settings"]["exif_orientation"] is True


def test_null_is_no_size(packing: list[str], command: Command, tmp_path: Path) -> None:
    outcome = command(*packing, "short_side=null", "format=raw", "data.exif_orientation=false")
    assert outcome.code == 0, outcome.err
    about = json.loads((tmp_path / "out" / "pack.json").read_text())
    assert (about["settings"]["short_side"], about["settings"]["format"]) == (None, "raw")
    assert about["settings"]["exif_orientation"] is False


def test_verify_finds_a_flipped_bit(
    packing: list[str], command: Command, refused: Refused, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command(*packing).code == 0
    verified = command("pack", "--verify", f"out={out}")
    assert (verified.code, verified.err) == (0, "")
    assert verified.out == f"{out}: 7 files, all as they were written\n"
    path = out / "train-00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    (out / "val.index.arrow").unlink()
    damaged = command("pack", "--verify", f"out={out}", "jobs=1")
    assert (damaged.code, damaged.out) == (1, "")
    assert damaged.err == (
        f"mixerbench: 2 of 7 files in {out} are damaged: train-00001.arrow (its checksum differs), "
        "val.index.arrow (missing). Remove them; the command that packed them writes them again.\n"
    )
    assert "short_side" in refused("pack", "--verify", f"out={out}", "short_side=40")
    assert "pack.json" in refused("pack", "--verify", f"out={tmp_path}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["short_side=big"], ("short_side=big", "above 0, or null")),
        (["short_side=0"], ("short_side=0",)),
        (["format=png"], ("format=png", "jpeg, raw")),
        (["quality=80"], ("quality=80", "short_side=PIXELS")),
        (["short_side=40", "quality=400"], ("quality=400", "1 to 100")),
        (["jobs=-1"], ("jobs=-1",)),
        (["shortside=40"], ("'shortside=40'", "short_side=...")),
        (["mixer=attention"], ("'mixer=attention'",)),
        (["data.rot=x"], ("'rot'", "'root'")),
        (["data.root=/nowhere"], ("/nowhere/train",)),
        (["data.num_classes=1000"], ("2 classes", "1000")),
        (["data.root=null"], ("no root",)),
        (["data=digits"], ("'digits'", "no image folder")),
        (["out=/proc/nothing"], ("/proc/nothing", "cannot be written to")),
        (["--all"], ("--all",)),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    changes: list[str], words: tuple[str, ...], packing: list[str], refused: Refused
) -> None:
    if changes == ["data=digits"]:
        packing = [one for one in packing if not one.startswith("data")]
    message = refused(*packing, *changes)
    for word in words:
        assert word in message


def test_out_and_data_must_be_given(refused: Refused, tmp_path: Path) -> None:
    assert "out=FOLDER" in refused("pack", "data=folder")
    assert "data.root=FOLDER" in refused("pack", f"out={tmp_path}")


def test_what_is_packed_is_not_packed_again(
    packing: list[str], command: Command, refused: Refused, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command(*packing).code == 0
    message = refused("pack", "data=folder", f"data.root={out}", f"out={tmp_path / 'again'}")
    assert "packed already" in message
    other = refused(*packing, "short_side=40")
    assert "short_side=null" in other
    assert "now it is 40" in other


def _in_a_process(arguments: list[str], log: Path) -> None:
    """``mixerbench ARGUMENTS``, with images that take a while."""
    os.setsid()  # a terminal sends Ctrl-C to a whole group
    decode = folder_module.decode

    def slow(*args: Any) -> Any:
        time.sleep(0.05)
        return decode(*args)

    folder_module.decode = slow
    sys.argv = ["mixerbench", *arguments]
    with open(log, "w") as file:
        sys.stdout = sys.stderr = file
        cli.main()


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(
    packing: list[str], command: Command, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_in_a_process, args=([*packing, "jobs=2"], log), daemon=False)
    process.start()
    deadline = time.monotonic() + 60
    while len(list(out.glob("*-*.arrow"))) < 1:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    (line,) = log.read_text().splitlines()
    assert line.startswith("mixerbench: interrupted. ")
    assert line.endswith(
        f"of 5 shards are whole in {out}, and the same command goes on with the others."
    )
    assert not list(out.glob("*.part"))
    outcome = command(*packing)
    assert outcome.code == 0
    assert "5 shards of which 5 are new" not in outcome.out


def test_without_a_terminal_a_line_now_and_then(
    packing: list[str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_command, "_LINE_SECONDS", 0.0)
    lines = command(*packing).err.splitlines()
    assert lines[-1].startswith("14/14 images, ")
    assert all(" images/s, " in line and line.endswith(" min left") for line in lines)


def test_a_terminal_shows_a_bar(
    packing: list[str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    outcome = command(*packing)
    assert outcome.code == 0
    for words in ("14/14 images", "images/s", "left"):
        assert words in outcome.err


def test_help_explains_each_setting(command: Command) -> None:
    out = command("pack", "--help").out
    for word in (
        "out=",
        "short_side=",
        "format=",
        "quality=",
        "jobs=",
        "shard_images=",
        "--verify",
    ):
        assert word in out
    assert "\n  pack " in command("--help").out
