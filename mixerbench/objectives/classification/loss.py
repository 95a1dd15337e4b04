"""Losses of classification, and distillation around them."""

import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.config.schema import Distillation, Recipe
from mixerbench.objectives.objective import Outputs


def create_loss(recipe: Recipe) -> nn.Module:
    """The recipe's loss of (logits, targets), averaged over images.

    Targets are (B, classes) where mixup is on, which then holds the label smoothing,
    else class indices (B,).
    """
    mixed = bool(recipe.mixup.mixup or recipe.mixup.cutmix)
    smoothing = recipe.loss.label_smoothing
    if recipe.loss.name == "binary_cross_entropy":
        # DeiT III calls every class that is in the mixture at all a target.
        return BinaryCrossEntropy(smoothing=smoothing, target_threshold=0.0 if mixed else None)
    if mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()


class DistillationLoss(nn.Module):
    """The base loss, and the distance to a teacher's answer (DeiT, section 4).

    ``(1 - alpha) base + alpha teacher``: hard, cross-entropy with the class that the teacher
    chooses; soft, the Kullback-Leibler divergence at temperature tau, times tau² and per
    logit, as DeiT's losses.py divides. Without a teacher it is the base loss.
    """

    def __init__(
        self, base: nn.Module, teacher: nn.Module | None, distillation: Distillation
    ) -> None:
        super().__init__()
        self.base = base
        self.teacher = teacher
        self.distillation = distillation

    def forward(self, images: Tensor, logits: Outputs, targets: Tensor) -> Tensor:
        """
        Args:
            images: what the model saw, mixed; the teacher sees the same.
            logits: (B, classes), or those of the class and of the distillation token. A
                model without the token learns from teacher and labels with the same logits.
        """
        logits, distilled = logits if isinstance(logits, tuple) else (logits, logits)
        base: Tensor = self.base(logits, targets)
        if self.teacher is None:
            return base
        with torch.no_grad():
            answer = self.teacher(images)
        alpha, tau = self.distillation.alpha, self.distillation.tau
        if self.distillation.kind == "hard":
            distance = F.cross_entropy(distilled, answer.argmax(dim=1))
        else:
            distance = F.kl_div(
                F.log_softmax(distilled / tau, dim=1),
                F.log_softmax(answer / tau, dim=1),
                reduction="sum",
                log_target=True,
            ) * (tau * tau / distilled.numel())
        return (1.0 - alpha) * base + alpha * distance
