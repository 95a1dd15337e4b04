"""Optimizer, learning rate, and the moving averages of weights and of batch statistics."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixerbench.config.schema import Recipe


def peak_lr(recipe: Recipe) -> float:
    """The learning rate after warm-up, scaled to the batch where the recipe scales it."""
    optimizer = recipe.optimizer
    if optimizer.lr_batch_size is None:
        return optimizer.lr
    return optimizer.lr * recipe.batch.size / optimizer.lr_batch_size


def create_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer over the recipe's groups; what the recipe leaves null is not passed."""
    settings = recipe.optimizer
    options = {
        "betas": None if settings.betas is None else tuple(settings.betas),
        "eps": settings.eps,
        "momentum": settings.momentum,
        # The same update, 3.9x faster on a CPU.
        "fused": True if settings.name == "adamw" else None,
    }
    return create_optimizer_v2(
        _parameter_groups(recipe, model),
        opt=settings.name,
        lr=peak_lr(recipe),
        weight_decay=0.0,  # a default that no group takes: each says its own
        **{name: value for name, value in options.items() if value is not None},
    )


def _parameter_groups(recipe: Recipe, model: nn.Module) -> list[dict[str, Any]]:
    """timm's groups: not decayed (1-D, biases, ``no_weight_decay()``), then decayed.

    Where the recipe says so, the decayed ``offset_parameters()`` of the model follow as a
    third group with a learning rate of its own. It is no ``lr_scale`` of timm's, which would
    scale the ends of the schedule too: in LIT's code all groups share these.
    """
    settings = recipe.optimizer
    groups: list[dict[str, Any]] = param_groups_weight_decay(
        model,
        settings.weight_decay,
        no_weight_decay_list=getattr(model, "no_weight_decay", set)(),
    )
    names: set[str] = getattr(model, "offset_parameters", set)()
    if settings.offset_lr_scale == 1.0 or not names:
        return groups
    offsets = {id(p) for p in map(model.get_parameter, names) if p.ndim > 1}  # no biases
    *others, decayed = groups  # without weight decay this is the only group, of all parameters
    rest = [p for p in decayed["params"] if id(p) not in offsets]
    slow = [p for p in decayed["params"] if id(p) in offsets]
    rate = peak_lr(recipe) * settings.offset_lr_scale
    return [*others, {**decayed, "params": rest}, {**decayed, "params": slow, "lr": rate}]


class LearningRate:
    """Warm-up and cosine, one value per epoch or per step, a function of the step alone.

    Published loops step their scheduler *after* an epoch (DeiT) or after an optimizer step
    (LIT) with that one's number, so the first two share the first value and every later one
    runs one behind timm's own training script.
    """

    def __init__(
        self, recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> None:
        schedule = recipe.schedule
        values_per_epoch = {"epoch": 1, "step": steps_per_epoch}[schedule.interval]
        self._optimizer = optimizer
        self._steps_per_value = steps_per_epoch // values_per_epoch
        # timm calls them epochs; they are the values of the schedule, whatever these last.
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=recipe.epochs * values_per_epoch,
            warmup_epochs=schedule.warmup_epochs * values_per_epoch,
            warmup_lr=schedule.warmup_lr,
            min_lr=schedule.min_lr,
            warmup_prefix=False,
            cooldown_epochs=0,  # DeiT parses 10 and does not run them
        )

    def set(self, step: int) -> float:
        """Set the rates of optimizer step ``step`` (from 0); returns that of the first group."""
        self._scheduler.step(max(step // self._steps_per_value - 1, 0))
        return float(self._optimizer.param_groups[0]["lr"])


def set_batch_norm_momentum(recipe: Recipe, model: nn.Module) -> None:
    """Let every BatchNorm take the recipe's share of a micro-batch into its statistics.

    One forward pass is one update, so a step of several virtual ranks updates several times.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = recipe.batch_norm_momentum


def create_ema(recipe: Recipe, model: nn.Module) -> ModelEmaV3:
    """The moving average of weights and buffers, updated after every step at a fixed decay."""
    return ModelEmaV3(model, decay=recipe.ema.decay)
