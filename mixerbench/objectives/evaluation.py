"""All validation images through a model, whatever is asked of its answers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixerbench.data.corrupt import CorruptImages
from mixerbench.data.loader import UNREADABLE, EvalBatch
from mixerbench.devices import autocast
from mixerbench.objectives.objective import EvaluationError, Gather

Judge = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""From outputs (B, ...) in float32 and targets (B,) to one number per image each, by name."""


@dataclass(frozen=True)
class Answers:
    """One entry for each image that could be read, in the order of the data set; on the CPU."""

    indices: Tensor
    checksums: Tensor  # CRC-32 of the decoded pixels
    targets: Tensor
    judged: dict[str, Tensor]
    unreadable: Tensor  # indices of the other images


@torch.inference_mode()
def answers_of(
    model: nn.Module,
    loader: Iterable[EvalBatch],
    device: torch.device,
    precision: str,
    judge: Judge,
    gather: "Gather | None",
    between_batches: Callable[[], None],
    corrupt: CorruptImages | None,
) -> Answers:
    """Run all images through ``model`` in evaluation mode; arguments as of `Objective.evaluate`.

    Args:
        judge: called with each batch's outputs and targets, on ``device``.

    Raises:
        TooManyCorruptError, EvaluationError: as `Objective.evaluate`.
    """
    was_training = model.training
    model.eval()
    names: list[str] = []
    batches: list[tuple[Tensor, ...]] = []
    for images, targets, indices, checksums in loader:
        # A model that trains compiled would be compiled again, for each size of a batch.
        with torch.compiler.set_stance("force_eager"), autocast(device, precision):
            outputs = model(images)
        outputs = outputs.float()
        judged = judge(outputs, targets)
        names = list(judged)
        finite = outputs.isfinite().flatten(1).all(dim=1)
        batches.append((indices, checksums, finite, targets, *judged.values()))
        between_batches()
    model.train(was_training)
    own = [torch.cat(column).cpu() for column in zip(*batches, strict=True)]
    of_all = [own] if gather is None else gather(own)
    columns = [torch.cat(column) for column in zip(*of_all, strict=True)]
    indices, first = _first_of_each(columns[0])
    readable = columns[1][first] != UNREADABLE
    if corrupt is not None:
        corrupt.merge(indices[~readable].tolist())
        corrupt.check()
    if not readable.any():
        raise EvaluationError(
            f"none of {len(indices)} validation images can be read: there is no accuracy."
        )
    checksums, finite, targets, *rest = (column[first[readable]] for column in columns[1:])
    if not finite.all():
        raise EvaluationError(
            f"the model's answers to {int((~finite).sum())} of {len(finite)} validation images "
            "are infinite or no numbers: there is no accuracy."
        )
    by_name = dict(zip(names, rest, strict=True))
    return Answers(indices[readable], checksums, targets, by_name, indices[~readable])


def _first_of_each(indices: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values, sorted, and the position of each: a batch may have come twice."""
    order = indices.argsort(stable=True)
    values = indices[order]
    new = torch.ones_like(values, dtype=torch.bool)
    new[1:] = values[1:] != values[:-1]
    return values[new], order[new]
