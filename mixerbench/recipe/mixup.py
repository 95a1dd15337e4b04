"""Mixup and CutMix of a micro-batch, with soft targets."""

import numpy as np
from timm.data import mixup as timm_mixup
from torch import Tensor

from mixerbench.config.schema import Recipe


class DeiTMixup(timm_mixup.Mixup):  # type: ignore[misc]
    """timm's Mixup with CutMix's box as DeiT had it.

    The box reaches ``cut // 2`` pixels to every side, as in CutMix's own code and in the
    timm 0.3.2 that DeiT used; timm has since made odd boxes one pixel wider.
    Draws come from NumPy's global generator.
    """

    def _mix_batch(self, x: Tensor) -> float:
        lam, use_cutmix = self._params_per_batch()
        if lam == 1.0 or not use_cutmix:
            return _mix(x, lam)
        height, width = x.shape[-2:]
        (top, bottom, left, right), lam = cutmix_box(height, width, lam)
        x[:, :, top:bottom, left:right] = x.flip(0)[:, :, top:bottom, left:right]
        return lam


def create_mixup(recipe: Recipe, num_classes: int) -> DeiTMixup | None:
    """The recipe's mixup, or None where it has none.

    Calling it changes images (B, 3, H, W) in place and returns them with targets
    (B, classes), label smoothing included.
    """
    mixup = recipe.mixup
    if not (mixup.mixup or mixup.cutmix):
        return None
    return DeiTMixup(
        mixup_alpha=mixup.mixup,
        cutmix_alpha=mixup.cutmix,
        prob=mixup.prob,
        switch_prob=mixup.switch_prob,
        mode=mixup.mode,
        label_smoothing=recipe.loss.label_smoothing,
        num_classes=num_classes,
    )


def cutmix_box(height: int, width: int, lam: float) -> tuple[tuple[int, int, int, int], float]:
    """A box (top, bottom, left, right) of 1 - lam of the area, clipped, and the lam it gives.

    CutMix (arXiv:1905.04899), section 3.1.
    """
    cut = np.sqrt(1.0 - lam)
    cut_height, cut_width = int(height * cut), int(width * cut)
    row, column = np.random.randint(height), np.random.randint(width)
    top, bottom = np.clip([row - cut_height // 2, row + cut_height // 2], 0, height)
    left, right = np.clip([column - cut_width // 2, column + cut_width // 2], 0, width)
    area = (bottom - top) * (right - left)
    return (int(top), int(bottom), int(left), int(right)), float(1.0 - area / (height * width))


def _mix(x: Tensor, lam: float) -> float:
    if lam != 1.0:
        flipped = x.flip(0).mul_(1.0 - lam)
        x.mul_(lam).add_(flipped)
    return lam
