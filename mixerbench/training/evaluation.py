"""Accuracy on the validation images, and what the model said of each of them."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.data.corrupt import CorruptImages
from mixerbench.data.decode import UnreadableImageError
from mixerbench.data.images import Images
from mixerbench.data.loader import UNREADABLE, EvalBatch
from mixerbench.devices import autocast
from mixerbench.errors import Refusal
from mixerbench.tracking.keys import Hardest, Prediction
from mixerbench.training.group import ALONE, Group

HARDEST_IMAGES: Final = 12
THUMBNAIL_PIXELS: Final = 48  # of the longer side: a leaderboard of 200 models holds some thousand


class EvaluationError(Refusal):
    """There is nothing to report: no image, or a model that does not answer with numbers."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent, the mean cross-entropy, and one entry per image that was read."""

    top1: float
    top5: float
    loss: float
    unreadable: Tensor  # indices of images that are left out: they could not be read
    indices: Tensor
    checksums: Tensor  # CRC-32 of the decoded pixels
    targets: Tensor
    predicted: Tensor
    confidence: Tensor
    target_probability: Tensor
    in_top5: Tensor

    @property
    def counted(self) -> str:
        """Of how many images the accuracies are, and how many could not be read."""
        missing = len(self.unreadable)
        return f"{len(self.targets)} images" + (
            f" without {missing} that could not be read" if missing else ""
        )

    def pixels(self, images: Images) -> str | None:
        """16 hex digits of all images' names and pixels; None if one could not be read."""
        if len(self.unreadable):
            return None
        sha = hashlib.sha256()
        for index, checksum in zip(self.indices.tolist(), self.checksums.tolist(), strict=True):
            sha.update(f"{images.name(index)}\0{checksum}\n".encode(errors="surrogateescape"))
        return sha.hexdigest()[:16]

    def write_predictions(self, path: Path, images: Images) -> None:
        """Write ``keys.Prediction``'s columns as Parquet, in the order of the data set."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(
            {
                Prediction.IMAGE: [images.name(index) for index in self.indices.tolist()],
                Prediction.TARGET: self.targets.numpy(),
                Prediction.TOP1: self.predicted.numpy(),
                Prediction.CONFIDENCE: self.confidence.numpy(),
                Prediction.TARGET_PROBABILITY: self.target_probability.numpy(),
                Prediction.IN_TOP5: self.in_top5.numpy(),
                Prediction.CHECKSUM: self.checksums.numpy(),
            }
        )
        pq.write_table(table, path)

    def write_hardest(self, path: Path, images: Images) -> None:
        """Write ``keys.Hardest``'s columns as Parquet: the images least believed to be right.

        An image that cannot be read has no thumbnail.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        places = self.target_probability.argsort(stable=True)[:HARDEST_IMAGES].tolist()
        targets, predicted = self.targets[places].tolist(), self.predicted[places].tolist()
        table = pa.table(
            {
                Hardest.IMAGE: [images.name(int(self.indices[place])) for place in places],
                Hardest.TARGET: targets,
                Hardest.TARGET_NAME: [images.classes[target] for target in targets],
                Hardest.TOP1: predicted,
                Hardest.TOP1_NAME: [images.classes[top1] for top1 in predicted],
                Hardest.TARGET_PROBABILITY: self.target_probability[places].tolist(),
                Hardest.THUMBNAIL: [_thumbnail(images, int(self.indices[p])) for p in places],
            }
        )
        pq.write_table(table, path)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[EvalBatch],
    device: torch.device,
    precision: str,
    group: Group = ALONE,
    between_batches: Callable[[], None] = lambda: None,
    corrupt: CorruptImages | None = None,
) -> Evaluation:
    """Run all images through ``model`` in evaluation mode.

    Args:
        loader: this process's share of the images, on ``device``.
        group: the processes that have the others; all get the whole result.
        between_batches: called after each batch; what it raises passes through.
        corrupt: told of the images that could not be read.

    Raises:
        TooManyCorruptError: ``corrupt`` finds that too many could not be read.
        EvaluationError: no image can be read, or logits are infinite or no numbers.
    """
    was_training = model.training
    model.eval()
    columns: list[tuple[Tensor, ...]] = []
    for images, targets, indices, checksums in loader:
        # A model that trains compiled would be compiled again, for each size of a batch.
        with torch.compiler.set_stance("force_eager"), autocast(device, precision):
            logits = model(images)
        logits = logits.float()
        probabilities = logits.softmax(dim=1)
        confidence, predicted = probabilities.max(dim=1)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        columns.append(
            (
                indices,
                checksums,
                logits.isfinite().all(dim=1),
                targets,
                predicted,
                confidence,
                probabilities.gather(1, targets[:, None])[:, 0],
                (best == targets[:, None]).any(dim=1),
                F.cross_entropy(logits, targets, reduction="none"),
            )
        )
        between_batches()
    model.train(was_training)
    own = [torch.cat(column).cpu() for column in zip(*columns, strict=True)]
    everybodys = [torch.cat(column) for column in zip(*group.gather(own), strict=True)]
    indices, first = _first_of_each(everybodys[0])
    readable = everybodys[1][first] != UNREADABLE
    if corrupt is not None:
        corrupt.merge(indices[~readable].tolist())
        corrupt.check()
    if not readable.any():
        raise EvaluationError(
            f"none of {len(indices)} validation images can be read: there is no accuracy."
        )
    checksums, finite, targets, predicted, confidence, probability, in_top5, losses = (
        column[first[readable]] for column in everybodys[1:]
    )
    if not finite.all():
        raise EvaluationError(
            f"the model's answers to {int((~finite).sum())} of {len(finite)} validation images "
            "are infinite or no numbers: there is no accuracy."
        )
    return Evaluation(
        top1=_percent(predicted == targets),
        top5=_percent(in_top5),
        loss=losses.double().mean().item(),
        unreadable=indices[~readable],
        indices=indices[readable],
        checksums=checksums,
        targets=targets,
        predicted=predicted,
        confidence=confidence,
        target_probability=probability,
        in_top5=in_top5,
    )


def _first_of_each(indices: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values, sorted, and where each stands: a batch may have come twice."""
    order = indices.argsort(stable=True)
    values = indices[order]
    new = torch.ones_like(values, dtype=torch.bool)
    new[1:] = values[1:] != values[:-1]
    return values[new], order[new]


def _percent(correct: Tensor) -> float:
    return 100.0 * correct.double().mean().item()


def _thumbnail(images: Images, index: int) -> bytes | None:
    try:
        image = Image.fromarray(images.load(index))
    except UnreadableImageError:
        return None
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    file = BytesIO()
    image.quantize(64).save(file, "PNG", optimize=True)  # a third of the bytes
    return file.getvalue()
