"""What every objective has to say; knows no torch."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from mixerbench.errors import Refusal
from mixerbench.tracking.figures import Figure

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mixerbench.config.schema import Recipe
    from mixerbench.data.corrupt import CorruptImages
    from mixerbench.data.images import Images
    from mixerbench.data.loader import EvalBatch

Outputs: TypeAlias = "Tensor | tuple[Tensor, Tensor]"
"""What a model answers: logits (B, classes), or those of class and distillation token."""

Gather: TypeAlias = "Callable[[list[Tensor]], list[list[Tensor]]]"
"""From this process's tensors to those of all processes, in the order of their ranks."""


class EvaluationError(Refusal):
    """There is nothing to report: no image, or a model that does not answer with numbers."""


@dataclass(frozen=True)
class Score:
    """One number that an evaluation gives, and the metrics that it is logged as."""

    name: str
    header: str  # as people read it
    unit: str  # "": none
    format: str  # of Python, without the unit
    val: str  # metric of the weights, at each evaluation
    ema: str  # of their moving average
    final: str  # of the last weights, once
    final_ema: str | None = None  # None: not logged

    @classmethod
    def of(cls, figure: Figure, name: str, val: str, ema: str, final_ema: str) -> "Score":
        """The score whose final value is one of the figures that results are compared by."""
        shown = (figure.header, figure.unit, figure.format)
        return cls(name, *shown, val, ema, figure.key, final_ema)

    def number(self, value: float, digits: int | None = None) -> str:
        """``93.20 %``

        Args:
            digits: after the point, where another number of them is wanted than usual.
        """
        text = format(value, self.format if digits is None else f".{digits}f")
        return f"{text} {self.unit}" if self.unit else text

    def text(self, value: float) -> str:
        """``top-1 93.20 %``"""
        return f"{self.header} {self.number(value)}"


@dataclass(frozen=True)
class Evaluation(ABC):
    """What an objective says of a model on the validation images that could be read."""

    scores: Mapping[str, float]  # by the names of the objective's scores
    unreadable: "Tensor"  # indices of the images that are left out: they could not be read
    indices: "Tensor"  # of those that count, in the order of the data set
    checksums: "Tensor"  # CRC-32 of their decoded pixels

    @property
    def counted(self) -> str:
        """How many images the scores are of, and how many could not be read."""
        missing = len(self.unreadable)
        return f"{len(self.indices)} images" + (
            f" without {missing} that could not be read" if missing else ""
        )

    def pixels(self, images: "Images") -> str | None:
        """16 hex digits of all images' names and pixels; None if one could not be read."""
        if len(self.unreadable):
            return None
        sha = hashlib.sha256()
        for index, checksum in zip(self.indices.tolist(), self.checksums.tolist(), strict=True):
            sha.update(f"{images.name(index)}\0{checksum}\n".encode(errors="surrogateescape"))
        return sha.hexdigest()[:16]

    @abstractmethod
    def write_predictions(self, path: Path, images: "Images") -> None:
        """Write what the model said of each image as Parquet, in the order of the data set."""

    @abstractmethod
    def write_hardest(self, path: Path, images: "Images") -> None:
        """Write the images that the model was most wrong about as Parquet, with thumbnails."""


class Objective(ABC):
    """What a run optimises and how its model is judged."""

    name: ClassVar[str]
    scores: ClassVar[tuple[Score, ...]]
    headline: ClassVar[Score]
    """The score that results are compared by; the larger the better."""
    best: ClassVar[str]
    """The metric that holds the largest headline score of all evaluations of a run."""

    @abstractmethod
    def chance(self, num_classes: int) -> float:
        """The expected headline score of a model that guesses."""

    @abstractmethod
    def create_teacher(self, recipe: "Recipe", num_classes: int) -> "nn.Module | None":
        """The frozen model that the recipe distils from; None where it distils from none.

        Raises:
            Refusal: there is no such model, or it does not fit the classes.
        """

    @abstractmethod
    def create_loss(self, recipe: "Recipe", teacher: "nn.Module | None") -> "nn.Module":
        """The loss of (images, outputs of the model, targets), averaged over a micro-batch."""

    @abstractmethod
    def evaluate(
        self,
        model: "nn.Module",
        loader: "Iterable[EvalBatch]",
        device: "torch.device",
        precision: str,
        *,
        gather: "Gather | None" = None,
        between_batches: Callable[[], None] = lambda: None,
        corrupt: "CorruptImages | None" = None,
    ) -> Evaluation:
        """Run all images through ``model`` in evaluation mode.

        Args:
            loader: this process's share of the images, on ``device``.
            gather: gives every process the results of all; None where there is only this one.
            between_batches: called after each batch; what it raises passes through.
            corrupt: is given the images that could not be read.

        Raises:
            TooManyCorruptError: ``corrupt`` finds that too many could not be read.
            EvaluationError: no image can be read, or outputs are infinite or no numbers.
        """

    def summary(self, evaluation: Evaluation, average: Evaluation | None = None) -> str:
        """All scores in one line: ``top-1 93.20 %, top-5 99.10 %, loss 0.2511, 540 images``.

        Args:
            average: of the moving average of the weights; with it, the line leaves out the
                scores that a run does not log of it, and gives the average's headline score.
        """
        parts = []
        for score in self.scores:
            text = score.text(evaluation.scores[score.name])
            if average is None:
                parts.append(text)
            elif score is self.headline:
                ema = score.number(average.scores[score.name])
                parts.append(f"{text} (EMA {ema})")
            elif score.final_ema is not None:
                parts.append(text)
        return ", ".join([*parts, evaluation.counted])
