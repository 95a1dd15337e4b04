"""What a finished run keeps: predictions, weights, measurements, and a summary."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixerbench.config.schema import Settings
from mixerbench.files import to_disk
from mixerbench.measure.model_costs import measure_model
from mixerbench.models.build import build_model
from mixerbench.objectives import objective_of
from mixerbench.tracking.journal import Journal
from mixerbench.tracking.keys import Artifact, Metric, Tag
from mixerbench.tracking.measurements import measured
from mixerbench.training import checkpoint
from mixerbench.training.folder import header_of
from mixerbench.training.prepare import Prepared
from mixerbench.training.trainer import Result


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    folder: Path
    result: Result | None  # None: it came there before, and only its upload was left

    def summary(self, settings: Settings) -> str:
        """What a person wants to know of it, in three lines."""
        if self.result is None:
            return (
                f"{settings.label}, seed {settings.run.seed}: was finished before, and nothing is "
                f"trained; run.resume=never trains it again\n{self.folder}"
            )
        objective = objective_of(settings.protocol)
        return (
            f"{settings.label}, seed {settings.run.seed}: "
            f"{objective.summary(self.result.final, self.result.final_ema)}\n"
            f"{self.folder}\n'mixerbench leaderboard' compares it with other runs."
        )


def keep(
    prepared: Prepared,
    result: Result,
    weights: Mapping[str, Mapping[str, Tensor]],
    folder: Path,
    journal: Journal,
) -> None:
    """Write the predictions, the final weights, and what could not be read.

    Args:
        weights: state dicts, by the names of their files.
    """
    settings, val = prepared.settings, prepared.splits.val
    result.final.write_predictions(folder / Artifact.PREDICTIONS, val)
    result.final.write_hardest(folder / Artifact.HARDEST, val)
    to_disk(folder / Artifact.PREDICTIONS, folder / Artifact.HARDEST)
    for name in (Artifact.PREDICTIONS, Artifact.HARDEST):
        journal.artifact(folder / name)
    pixels = result.final.pixels(val)
    if pixels is not None:
        journal.tags({Tag.VAL_PIXELS: pixels})
    for name, tensors in weights.items():
        checkpoint.save(folder / name, tensors, header_of(settings))
        if settings.tracking.upload_weights:
            journal.artifact(folder / name)
    corrupt = sum(len(split.indices) for split in result.corrupt)
    if corrupt:
        report = "".join(split.report() for split in result.corrupt)
        (folder / Artifact.CORRUPT).write_text(report, encoding="utf-8")
        journal.artifact(folder / Artifact.CORRUPT)
    journal.metrics(0, {Metric.CORRUPT_IMAGES: corrupt})


def measure(
    prepared: Prepared, weights: Mapping[str, Tensor], device: torch.device, journal: Journal
) -> None:
    """Measure the trained model on ``device``, and write down what it costs."""
    settings = prepared.settings
    model = build_model(settings, len(prepared.splits.train.classes))
    model.load_state_dict(weights)
    measures = measure_model(
        model.to(device),
        settings.protocol.image_size,
        num_classes=int(settings.protocol.data.num_classes or 0),
        batch_size=settings.run.measure_batch_size,
        seconds=settings.run.measure_seconds,
        precision=settings.run.precision,
        device=device,
        macs=prepared.macs,
    )
    journal.metrics(0, measured(measures))
