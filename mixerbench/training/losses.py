"""The losses of a run on their way from the device to the log; one that is no number stops it."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mixerbench.data.corrupt import CorruptImages
from mixerbench.data.images import Images
from mixerbench.data.order import SampleOrder
from mixerbench.errors import TrainingStopped
from mixerbench.tracking.keys import Artifact, Metric
from mixerbench.training.group import Group
from mixerbench.training.guards import advice, check_corrupt


class LossWatch:
    """Losses of the steps since the last log line, kept on the device until then.

    Reading a loss waits for the device, so it is done once per log line. A loss that is no
    number is therefore found up to ``log_every_steps`` late, but always before the weights
    are saved: every epoch ends with a log line.
    """

    def __init__(
        self,
        images: Images,
        order: SampleOrder,
        group: Group,
        corrupt: CorruptImages,
        folder: Path,
        seconds_at_peak: float | None,
    ) -> None:
        self._images, self._order, self._group = images, order, group
        self._corrupt, self._folder = corrupt, folder
        self._seconds_at_peak = seconds_at_peak  # of an image
        self.start()

    def add(self, loss: Tensor) -> None:
        """The loss of one micro-batch of this process."""
        self._losses.append(loss.detach())

    def losses(self, step: int, saved: Path | None) -> list[float]:
        """The losses of all virtual ranks that are not in the log yet, step by step.

        Raises:
            TrainingStopped: a loss is not finite (its step and images are written to a file), or
                more images cannot be read than the protocol allows.
        """
        own = torch.stack(self._losses).double().cpu() if self._losses else torch.empty(0)
        own = own.view(-1, len(self._order.own_ranks))
        of_all = self._group.gather((own, self._corrupt.indices))
        for _, indices in of_all:
            self._corrupt.merge(indices)
        check_corrupt(self._corrupt, self._folder, self._group)
        losses = torch.cat([own for own, _ in of_all], dim=1)
        bad = (~losses.isfinite()).nonzero().tolist()
        if bad:
            row, rank = bad[0]
            self._stop(step - len(losses) + row, rank, losses[row, rank].item(), saved)
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
        epoch, step_in_epoch = divmod(step, self._order.steps_per_epoch)
        images = [sample.image for sample in self._order.micro_batch(epoch, step_in_epoch, rank)]
        names = [self._images.name(image) for image in images]
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
            f"{advice(saved)}"
        )
