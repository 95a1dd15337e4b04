"""What must not go on: weights that are no numbers, other pixels than before, unreadable images."""

from pathlib import Path

import torch
from torch import nn

from mixerbench.data.corrupt import CorruptImages, TooManyCorruptError
from mixerbench.data.decode import printable
from mixerbench.data.images import Images
from mixerbench.data.loader import UNREADABLE
from mixerbench.errors import TrainingStopped
from mixerbench.objectives import Evaluation
from mixerbench.tracking.keys import Artifact
from mixerbench.training.group import Group
from mixerbench.training.parallel import local_part
from mixerbench.training.state import TrainingState


def check_pixels(
    state: TrainingState, evaluation: Evaluation, images: Images, folder: Path
) -> None:
    """Compare the validation images with those of earlier evaluations of this run.

    Raises:
        TrainingStopped: one has other pixels now.
    """
    checksums = torch.full((len(images.targets),), UNREADABLE, dtype=torch.int64)
    checksums[evaluation.indices] = evaluation.checksums
    known = state.val_checksums if len(state.val_checksums) else checksums
    changed = (checksums != known) & (checksums != UNREADABLE) & (known != UNREADABLE)
    if changed.any():
        name = printable(images.name(int(changed.int().argmax())))
        others = int(changed.sum()) - 1
        raise TrainingStopped(
            f"validation image {name}{f' and {others} others have' if others else ' has'} other "
            "pixels than in this run's evaluation before: the file was replaced, or other versions "
            f"of libraries decode it. Put back what was there and continue with run.resume={folder}"
            ", or start a new run."
        )
    state.val_checksums = torch.where(checksums == UNREADABLE, known, checksums)


def check_weights(model: nn.Module, step: int, saved: Path | None, group: Group) -> None:
    """Look at the weights before they are saved: a bad gradient spoils them after a good loss.

    Raises:
        TrainingStopped: some are infinite or no numbers.
    """
    finite = torch.stack([local_part(p.detach()).isfinite().all() for p in model.parameters()])
    if group.largest(int(not finite.all())):
        raise TrainingStopped(
            f"weights became infinite or no numbers by step {step}. {advice(saved)}"
        )


def check_corrupt(corrupt: CorruptImages, folder: Path, group: Group) -> None:
    """Raises TrainingStopped, and lists them, if too many images cannot be read."""
    try:
        corrupt.check()
    except TooManyCorruptError as error:
        raise too_many(error, corrupt, folder, group) from None


def too_many(
    error: TooManyCorruptError, corrupt: CorruptImages, folder: Path, group: Group
) -> TrainingStopped:
    """What to raise instead of ``error``, once all images that cannot be read are listed."""
    path = folder / Artifact.CORRUPT
    if group.is_first:
        path.write_text(corrupt.report(), encoding="utf-8")
    return TrainingStopped(f"{error} All of them are in {path}.")


def advice(saved: Path | None) -> str:
    """What to do about numbers that have become infinite, or none."""
    return (
        f"Last good checkpoint: {saved or 'none yet'}. Lower the learning rate "
        "(protocol.recipe.optimizer.lr), or use run.precision=fp32."
    )
