"""The recipes of the papers, run: each trains, goes on after a stop, and does what it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from mixerbench.config.schema import Settings
from mixerbench.models.backbone import Backbone
from mixerbench.training import trainer
from mixerbench.training.run import run_training

EPOCHS, STEPS = 3, 4  # of the tiny runs
NORMALISED = ["stem=conv", "size.dim=32"]  # a convolution stem has BatchNorm
RECIPES = {
    "lit": ["recipe=lit"],
    # Tiny runs mix images and drop paths; SASA's does neither.
    "sasa": ["recipe=sasa", "recipe.mixup.mixup=0", "recipe.mixup.cutmix=0",
             "recipe.regularization.drop_path=0", "recipe.schedule.warmup_lr=0",
             "recipe.optimizer.lr=0.1", "recipe.optimizer.lr_batch_size=null"],
}  # fmt: skip

Trained = Callable[..., Any]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name: str, trained: Trained) -> None:
    run = trained(*RECIPES[name], *NORMALISED)
    assert len(run.losses()) == EPOCHS * STEPS
    assert all(tensor.isfinite().all() for tensor in run.weights.values())
    assert run.losses()[-1] != run.losses()[0]


@pytest.mark.everything  # a long matrix
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns_digits(name: str, tiny: Callable[..., Settings]) -> None:
    settings = [*RECIPES[name], *NORMALISED, "data=digits", "data.train_images=null",
                "data.val_images=null", "data.num_classes=null", "recipe.batch.size=64",
                "recipe.batch.micro_batch_size=32", "recipe.epochs=5", "recipe.mixup.prob=0",
                "recipe.augmentation.auto_augment=null", "recipe.augmentation.scale=[0.6,1]",
                "recipe.batch_norm_momentum=0.1"]  # fmt: skip
    result = run_training(tiny(*settings)).result
    assert result.final.top1 > 30  # chance is 10


@pytest.mark.parametrize("name", RECIPES)
def test_a_stopped_run_of_steps_ends_as_if_it_had_not_stopped(
    name: str, trained: Trained, stopped: Callable[..., Path]
) -> None:
    settings = [*RECIPES[name], *NORMALISED]
    whole = trained(*settings)
    stopped("train/loss", STEPS + 2, *settings)
    resumed = trained(*settings, "run.resume=auto")
    assert resumed.curve("train/lr") == whole.curve("train/lr")
    assert all(torch.equal(resumed.weights[key], whole.weights[key]) for key in whole.weights)


def test_each_step_is_trained_with_its_own_rate(trained: Trained) -> None:
    run = trained("recipe=lit", "recipe.optimizer.lr=0.01", "recipe.optimizer.lr_batch_size=null",
                  "recipe.schedule.warmup_lr=0.002", "recipe.schedule.min_lr=0.001")  # fmt: skip
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=EPOCHS * STEPS,
        lr_min=0.001,
        warmup_t=STEPS,
        warmup_lr_init=0.002,
        t_in_epochs=False,
    )
    expected = []
    for step in range(EPOCHS * STEPS):
        expected.append((step + 1, optimizer.param_groups[0]["lr"]))
        scheduler.step_update(step)
    assert run.curve("train/lr") == expected


@pytest.mark.parametrize(
    "override",
    ["recipe.schedule.interval=epoch", "recipe.optimizer.clip_grad_norm=1e-3",
     "recipe.batch_norm_momentum=0.5"],
)  # fmt: skip
def test_a_setting_of_lits_recipe_changes_the_run(override: str, trained: Trained) -> None:
    settings = [*RECIPES["lit"], *NORMALISED, "recipe.epochs=2"]
    one, other = trained(*settings), trained(*settings, override)
    assert any(not torch.equal(one.weights[key], other.weights[key]) for key in one.weights)


def test_momentum_changes_a_run_of_sgd(trained: Trained) -> None:
    one, other = (
        trained(*RECIPES["sasa"], "recipe.epochs=2", f"recipe.optimizer.momentum={momentum}")
        for momentum in (0.9, 0.5)
    )
    assert one.losses()[:3] == other.losses()[:3]  # two steps at a rate of zero, then the first
    assert one.losses() != other.losses()


def test_offsets_are_trained_at_their_own_rate(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []
    create = trainer.create_optimizer

    def watched(recipe: Any, model: nn.Module) -> torch.optim.Optimizer:
        optimizer = create(recipe, model)
        optimizer.register_step_pre_hook(
            lambda *_: seen.append([group["lr"] for group in optimizer.param_groups])
        )
        return optimizer

    monkeypatch.setattr(trainer, "create_optimizer", watched)
    monkeypatch.setattr(Backbone, "offset_parameters", lambda self: {"head.weight"})  # no pyramid
    trained("recipe=lit", "recipe.optimizer.lr=0.01", "recipe.optimizer.lr_batch_size=null",
            "recipe.schedule.warmup_lr=0.002", "recipe.schedule.min_lr=0.0001")  # fmt: skip
    assert len(seen) == EPOCHS * STEPS
    assert all(len(rates) == 3 and rates[0] == rates[1] for rates in seen)
    assert [rates[2] for rates in seen[STEPS + 1 :]] == pytest.approx([1e-4] * 7, rel=1e-12)
    assert seen[STEPS + 1][0] > seen[-1][0] > 1e-4


def test_batch_statistics_of_a_run_take_the_recipes_share(trained: Trained) -> None:
    model = trained("recipe=sasa", *NORMALISED, "recipe.epochs=1").finished.result.model
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.momentum == 1e-4
        assert norm.num_batches_tracked == STEPS  # the first of two micro-batches updates them
        assert 0 < norm.running_mean.abs().max() < 0.01
