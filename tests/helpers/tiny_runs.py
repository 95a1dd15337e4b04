"""Runs of milliseconds: 64 random images of 16 x 16 pixels, one block of 16 channels."""

from pathlib import Path

from mixerbench.tracking.journal import FILE_NAME, read

DATA = [
    "data=synthetic", "data.train_images=64", "data.val_images=24", "data.num_classes=4",
    "protocol.image_size=16",
]  # fmt: skip
MODEL = ["size.depth=1", "size.dim=16", "size.num_heads=2"]
RECIPE = ["recipe.epochs=3", "recipe.batch.size=16", "recipe.batch.micro_batch_size=8",
          "recipe.augmentation.repeats=2", "recipe.mixup.prob=1", "recipe.ema.decay=0.9",
          "recipe.regularization.drop_path=0.2",
          "recipe.regularization.drop_path_schedule=constant", "recipe.optimizer.lr=2e-3",
          "recipe.schedule.warmup_lr=1e-3", "recipe.schedule.warmup_epochs=1"]  # fmt: skip
RUN = ["tracking.offline=true", "run.measure=false", "run.progress=false", "run.log_every_steps=1",
       "run.device=cpu"]  # fmt: skip


def losses(folder: Path) -> list[float]:
    """The training losses that a run's journal has, in their order."""
    records = [r["values"] for r, _ in read(folder / FILE_NAME) if r["kind"] == "metrics"]
    return [values["train/loss"] for values in records if "train/loss" in values]
