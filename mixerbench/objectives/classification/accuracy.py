"""Accuracy on the validation images, and what the model said of each of them."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mixerbench.data.decode import UnreadableImageError
from mixerbench.data.images import Images
from mixerbench.objectives.evaluation import Answers
from mixerbench.objectives.objective import Evaluation
from mixerbench.tracking.keys import Hardest, Prediction

HARDEST_IMAGES: Final = 12
THUMBNAIL_PIXELS: Final = 48  # of the longer side: a leaderboard of 200 models holds some thousand


@dataclass(frozen=True)
class Accuracy(Evaluation):
    """Top-1 and top-5 in percent, the mean cross-entropy, and one entry per image."""

    targets: Tensor
    predicted: Tensor
    confidence: Tensor  # probability of the predicted class
    target_probability: Tensor
    in_top5: Tensor

    @classmethod
    def of(cls, answers: Answers) -> "Accuracy":
        """The accuracy of what a model has answered, judged by ``judge``."""
        judged = dict(answers.judged)
        scores = {
            "top1": _percent(judged["predicted"] == answers.targets),
            "top5": _percent(judged["in_top5"]),
            "loss": judged.pop("loss").double().mean().item(),
        }
        return cls(
            scores,
            answers.unreadable,
            answers.indices,
            answers.checksums,
            targets=answers.targets,
            **judged,
        )

    @property
    def top1(self) -> float:
        return self.scores["top1"]

    @property
    def top5(self) -> float:
        return self.scores["top5"]

    @property
    def loss(self) -> float:
        return self.scores["loss"]

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

        rows = self.target_probability.argsort(stable=True)[:HARDEST_IMAGES]
        numbers = self.indices[rows].tolist()
        targets, predicted = self.targets[rows].tolist(), self.predicted[rows].tolist()
        table = pa.table(
            {
                Hardest.IMAGE: [images.name(number) for number in numbers],
                Hardest.TARGET: targets,
                Hardest.TARGET_NAME: [images.classes[target] for target in targets],
                Hardest.TOP1: predicted,
                Hardest.TOP1_NAME: [images.classes[top1] for top1 in predicted],
                Hardest.TARGET_PROBABILITY: self.target_probability[rows].tolist(),
                Hardest.THUMBNAIL: [_thumbnail(images, number) for number in numbers],
            }
        )
        pq.write_table(table, path)


def judge(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What is kept of the answer to each image: the columns of `Accuracy`, and its loss.

    Args:
        logits: (B, classes), float32.
        targets: (B,), class indices.
    """
    probabilities = logits.softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return {
        "predicted": predicted,
        "confidence": confidence,
        "target_probability": probabilities.gather(1, targets[:, None])[:, 0],
        "in_top5": (best == targets[:, None]).any(dim=1),
        "loss": F.cross_entropy(logits, targets, reduction="none"),
    }


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
