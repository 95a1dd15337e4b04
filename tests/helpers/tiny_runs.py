"""Runs of milliseconds: 64 random images of 16 x 16 pixels, one block of 16 channels."""

from pathlib import Path

from mixerbench.tracking.journal import FILE_NAME, read

DATA = [
    "data=synthetic", "data.train_images=64", "data.val_images=24", "data.num_classes=4",
    "protocol.image_size=16",
]  # fmt: skip
MODEL = ["size.depth=1", "size.dim=16", "size.num_heads=2"]


def losses(folder: Path) -> list[float]:
    """The training losses that a run's journal has, in their order."""
    records = [r["values"] for r, _ in read(folder / FILE_NAME) if r["kind"] == "metrics"]
    return [values["train/loss"] for values in records if "train/loss" in values]
