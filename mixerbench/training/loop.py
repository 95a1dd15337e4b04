"""The training loop: read it top to bottom, it is all that happens in a run."""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixerbench.config.schema import Run, Settings
from mixerbench.data.corrupt import CorruptImages, TooManyCorruptError
from mixerbench.data.decode import UnreadableImageError, printable
from mixerbench.data.images import Images, Splits
from mixerbench.data.loader import UNREADABLE, eval_loader, train_loader
from mixerbench.data.order import SampleOrder
from mixerbench.devices import autocast, grad_scaler, weight_dtype
from mixerbench.draws import seed_generators
from mixerbench.errors import Refusal, StopRequested, TrainingStopped, told_to_stop
from mixerbench.measure.peak import peak_flops, training_flops
from mixerbench.models.backbone import without_statistics
from mixerbench.recipe.loss import DistillationLoss, create_loss
from mixerbench.recipe.mixup import create_mixup
from mixerbench.recipe.optimization import (
    LearningRate,
    create_ema,
    create_optimizer,
    set_batch_norm_momentum,
)
from mixerbench.stopping import Stop
from mixerbench.tracking.journal import Journal
from mixerbench.tracking.keys import Artifact, Metric
from mixerbench.training.checkpoint import CHECKPOINTS
from mixerbench.training.evaluation import Evaluation, EvaluationError, evaluate
from mixerbench.training.group import Group
from mixerbench.training.parallel import distribute, own_part
from mixerbench.training.state import Progress, TrainingState


@dataclass(frozen=True)
class Result:
    """What a finished run leaves behind."""

    model: nn.Module
    ema: nn.Module
    final: Evaluation
    final_ema: Evaluation
    corrupt: tuple[CorruptImages, CorruptImages]  # train, val


def train(
    settings: Settings,
    splits: Splits,
    model: nn.Module,
    teacher: nn.Module | None,
    folder: Path,
    about: dict[str, Any],
    journal: Journal,
    stop: Stop,
    group: Group,
    macs: int | None = None,
) -> Result:
    """Train, or continue from the newest checkpoint in ``folder``.

    Args:
        model: freshly initialised, on any device, the same in all processes.
        teacher: what the recipe distils from, or None.
        about: ``identity`` and ``settings`` of the run, for the headers of checkpoints.
        stop: asked after each step and each batch of an evaluation.
        group: the processes of the run; the first one writes to ``folder`` and ``journal``.
        macs: of one image's forward pass, for the MFU in the log; None logs none.

    Raises:
        Preempted: it said so; the state of the last step is saved.
        TrainingStopped: the loss is no longer a number, too many images cannot be read, a
            validation image has changed, or there is no room for a checkpoint.
        Refusal: the checkpoint belongs to another run.
    """
    protocol, run = settings.protocol, settings.run
    recipe = protocol.recipe
    classes = len(splits.train.classes)
    device, dtype = group.device(run.device), weight_dtype(run.precision)
    torch.set_num_threads(run.threads)

    # Everything that varies is an object made here; the loop below has no cases.
    model.to(device, dtype)
    set_batch_norm_momentum(recipe, model)
    ema = create_ema(recipe, model)
    images_shape = (recipe.batch.micro_batch_size, 3, protocol.image_size, protocol.image_size)
    example = torch.zeros(images_shape, device=device, dtype=dtype)
    forward = distribute(model, ema, run, group, example)
    optimizer = create_optimizer(recipe, model)
    state = TrainingState(model, ema, optimizer, grad_scaler(device, run))
    loss_of = DistillationLoss(create_loss(recipe), teacher, recipe.distillation).to(device, dtype)
    mixup = create_mixup(recipe, classes)
    batches, order = train_loader(splits.train, protocol, run, device, group.rank, group.size)
    rates = LearningRate(recipe, optimizer, order.steps_per_epoch)
    validation = eval_loader(splits.val, protocol, run, device, group.rank, group.size)
    corrupt = CorruptImages(splits.train, "train", protocol.data.max_corrupt)
    corrupt_val = CorruptImages(splits.val, "val", protocol.data.max_corrupt)
    at_peak = None if macs is None else _seconds_at_peak(macs, device, run, group)
    watch = _Watch(splits, order, group, corrupt, folder, at_peak)

    saved = state.load_newest(folder / CHECKPOINTS, about["identity"])
    progress = state.progress
    if len(set(group.gather(progress.step))) > 1:
        raise Refusal(
            f"the machines do not see the same checkpoints in {folder}: set run.root to a folder "
            "that all of them share."
        )
    corrupt.restore(progress.corrupt)
    steps = order.steps_per_epoch
    journal.start(settings.label, recipe.epochs * steps)

    def save() -> Path:
        progress.unlogged = watch.losses(progress.step, saved)
        progress.corrupt = corrupt.indices
        _check_weights(model, progress.step, saved, group)
        journal.to_disk()  # first: what a checkpoint has behind it is not measured again
        return state.save(folder / CHECKPOINTS, about, run.keep_checkpoints, group)

    def validate() -> tuple[Evaluation, Evaluation]:
        group.share_buffers(model, ema.module)
        try:
            plain, average = (
                evaluate(module, validation, device, run.precision, group, stop.check, corrupt_val)
                for module in (model, ema.module)
            )
        except TooManyCorruptError as error:
            raise _too_many(error, corrupt_val, folder, group) from None
        except EvaluationError as error:
            _check_weights(model, progress.step, saved, group)
            raise TrainingStopped(f"{error} {_advice(saved)}") from None
        for evaluation in (plain, average):
            _check_pixels(state, evaluation, splits.val, folder)
        _log_validation(progress, plain, average, journal)
        return plain, average

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
                for rank in order.own_ranks:
                    images, targets, indices, sources = next(micro_batches)
                    corrupt.add(indices, sources)
                    seed_generators("step", run.seed, progress.step, rank)
                    if mixup is not None:
                        images, targets = mixup(images, targets)
                    # Batch statistics are those of the first virtual rank, as under DDP.
                    statistics = nullcontext() if rank == 0 else without_statistics(model)
                    with statistics, autocast(device, run.precision):
                        logits = forward(images, rank == order.own_ranks[-1])
                        loss = loss_of(images, logits, targets)
                    # The mean over processes of the sum over theirs is the mean of all ranks.
                    share = group.size / order.virtual_ranks
                    state.scaler.scale(loss * share).backward()
                    watch.add(loss)
                if recipe.optimizer.clip_grad_norm is not None:
                    state.scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_grad_norm)
                state.scaler.step(optimizer)
                state.scaler.update()
                ema.update(model)
                progress.step += 1

                if progress.step % run.log_every_steps == 0 or progress.step % steps == 0:
                    metrics = watch.read(progress.step, saved)
                    metrics[Metric.LEARNING_RATE] = rate
                    metrics[Metric.EPOCH] = progress.step / steps
                    since = time.perf_counter() - started
                    metrics[Metric.TRAIN_SECONDS] = progress.training_seconds + since
                    journal.metrics(progress.step, metrics)
                now = time.perf_counter()
                progress.training_seconds += now - started
                started = now
                stop.check()
                if run.checkpoint_every_steps and progress.step % run.checkpoint_every_steps == 0:
                    saved = save()

            done = epoch + 1
            if is_due(done):
                validate()
            if done % run.checkpoint_every_epochs == 0 or done == recipe.epochs:
                saved = save()

        final, final_ema = validate()
    except StopRequested as signal:
        saved = save()
        raise told_to_stop(
            signal,
            f"told to stop ({signal}): the state of step {progress.step} is saved. "
            f"Continue with run.resume={folder}",
        ) from None
    except UnreadableImageError as error:  # and no other image instead of it
        *_, line = str(error).splitlines()  # behind the traceback of a loader's process
        raise TrainingStopped(line.rpartition("UnreadableImageError: ")[2]) from None
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
            Metric.VAL_IMAGES: len(final.targets),
            Metric.UNREADABLE_VAL_IMAGES: len(final.unreadable),
        },
    )
    return Result(model, ema.module, final, final_ema, (corrupt, corrupt_val))


def _seconds_at_peak(macs: int, device: torch.device, run: Run, group: Group) -> float:
    """What an image would take if all devices only multiplied matrices."""
    return training_flops(macs) / (group.size * peak_flops(device, run.precision))


def _log_validation(
    progress: Progress, plain: Evaluation, ema: Evaluation, journal: Journal
) -> None:
    """The weights' accuracy and that of their moving average, which DeiT's code keeps unseen."""
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


def _check_pixels(
    state: TrainingState, evaluation: Evaluation, images: Images, folder: Path
) -> None:
    """Stop if an image has other pixels than in an earlier evaluation of this run."""
    found = torch.full((len(images.targets),), UNREADABLE, dtype=torch.int64)
    found[evaluation.indices] = evaluation.checksums
    known = state.val_checksums if len(state.val_checksums) else found
    changed = (found != known) & (found != UNREADABLE) & (known != UNREADABLE)
    if changed.any():
        name = printable(images.name(int(changed.int().argmax())))
        others = int(changed.sum()) - 1
        raise TrainingStopped(
            f"validation image {name}{f' and {others} others have' if others else ' has'} other "
            "pixels than in this run's evaluation before: the file was replaced, or other versions "
            f"of libraries decode it. Put back what was there and continue with run.resume={folder}"
            ", or start a new run."
        )
    state.val_checksums = torch.where(found == UNREADABLE, known, found)


def _check_weights(model: nn.Module, step: int, saved: Path | None, group: Group) -> None:
    """A gradient that is no number spoils weights after a loss that was one: do not save them."""
    finite = torch.stack([own_part(p.detach()).isfinite().all() for p in model.parameters()])
    if group.largest(int(not finite.all())):
        raise TrainingStopped(
            f"weights became infinite or no numbers by step {step}. {_advice(saved)}"
        )


def _check_corrupt(corrupt: CorruptImages, folder: Path, group: Group) -> None:
    """Stop, and list the images that cannot be read, if they are too many."""
    try:
        corrupt.check()
    except TooManyCorruptError as error:
        raise _too_many(error, corrupt, folder, group) from None


def _too_many(
    error: TooManyCorruptError, corrupt: CorruptImages, folder: Path, group: Group
) -> TrainingStopped:
    path = folder / Artifact.CORRUPT
    if group.is_first:
        path.write_text(corrupt.report(), encoding="utf-8")
    return TrainingStopped(f"{error} All of them are in {path}.")


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

    def __init__(
        self,
        splits: Splits,
        order: SampleOrder,
        group: Group,
        corrupt: CorruptImages,
        folder: Path,
        seconds_at_peak: float | None,
    ) -> None:
        self._splits, self._order, self._group = splits, order, group
        self._corrupt, self._folder = corrupt, folder
        self._seconds_at_peak = seconds_at_peak  # of an image
        self.start()

    def add(self, loss: Tensor) -> None:
        """The loss of one micro-batch of this process."""
        self._losses.append(loss.detach())

    def losses(self, step: int, saved: Path | None) -> list[float]:
        """The losses of all virtual ranks that are not in the log yet, step by step.

        Raises:
            TrainingStopped: one is not finite; its step and images are written down and named.
                Or more images cannot be read than the protocol allows.
        """
        own = torch.stack(self._losses).double().cpu() if self._losses else torch.empty(0)
        own = own.view(-1, len(self._order.own_ranks))
        everybodys = self._group.gather((own, self._corrupt.indices))
        for _, indices in everybodys:
            self._corrupt.merge(indices)
        _check_corrupt(self._corrupt, self._folder, self._group)
        losses = torch.cat([theirs for theirs, _ in everybodys], dim=1)
        bad = (~losses.isfinite()).nonzero().tolist()
        if bad:
            place, rank = bad[0]
            self._stop(step - len(losses) + place, rank, losses[place, rank].item(), saved)
        return [*self._before, *losses.flatten().tolist()]

    def read(self, step: int, saved: Path | None) -> dict[str, float]:
        """The mean loss and the speed since the last call, in images and as MFU.

        Raises:
            TrainingStopped: as ``losses``.
        """
        losses = torch.tensor(self.losses(step, saved), dtype=torch.float64)
        now = time.perf_counter()
        images = len(self._losses) / len(self._order.own_ranks) * self._order.batch_size
        speed = images / (now - self._started)
        metrics = {
            Metric.TRAIN_LOSS: losses.mean().item(),
            Metric.TRAIN_IMAGES_PER_SECOND: speed,
        }
        if self._seconds_at_peak is not None:
            metrics[Metric.MFU] = 100 * speed * self._seconds_at_peak
        self.start()
        return metrics

    def start(self, before: Sequence[float] = ()) -> None:
        """Begin to count anew, with the losses that a stopped run had not logged."""
        self._before = list(before)
        self._losses: list[Tensor] = []
        self._started = time.perf_counter()

    def _stop(self, step: int, rank: int, loss: float, saved: Path | None) -> None:
        epoch, place = divmod(step, self._order.steps_per_epoch)
        images = [sample.image for sample in self._order.micro_batch(epoch, place, rank)]
        names = [self._splits.train.name(image) for image in images]
        path = self._folder / Artifact.NON_FINITE
        content = {
            "step": step + 1,
            "epoch": epoch,
            "virtual_rank": rank,
            "loss": str(loss),
            "images": dict(zip(images, names, strict=False)),  # an image may be there repeatedly
        }
        if self._group.is_first:
            path.write_text(json.dumps(content, indent=2))
        raise TrainingStopped(
            f"the loss became {loss} at step {step + 1}. Images of that micro-batch: "
            f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''} (all in {path.name}). "
            f"{_advice(saved)}"
        )
