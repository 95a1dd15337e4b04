"""The work of ``mixerbench pack``: packing and verifying, and how far it is."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mixerbench.config.assignments import key_of, split_arguments
from mixerbench.config.compose import compose
from mixerbench.config.sources import has_fact
from mixerbench.errors import Refusal, TrainingStopped

if TYPE_CHECKING:
    from mixerbench.data.packing.job import Packed

_NUMBERS = ("short_side", "quality", "shard_images", "jobs")
_OWN = ("out", "format", *_NUMBERS)
_DATA = ("data", "protocol", "protocol.data")
_LINE_SECONDS = 10.0  # between two lines where there is no terminal
_SHOWN_SECONDS = 0.1


def pack_folder(arguments: Sequence[str]) -> str:
    """Pack the training and validation images of ``data=...``; returns what was done.

    Raises:
        Refusal: a setting does not fit, or ``out=`` holds something else.
        TrainingStopped: it ended early; the same call goes on.
    """
    own, given = _read(arguments)
    if not given:
        raise Refusal("pack needs data=NAME and data.root=FOLDER: images to be packed.")
    protocol = compose(given).protocol
    data = protocol.data
    is_folder = has_fact(data.source, "class_folders")
    if not is_folder or data.root is None:
        what = "has no root" if is_folder else "is no image folder"
        raise Refusal(
            f"data set {data.name!r} {what}: pack takes data=imagenet or data=folder with "
            "data.root=FOLDER, which holds train/<class>/ and val/<class>/ of images."
        )
    root = Path(data.root).expanduser()

    from mixerbench.config.sources import is_packed
    from mixerbench.data.packing.processes import usable_cores
    from mixerbench.data.packing.settings import Packing
    from mixerbench.data.packing.writing import pack
    from mixerbench.data.source import open_images

    how = {key: value for key, value in own.items() if key not in ("out", "jobs")}
    packing = Packing(**how)
    if is_packed(root):
        raise Refusal(f"{root} is packed already: give the image folder, data.root=FOLDER.")
    protocol.recipe.batch.size = 1  # no batch has to be filled
    splits = open_images(protocol)
    with _Bar("images") as bar:
        packed = pack(
            splits, root, own["out"], packing, data.exif_orientation,
            own.get("jobs") or usable_cores(), bar.show,
        )  # fmt: skip
    return _summary(packed, own["out"], packing.description)


def verify_folder(arguments: Sequence[str]) -> str:
    """Read every byte of ``out=FOLDER`` and compare checksums; returns that all are right.

    Raises:
        Refusal: it is no packed data set.
        TrainingStopped: some are not, and which.
    """
    own, given = _read(arguments)
    others = [*given, *(f"{key}=..." for key in own if key not in ("out", "jobs"))]
    if others:
        raise Refusal(f"pack --verify takes out=FOLDER and jobs=N, not {others[0]!r}.")

    from mixerbench.data.packing.processes import usable_cores
    from mixerbench.data.packing.verifying import verify

    out = own["out"]
    with _Bar("MiB", 2**20) as bar:
        files, damaged = verify(out, own.get("jobs") or usable_cores(), bar.show)
    if damaged:
        raise TrainingStopped(
            f"{len(damaged)} of {files} files in {out} are damaged: {', '.join(damaged)}. Remove "
            "them; the command that packed them writes them again."
        )
    return f"{out}: {files} files, all as they were written"


def _read(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The own settings with their values, and those of the data."""
    texts, others = split_arguments(arguments, _OWN)
    own = {key: _value(key, text) for key, text in texts.items()}
    for setting in others:
        key = key_of(setting)
        if key not in _DATA and not key.startswith(("data.", "protocol.data.")):
            raise Refusal(
                f"pack takes data=NAME, data.root=FOLDER, {'=..., '.join(_OWN)}=..., "
                f"not {setting!r}."
            )
    if "out" not in own:
        raise Refusal("pack needs out=FOLDER: the place of the packed data set.")
    return own, others


def _value(key: str, text: str) -> Any:
    if key == "out":
        return Path(text).expanduser()
    if key not in _NUMBERS:
        return text
    if text == "null":
        return None
    if not text.isdecimal() or not int(text):
        raise Refusal(f"{key}={text}: give a whole number above 0, or null.")
    return int(text)


def _summary(packed: "Packed", out: Path, description: str | None) -> str:
    lines = [
        f"{packed.images['train']:,} training and {packed.images['val']:,} validation images, "
        f"{packed.shards} shards of which {packed.new_shards} are new, "
        f"{packed.bytes / 2**30:,.2f} GiB: {out}"
    ]
    if packed.unreadable:
        lines.append(
            f"{len(packed.unreadable)} images could not be read, and the reasons are stored in "
            f"their place. The first is {packed.unreadable[0]}."
        )
    if description is None:
        lines.append("No pixel has changed: the protocol's fingerprint is that of the folder.")
    else:
        lines.append(
            f"The training images have changed ({description}), and so has the protocol's "
            "fingerprint; the validation images are the original files."
        )
    return "\n".join((*lines, f"Train with data.root={out} in the folder's place."))


@dataclass
class _Point:
    done: int
    seconds: float


class _Bar:
    """How much is done and how fast: a bar on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, unit: str, divisor: int = 1) -> None:
        console = Console(stderr=True)
        self._unit, self._divisor = unit, divisor
        self._bars = console.is_terminal
        self._start: _Point | None = None  # what was there before does not count as fast
        self._said = time.monotonic()
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[text]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._bars,
        )
        self._task = self._progress.add_task("", total=None, text="")

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = _Point(done, now)
            self._progress.start()  # a thread: not before the processes have been forked
        seconds = now - self._start.seconds
        speed = (done - self._start.done) / self._divisor / max(seconds, _SHOWN_SECONDS)
        count = f"{done // self._divisor:,}/{total // self._divisor:,} {self._unit}"
        text = f"{count}, {speed:,.0f} {self._unit}/s"
        self._progress.update(self._task, completed=done, total=total, text=text)
        if not self._bars and now - self._said >= _LINE_SECONDS:
            self._said = now
            left = (total - done) / self._divisor / speed if speed else 0.0
            print(f"{text}, {left / 60:,.0f} min left", file=sys.stderr, flush=True)
