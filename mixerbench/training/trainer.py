"""A run of training as an object: `Trainer.train` is the list of all that happens in it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mixerbench.data.corrupt import CorruptImages, TooManyCorruptError
from mixerbench.data.decode import UnreadableImageError
from mixerbench.data.loader import ImageBatch, eval_loader, train_loader
from mixerbench.devices import autocast, grad_scaler, weight_dtype
from mixerbench.draws import seed_generators
from mixerbench.errors import Refusal, StopRequested, TrainingStopped, told_to_stop
from mixerbench.measure.peak import peak_flops, training_flops
from mixerbench.models.backbone import Backbone, without_statistics
from mixerbench.objectives import Evaluation, EvaluationError
from mixerbench.recipe.mixup import create_mixup
from mixerbench.recipe.optimization import (
    LearningRate,
    create_ema,
    create_optimizer,
    set_batch_norm_momentum,
)
from mixerbench.stopping import Stop
from mixerbench.tracking.journal import Journal
from mixerbench.tracking.keys import Metric
from mixerbench.training.checkpoint import CHECKPOINTS
from mixerbench.training.folder import header_of
from mixerbench.training.group import Group
from mixerbench.training.guards import advice, check_pixels, check_weights, too_many
from mixerbench.training.losses import LossWatch
from mixerbench.training.parallel import distribute
from mixerbench.training.prepare import Prepared
from mixerbench.training.state import Progress, TrainingState


@dataclass(frozen=True)
class Result:
    """What a finished run leaves behind."""

    model: Backbone
    ema: nn.Module
    final: Evaluation
    final_ema: Evaluation
    corrupt: tuple[CorruptImages, CorruptImages]  # train, val


class Trainer:
    """One run: its settings, its parts, and the state that is saved.

    Args:
        folder: of the run; the first process writes checkpoints to it.
        stop: asked after each step and each batch of an evaluation.
        group: the processes of the run, of which this is one.
    """

    def __init__(
        self, prepared: Prepared, folder: Path, journal: Journal, stop: Stop, group: Group
    ) -> None:
        # Settings.
        settings = self.settings = prepared.settings
        protocol, run = self.protocol, self.run = settings.protocol, settings.run
        recipe = self.recipe = protocol.recipe
        self.objective, self.splits = prepared.objective, prepared.splits

        # Where it runs, and what it writes to.
        self.folder, self.journal, self.stop, self.group = folder, journal, stop, group
        self.checkpoints, self.header = folder / CHECKPOINTS, header_of(settings)
        device = self.device = group.device(run.device)
        dtype = weight_dtype(run.precision)
        torch.set_num_threads(run.threads)

        # Parts. Everything that varies is an object made here: a step has no cases.
        model = self.model = prepared.model.to(device, dtype)
        set_batch_norm_momentum(recipe, model)
        self.ema = create_ema(recipe, model)
        side = protocol.image_size
        example = torch.zeros(
            (recipe.batch.micro_batch_size, 3, side, side), device=device, dtype=dtype
        )
        self.forward = distribute(model, self.ema, run, group, example)
        self.optimizer = create_optimizer(recipe, model)
        self.scaler = grad_scaler(device, run)
        self.loss = self.objective.create_loss(recipe, prepared.teacher).to(device, dtype)
        self.mixup = create_mixup(recipe, len(self.splits.train.classes))
        self.batches, self.order = train_loader(
            self.splits.train, protocol, run, device, group.rank, group.size
        )
        self.micro_batches: Iterator[ImageBatch] = iter(())
        self.rates = LearningRate(recipe, self.optimizer, self.order.steps_per_epoch)
        self.validation = eval_loader(
            self.splits.val, protocol, run, device, group.rank, group.size
        )
        self.corrupt = CorruptImages(self.splits.train, "train", protocol.data.max_corrupt)
        self.corrupt_val = CorruptImages(self.splits.val, "val", protocol.data.max_corrupt)
        self.watch = LossWatch(
            self.splits.train,
            self.order,
            group,
            self.corrupt,
            folder,
            self._seconds_at_peak(prepared),
        )

        # State that is saved.
        self.state = TrainingState(model, self.ema, self.optimizer, self.scaler)
        self.saved: Path | None = None  # the newest checkpoint

        # State that is not.
        self.rate = 0.0  # of the last step
        self.clock = 0.0  # when training seconds were last counted, by time.perf_counter

    @property
    def progress(self) -> Progress:
        return self.state.progress

    # --- what happens, in its order -----------------------------------------------------------

    def train(self) -> Result:
        """Train to the end, from the newest checkpoint in the folder if there is one.

        Raises:
            Preempted: ``stop`` said so; the state of the last step is saved.
            TrainingStopped: the loss is no longer a number, too many images cannot be read, a
                validation image has changed, or there is no room for a checkpoint.
            Refusal: the checkpoint belongs to another run.
        """
        run, epochs, steps = self.run, self.recipe.epochs, self.order.steps_per_epoch
        self.resume()
        self.journal.start(self.settings.label, epochs * steps)
        with self._stopped_in_words():
            if self.is_validation_missing():
                self.validate()

            for epoch in range(self.progress.step // steps, epochs):
                self.begin_epoch(epoch)

                for _ in range(self.progress.step % steps, steps):
                    self.step()
                    step = self.progress.step
                    if step % run.log_every_steps == 0 or step % steps == 0:
                        self.log()
                    self.count_seconds()
                    self.stop.check()
                    if run.checkpoint_every_steps and step % run.checkpoint_every_steps == 0:
                        self.save()

                if self.is_validated(epoch + 1):
                    self.validate()
                if (epoch + 1) % run.checkpoint_every_epochs == 0 or epoch + 1 == epochs:
                    self.save()

            final, final_ema = self.validate()
        self.log_end(final, final_ema)
        corrupt = (self.corrupt, self.corrupt_val)
        return Result(self.model, self.ema.module, final, final_ema, corrupt)

    def resume(self) -> None:
        """Go on from the newest checkpoint, where there is one.

        Raises:
            Refusal: it belongs to another run, or not all machines see it.
        """
        self.saved = self.state.load_newest(self.checkpoints, self.header["identity"])
        if len(set(self.group.gather(self.progress.step))) > 1:
            raise Refusal(
                f"the machines do not see the same checkpoints in {self.folder}: set run.root to a "
                "folder that all of them share."
            )
        self.corrupt.restore(self.progress.corrupt)

    def begin_epoch(self, epoch: int) -> None:
        """Line up the batches of ``epoch`` that are left, and start the clocks."""
        self.order.start_at(epoch, self.progress.step % self.order.steps_per_epoch)
        self.micro_batches = iter(self.batches)
        self.model.train()
        self.clock = time.perf_counter()
        self.watch.start(self.progress.unlogged)
        self.progress.unlogged = []

    def step(self) -> None:
        """One step of the optimizer; this process does its virtual ranks, one after another."""
        step, order, clip = self.progress.step, self.order, self.recipe.optimizer.clip_grad_norm
        self.rate = self.rates.set(step)
        self.optimizer.zero_grad(set_to_none=True)
        for rank in order.own_ranks:
            images, targets, indices, sources = next(self.micro_batches)
            self.corrupt.add(indices, sources)
            seed_generators("step", self.run.seed, step, rank)
            if self.mixup is not None:
                images, targets = self.mixup(images, targets)
            # Batch statistics are those of the first virtual rank, as under DDP.
            statistics = nullcontext() if rank == 0 else without_statistics(self.model)
            with statistics, autocast(self.device, self.run.precision):
                outputs = self.forward(images, rank == order.own_ranks[-1])
                loss = self.loss(images, outputs, targets)
            # The mean over processes of the sum over their ranks is the mean of all ranks.
            self.scaler.scale(loss * (self.group.size / order.virtual_ranks)).backward()
            self.watch.add(loss)
        if clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.model)
        self.progress.step += 1

    def log(self) -> None:
        """Write down the mean loss since the last time, the speed, and where the run is.

        Raises:
            TrainingStopped: a loss is no number, or too many images cannot be read.
        """
        step = self.progress.step
        metrics = self.watch.read(step, self.saved)
        metrics[Metric.LEARNING_RATE] = self.rate
        metrics[Metric.EPOCH] = step / self.order.steps_per_epoch
        since = time.perf_counter() - self.clock
        metrics[Metric.TRAIN_SECONDS] = self.progress.training_seconds + since
        self.journal.metrics(step, metrics)

    def count_seconds(self) -> None:
        """Add the time since the last call, or since the epoch began, to that of training."""
        now = time.perf_counter()
        self.progress.training_seconds += now - self.clock
        self.clock = now

    def save(self) -> None:
        """Write a checkpoint of this step.

        Raises:
            TrainingStopped: losses or weights are no numbers, or there is no room for it.
        """
        progress = self.progress
        progress.unlogged = self.watch.losses(progress.step, self.saved)
        progress.corrupt = self.corrupt.indices
        check_weights(self.model, progress.step, self.saved, self.group)
        self.journal.to_disk()  # first: what a checkpoint has behind it is not measured again
        keep = self.run.keep_checkpoints
        self.saved = self.state.save(self.checkpoints, self.header, keep, self.group)

    def is_validated(self, epochs: int) -> bool:
        """Is there an evaluation after so many epochs, besides the one at the end?"""
        return epochs % self.run.evaluate_every_epochs == 0 and 0 < epochs < self.recipe.epochs

    def is_validation_missing(self) -> bool:
        """Was the run told to stop during an evaluation? Then it goes on with that evaluation."""
        epochs, into_epoch = divmod(self.progress.step, self.order.steps_per_epoch)
        is_new = self.progress.evaluated < self.progress.step
        return into_epoch == 0 and self.is_validated(epochs) and is_new

    def validate(self) -> tuple[Evaluation, Evaluation]:
        """Evaluate the weights, and their moving average, which DeiT's code keeps unseen.

        Raises:
            TrainingStopped: there is nothing to report, or images are unreadable or others.
        """
        progress, group, objective = self.progress, self.group, self.objective
        group.share_buffers(self.model, self.ema.module)
        try:
            plain, average = (
                objective.evaluate(
                    module,
                    self.validation,
                    self.device,
                    self.run.precision,
                    gather=group.gather,
                    between_batches=self.stop.check,
                    corrupt=self.corrupt_val,
                )
                for module in (self.model, self.ema.module)
            )
        except TooManyCorruptError as error:
            raise too_many(error, self.corrupt_val, self.folder, group) from None
        except EvaluationError as error:
            check_weights(self.model, progress.step, self.saved, group)
            raise TrainingStopped(f"{error} {advice(self.saved)}") from None
        for evaluation in (plain, average):
            check_pixels(self.state, evaluation, self.splits.val, self.folder)
        progress.best = max(progress.best, plain.scores[objective.headline.name])
        progress.evaluated = progress.step
        metrics = {score.val: plain.scores[score.name] for score in objective.scores}
        metrics |= {score.ema: average.scores[score.name] for score in objective.scores}
        self.journal.metrics(progress.step, metrics)
        return plain, average

    def log_end(self, final: Evaluation, final_ema: Evaluation) -> None:
        """Write down what is known once, at the end."""
        progress, scores = self.progress, self.objective.scores
        metrics = {score.final: final.scores[score.name] for score in scores}
        metrics |= {s.final_ema: final_ema.scores[s.name] for s in scores if s.final_ema}
        metrics |= {
            self.objective.best: progress.best,
            Metric.TRAINING_SECONDS: progress.training_seconds,
            Metric.IMAGES_SEEN: progress.step * self.recipe.batch.size,
            Metric.VAL_IMAGES: len(final.indices),
            Metric.UNREADABLE_VAL_IMAGES: len(final.unreadable),
        }
        self.journal.metrics(progress.step, metrics)

    # --- what does not fit the list -----------------------------------------------------------

    @contextmanager
    def _stopped_in_words(self) -> Iterator[None]:
        """A run that is told to stop is saved first; an image that cannot be read is named."""
        try:
            yield
        except StopRequested as signal:
            self.save()
            raise told_to_stop(
                signal,
                f"told to stop ({signal}): the state of step {self.progress.step} is saved. "
                f"Continue with run.resume={self.folder}",
            ) from None
        except UnreadableImageError as error:  # and no other image instead of it
            *_, line = str(error).splitlines()  # behind the traceback of a loader's process
            raise TrainingStopped(line.rpartition("UnreadableImageError: ")[2]) from None

    def _seconds_at_peak(self, prepared: Prepared) -> float | None:
        """Seconds for an image if all devices only multiplied matrices; None: MFU is not logged."""
        if prepared.macs is None:
            return None
        peak = self.group.size * peak_flops(self.device, self.run.precision)
        return training_flops(prepared.macs.total) / peak
