"""The training loop: read it top to bottom, it is all that happens in a run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixerbench.config.schema import Settings
from mixerbench.data.draws import seed_generators
from mixerbench.data.images import Splits
from mixerbench.data.loader import eval_loader, train_loader
from mixerbench.devices import autocast, choose_device, grad_scaler
from mixerbench.errors import Preempted, TrainingStopped
from mixerbench.models import create_model
from mixerbench.recipe.loss import DistillationLoss, create_loss
from mixerbench.recipe.mixup import create_mixup
from mixerbench.recipe.optimization import (
    LearningRate,
    create_ema,
    create_optimizer,
    set_batch_norm_momentum,
)
from mixerbench.tracking.journal import Journal
from mixerbench.tracking.keys import Metric
from mixerbench.training.checkpoint import CHECKPOINTS
from mixerbench.training.evaluation import Evaluation, evaluate
from mixerbench.training.preemption import Preemption, StopRequested
from mixerbench.training.state import TrainingState


@dataclass(frozen=True)
class Result:
    """What a finished run leaves behind."""

    model: nn.Module
    ema: nn.Module
    final: Evaluation
    final_ema: Evaluation


def build_model(settings: Settings, num_classes: int) -> nn.Module:
    """The model of the settings, initialised from the run's seed.

    Raises:
        ValueError: its parts do not fit each other.
    """
    protocol, model = settings.protocol, settings.model
    regularization = protocol.recipe.regularization
    seed_generators("init", settings.run.seed)
    built: Any = create_model(
        model["mixer"],
        model["size"],
        image_size=protocol.image_size,
        num_classes=num_classes,
        stem=model["stem"],
        backbone=model["backbone"],
        drop_path=regularization.drop_path,
        drop_path_schedule=regularization.drop_path_schedule,
        dropout=regularization.dropout,
        layer_scale=regularization.layer_scale,
    )
    if settings.run.grad_checkpointing:
        built.set_grad_checkpointing()
    if protocol.recipe.distillation.kind != "none":
        built.set_distilled_training()
    return built


def train(
    settings: Settings,
    splits: Splits,
    model: nn.Module,
    teacher: nn.Module | None,
    folder: Path,
    about: dict[str, Any],
    journal: Journal,
    preemption: Preemption,
) -> Result:
    """Train, or continue from the newest checkpoint in ``folder``.

    Args:
        model: freshly initialised, on any device.
        teacher: what the recipe distils from, or None.
        about: ``identity`` and ``settings`` of the run, for the headers of checkpoints.
        preemption: asked after each step and each batch of an evaluation.

    Raises:
        Preempted: it said so; the state of the last step is saved.
        TrainingStopped: the loss is no longer a number.
        UserError: the checkpoint belongs to another run.
    """
    protocol, run = settings.protocol, settings.run
    recipe = protocol.recipe
    classes = len(splits.train.classes)
    device = choose_device(run.device)
    torch.set_num_threads(run.threads)

    # Everything that varies is an object made here; the loop below has no cases.
    model.to(device)
    set_batch_norm_momentum(recipe, model)
    optimizer = create_optimizer(recipe, model)
    state = TrainingState(model, create_ema(recipe, model), optimizer, grad_scaler(device, run))
    loss_of = DistillationLoss(create_loss(recipe), teacher, recipe.distillation).to(device)
    mixup = create_mixup(recipe, classes)
    batches, order = train_loader(splits.train, protocol, run, device)
    rates = LearningRate(recipe, optimizer, order.steps_per_epoch)
    validation = eval_loader(splits.val, protocol, run, device)
    forward = torch.compile(model) if run.compile else model
    watch = _Watch(splits)

    saved = state.load_newest(folder / CHECKPOINTS, about["identity"])
    progress = state.progress
    steps = order.steps_per_epoch
    journal.start(settings.label, recipe.epochs * steps)

    def validate() -> tuple[Evaluation, Evaluation]:
        return _validate(state, validation, device, run.precision, journal, preemption)

    def is_due(done: int) -> bool:
        return done % run.evaluate_every_epochs == 0 and 0 < done < recipe.epochs

    try:
        # A run that was told to stop in an evaluation goes on with that evaluation.
        epochs, into_epoch = divmod(progress.step, steps)
        if is_due(epochs) and into_epoch == 0 and progress.evaluated < progress.step:
            validate()

        for epoch in range(epochs, recipe.epochs):
            order.start_at(epoch, progress.step % steps)
            micro_batches = iter(batches)
            model.train()
            started = time.perf_counter()
            watch.start(progress.unlogged)
            progress.unlogged = []

            for _ in range(progress.step % steps, steps):
                rate = rates.set(progress.step)
                optimizer.zero_grad(set_to_none=True)
                for rank in range(order.virtual_ranks):
                    images, targets, indices = next(micro_batches)
                    images = images.to(device, non_blocking=True)
                    targets = targets.to(device, non_blocking=True)
                    seed_generators("step", run.seed, progress.step, rank)
                    if mixup is not None:
                        images, targets = mixup(images, targets)
                    with autocast(device, run.precision):
                        loss = loss_of(images, forward(images), targets) / order.virtual_ranks
                    state.scaler.scale(loss).backward()
                    watch.add(loss, indices)
                if recipe.optimizer.clip_grad_norm is not None:
                    state.scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_grad_norm)
                state.scaler.step(optimizer)
                state.scaler.update()
                state.ema.update(model)
                progress.step += 1

                if progress.step % run.log_every_steps == 0 or progress.step % steps == 0:
                    metrics = watch.read(progress.step, saved, order.virtual_ranks)
                    metrics[Metric.LEARNING_RATE] = rate
                    metrics[Metric.EPOCH] = progress.step / steps
                    journal.metrics(progress.step, metrics)
                now = time.perf_counter()
                progress.training_seconds += now - started
                started = now
                preemption.check()

            done = epoch + 1
            if is_due(done):
                validate()
            if done % run.checkpoint_every_epochs == 0 or done == recipe.epochs:
                _check_weights(model, progress.step, saved)
                saved = state.save(folder / CHECKPOINTS, about, run.keep_checkpoints)

        final, final_ema = validate()
    except StopRequested as signal:
        progress.unlogged = watch.losses(progress.step, saved, order.virtual_ranks)
        _check_weights(model, progress.step, saved)
        saved = state.save(folder / CHECKPOINTS, about, run.keep_checkpoints)
        raise Preempted(
            f"told to stop ({signal}): the state of step {progress.step} is saved. "
            f"Continue with run.resume={folder}"
        ) from None
    journal.metrics(
        progress.step,
        {
            Metric.FINAL_TOP1: final.top1,
            Metric.FINAL_TOP5: final.top5,
            Metric.FINAL_LOSS: final.loss,
            Metric.FINAL_EMA_TOP1: final_ema.top1,
            Metric.FINAL_EMA_TOP5: final_ema.top5,
            Metric.BEST_TOP1: progress.best_top1,
            Metric.TRAINING_SECONDS: progress.training_seconds,
            Metric.IMAGES_SEEN: progress.step * recipe.batch.size,
        },
    )
    return Result(model, state.ema.module, final, final_ema)


def _validate(
    state: TrainingState,
    loader: Any,
    device: torch.device,
    precision: str,
    journal: Journal,
    preemption: Preemption,
) -> tuple[Evaluation, Evaluation]:
    """Evaluate the weights and their moving average; DeiT's code keeps the latter unseen."""
    progress = state.progress
    plain = evaluate(state.model, loader, device, precision, preemption.check)
    ema = evaluate(state.ema.module, loader, device, precision, preemption.check)
    progress.best_top1 = max(progress.best_top1, plain.top1)
    progress.evaluated = progress.step
    journal.metrics(
        progress.step,
        {
            Metric.VAL_TOP1: plain.top1,
            Metric.VAL_TOP5: plain.top5,
            Metric.VAL_LOSS: plain.loss,
            Metric.EMA_TOP1: ema.top1,
            Metric.EMA_TOP5: ema.top5,
            Metric.EMA_LOSS: ema.loss,
        },
    )
    return plain, ema


def _check_weights(model: nn.Module, step: int, saved: Path | None) -> None:
    """A gradient that is no number spoils weights after a loss that was one: do not save them."""
    finite = torch.stack([p.detach().isfinite().all() for p in model.parameters()])
    if not finite.all():
        raise TrainingStopped(
            f"weights became infinite or no numbers by step {step}. {_advice(saved)}"
        )


def _advice(saved: Path | None) -> str:
    return (
        f"Last good checkpoint: {saved or 'none yet'}. Lower the learning rate "
        "(protocol.recipe.optimizer.lr), or use run.precision=fp32."
    )


class _Watch:
    """Losses of the steps since the last log line, kept on the device until then.

    Reading a loss waits for the device, so it is done once per log line. A loss that is no
    number is therefore found up to ``log_every_steps`` late, but always before the weights
    are saved: every epoch ends with a log line.
    """

    def __init__(self, splits: Splits) -> None:
        self._splits = splits
        self.start()

    def add(self, loss: Tensor, indices: Tensor) -> None:
        self._losses.append(loss.detach())
        self._indices.append(indices)

    def losses(self, step: int, saved: Path | None, virtual_ranks: int) -> list[float]:
        """The losses that are not in the log yet.

        Raises:
            TrainingStopped: one is not finite; names the step and its images.
        """
        if not self._losses:
            return self._before
        losses = torch.stack(self._losses).double().cpu()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            place = int(bad[0])
            steps = len(losses) // virtual_ranks
            names = [self._splits.train.name(i) for i in self._indices[place].tolist()]
            raise TrainingStopped(
                f"the loss became {losses[place].item()} at step "
                f"{step - steps + place // virtual_ranks + 1}. Images of that micro-batch: "
                f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}. "
                f"{_advice(saved)}"
            )
        return [*self._before, *losses.tolist()]

    def read(self, step: int, saved: Path | None, virtual_ranks: int) -> dict[str, float]:
        """The mean loss and the speed since the last call.

        Raises:
            TrainingStopped: a loss is not finite; names the step and its images.
        """
        losses = torch.tensor(self.losses(step, saved, virtual_ranks), dtype=torch.float64)
        now = time.perf_counter()
        images = sum(len(indices) for indices in self._indices)
        metrics = {
            Metric.TRAIN_LOSS: losses.sum().item() * virtual_ranks / len(losses),
            Metric.TRAIN_IMAGES_PER_SECOND: images / (now - self._started),
        }
        self.start()
        return metrics

    def start(self, before: Sequence[float] = ()) -> None:
        """Begin to count anew, with the losses that a stopped run had not logged."""
        self._before = list(before)
        self._losses: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._started = time.perf_counter()
