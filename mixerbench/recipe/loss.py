"""Losses, and distillation around them."""

import textwrap

import timm
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.config.schema import Distillation, Recipe
from mixerbench.errors import Refusal
from mixerbench.models.weights import check_numbers

Logits = Tensor | tuple[Tensor, Tensor]


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

    def forward(self, images: Tensor, logits: Logits, targets: Tensor) -> Tensor:
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


def create_teacher(distillation: Distillation, num_classes: int) -> nn.Module | None:
    """The frozen teacher, any timm model, or None where the recipe has none.

    Raises:
        Refusal: no such timm model, weights that do not fit it, or a classifier for other
            classes.
    """
    if distillation.kind == "none":
        return None
    name, path = distillation.teacher, distillation.teacher_checkpoint
    if not timm.is_model(name):
        raise Refusal(f"teacher {name!r} is not a timm model: see timm.list_models().")
    published = timm.get_pretrained_cfg_value(name, "num_classes")
    if path is None and published is not None and published != num_classes:
        # timm would leave the published classifier out, and put a random one in its place.
        raise Refusal(
            f"teacher {name!r}: its pretrained weights tell {published} classes apart and the data "
            f"has {num_classes}. Train a teacher on this data and give its file, "
            "recipe.distillation.teacher_checkpoint=FILE."
        )
    try:
        teacher = timm.create_model(name, pretrained=path is None, num_classes=num_classes)
        if path is not None:  # DeiT takes the teacher's weights, not their moving average
            weights = load_state_dict(path, use_ema=False, weights_only=True)
            check_numbers(weights, teacher.state_dict())
            teacher.load_state_dict(weights)
        else:
            check_numbers(teacher.state_dict(), teacher.state_dict())
    except Exception as error:  # of the file system, pickle, safetensors, torch or timm
        reason = textwrap.shorten(str(error) or type(error).__name__, 400, placeholder=" ...")
        raise Refusal(
            f"teacher {name!r}: cannot load {path or 'its pretrained weights'} for {num_classes} "
            f"classes: {reason}"
        ) from None
    return teacher.eval().requires_grad_(False)
