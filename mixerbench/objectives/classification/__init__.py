"""Images into classes; judged by the share of them whose class is the most probable one.

Knows no torch: the loss, its teacher and the evaluation are loaded when they are asked for.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mixerbench.objectives.objective import Evaluation, Gather, Objective, Score
from mixerbench.tracking.figures import BY_KEY
from mixerbench.tracking.keys import Metric

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mixerbench.config.schema import Recipe
    from mixerbench.data.corrupt import CorruptImages
    from mixerbench.data.loader import EvalBatch

# fmt: off
TOP1 = Score.of(BY_KEY[Metric.FINAL_TOP1], "top1",
                Metric.VAL_TOP1, Metric.EMA_TOP1, Metric.FINAL_EMA_TOP1)
TOP5 = Score.of(BY_KEY[Metric.FINAL_TOP5], "top5",
                Metric.VAL_TOP5, Metric.EMA_TOP5, Metric.FINAL_EMA_TOP5)
LOSS = Score("loss", "loss", "", ".4f", Metric.VAL_LOSS, Metric.EMA_LOSS, Metric.FINAL_LOSS)
# fmt: on


class Classification(Objective):
    """Cross-entropy in the recipe's form, DeiT's distillation, top-1 and top-5 accuracy in %."""

    name = "classification"
    scores = (TOP1, TOP5, LOSS)
    headline = TOP1
    best = Metric.BEST_TOP1

    def chance(self, num_classes: int) -> float:
        return 100 / num_classes

    def create_teacher(self, recipe: "Recipe", num_classes: int) -> "nn.Module | None":
        from mixerbench.objectives.classification.teacher import create_teacher

        return create_teacher(recipe.distillation, num_classes)

    def create_loss(self, recipe: "Recipe", teacher: "nn.Module | None") -> "nn.Module":
        from mixerbench.objectives.classification import loss

        return loss.DistillationLoss(loss.create_loss(recipe), teacher, recipe.distillation)

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
        from mixerbench.objectives.classification.accuracy import Accuracy, judge
        from mixerbench.objectives.evaluation import answers_of

        return Accuracy.of(
            answers_of(model, loader, device, precision, judge, gather, between_batches, corrupt)
        )
