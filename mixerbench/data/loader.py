"""Loaders for training and for evaluation."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixerbench.config.schema import Protocol, Run
from mixerbench.data.decode import UnreadableImageError, printable
from mixerbench.data.images import Images
from mixerbench.data.order import Sample, SampleOrder, evaluation_batches
from mixerbench.devices import weight_dtype
from mixerbench.draws import seed_generators, seed_of
from mixerbench.recipe.pixels import Erased, EvalPixels, Normalize, TrainPixels

MAX_WORKERS = 16
UNREADABLE: Final = -1
"""Stands for the checksum of an image that could not be read; real ones are 0 or more."""

_REPLACEMENTS = 100  # tried for one unreadable image
_NOTHING: Final = np.zeros((1, 1, 3), np.uint8)  # stands for a validation image


class ImageBatch(NamedTuple):
    """What the model sees of some training images.

    Where an image could not be read, another replaces it: ``indices`` has the unreadable one,
    ``sources`` the one whose pixels and target are here. Both lie on the CPU.
    """

    images: Tensor  # (B, 3, H, W), normalised
    targets: Tensor  # (B,)
    indices: Tensor  # (B,), which images they are
    sources: Tensor  # (B,), which images were really loaded


class EvalBatch(NamedTuple):
    """What the model sees of some validation images.

    An image that could not be read is black, so that the batch keeps its size. Its checksum is
    ``UNREADABLE``, and metrics leave it out. ``indices`` and ``checksums`` lie on the CPU.
    """

    images: Tensor  # (B, 3, H, W), normalised
    targets: Tensor  # (B,)
    indices: Tensor  # (B,), which images they are
    checksums: Tensor  # (B,), CRC-32 of the decoded pixels


Batch = TypeVar("Batch", ImageBatch, EvalBatch)


class Chunk(NamedTuple):
    """Images as a loader process hands them to the training process, all on the CPU."""

    pixels: Tensor  # (B, H, W, 3), uint8
    targets: Tensor  # (B,)
    indices: Tensor  # (B,)
    loaded: Tensor  # (B,), the fourth column of the batches: sources or checksums
    boxes: Tensor  # (boxes, 6): image, top, left, height, width, offset of its noise
    noise: Tensor  # flat: (3, height, width) values for each box

    def every(self, step: int, start: int) -> "Chunk":
        """Every ``step``-th image from ``start`` on."""
        offsets = self.boxes[:, 0] - start
        boxes = self.boxes[(offsets >= 0) & (offsets % step == 0)]
        boxes[:, 0] = (boxes[:, 0] - start) // step
        pixels, targets, indices, loaded = (column[start::step] for column in self[:4])
        return Chunk(pixels, targets, indices, loaded, boxes, self.noise)


# --- in a loader process ----------------------------------------------------------------------


class _Training(Dataset[Chunk]):
    """Augmented chunks; random draws depend on the ``Sample``, not on a replaced image."""

    def __init__(self, images: Images, transform: TrainPixels, seed: int) -> None:
        self._images, self._transform, self._seed = images, transform, seed

    def __getitems__(self, samples: Sequence[Sample]) -> Chunk:
        made, erased, sources = [], [], []
        loaded: tuple[int, np.ndarray, int] | None = None
        for index, epoch, repeat in samples:
            if loaded is None or loaded[0] != index:  # repeats follow each other: decode once
                loaded = (index, *_load(self._images, index))
            seed_generators("sample", self._seed, epoch, index, repeat)
            pixels, boxes = self._transform(loaded[1])
            made.append(pixels)
            erased.append(boxes)
            sources.append(loaded[2])
        targets = [self._images.targets[source] for source in sources]
        return _chunk(made, targets, [s.image for s in samples], sources, erased)


class _Evaluation(Dataset[Chunk]):
    """Chunks of validation images, with a checksum of the pixels of each."""

    def __init__(self, images: Images, transform: EvalPixels) -> None:
        self._images, self._transform = images, transform

    def __getitems__(self, indices: Sequence[int]) -> Chunk:
        made, checksums = [], []
        for index in indices:  # decoded one at a time: 256 photographs can take gigabytes
            try:
                pixels = self._images.load(index)
                checksum = zlib.crc32(np.ascontiguousarray(pixels).data)
            except UnreadableImageError:
                pixels, checksum = _NOTHING, UNREADABLE
            made.append(self._transform(pixels))
            checksums.append(checksum)
        targets = [self._images.targets[index] for index in indices]
        return _chunk(made, targets, indices, checksums)


def _load(images: Images, index: int) -> tuple[np.ndarray, int]:
    """The image's pixels and its index, or those of its replacement if it cannot be read.

    An image's replacement is the same in every run and process.

    Raises:
        UnreadableImageError: the image and all replacements that were tried cannot be read.
    """
    source = index
    for attempt in range(_REPLACEMENTS):
        try:
            return images.load(source), source
        except UnreadableImageError:
            source = seed_of("replacement", index, attempt) % len(images.targets)
    try:
        return images.load(source), source
    except UnreadableImageError as error:
        raise UnreadableImageError(
            f"{error}. It is the last of {_REPLACEMENTS} images that were tried in the place of "
            f"{printable(images.name(index))}, and none could be read.",
            error.reason,
        ) from None


def _chunk(
    pixels: Sequence[np.ndarray],
    targets: Sequence[int],
    indices: Sequence[int],
    loaded: Sequence[int],
    erased: Sequence[Erased] = (),
) -> Chunk:
    boxes, noise, begin = [], [torch.empty(0)], 0
    for image, (own_boxes, own_noise) in enumerate(erased):
        for box, values in zip(own_boxes, own_noise, strict=True):
            boxes.append((image, *box, begin))
            noise.append(values.flatten())
            begin += values.numel()
    return Chunk(
        torch.from_numpy(np.stack(pixels)),
        torch.tensor(targets),
        torch.tensor(indices),
        torch.tensor(loaded),
        torch.tensor(boxes, dtype=torch.int64).view(-1, 6),
        torch.cat(noise),
    )


# --- in the training process ------------------------------------------------------------------


class _Batches(Generic[Batch]):
    """Batches on the device, made from the chunks of a loader.

    On a GPU, copying and normalising happen on a stream of their own, while the GPU still
    computes earlier steps.

    Args:
        deal: turns the stream of chunks into the chunks of each batch.
        kind: ``ImageBatch`` or ``EvalBatch``.
    """

    def __init__(
        self,
        loader: Iterable[Chunk],
        protocol: Protocol,
        run: Run,
        device: torch.device,
        deal: Callable[[Iterator[Chunk]], Iterator[list[Chunk]]],
        kind: type[Batch],
    ) -> None:
        self.loader, self._deal, self._device = loader, deal, device
        self._kind: type[Batch] = kind
        self._normalize = Normalize(protocol.data, device, weight_dtype(run.precision))

    def __iter__(self) -> Iterator[Batch]:
        batches = map(self._batch, self._deal(map(self._moved, self.loader)))
        if self._device.type != "cuda":
            yield from batches
            return
        stream = torch.cuda.Stream(self._device)
        while True:
            with torch.cuda.stream(stream):
                batch = next(batches, None)
            if batch is None:
                return
            yield _on_current_stream(batch, stream)

    def _moved(self, chunk: Chunk) -> Chunk:
        pixels, noise = (
            tensor.to(self._device, non_blocking=True) for tensor in (chunk.pixels, chunk.noise)
        )
        return chunk._replace(pixels=pixels, noise=noise)

    def _batch(self, chunks: list[Chunk]) -> Batch:
        pixels, targets, indices, loaded = (
            column[0] if len(chunks) == 1 else torch.cat(column)
            for column in list(zip(*chunks, strict=True))[:4]
        )
        images = self._normalize(pixels)
        first = 0
        for chunk in chunks:
            for image, top, left, height, width, begin in chunk.boxes.tolist():
                noise = chunk.noise[begin : begin + 3 * height * width].view(3, height, width)
                images[first + image, :, top : top + height, left : left + width] = noise
            first += len(chunk.targets)
        return self._kind(images, targets.to(self._device, non_blocking=True), indices, loaded)


def _on_current_stream(batch: Batch, stream: torch.cuda.Stream) -> Batch:
    """``batch``, made on ``stream``, ready for use on the current stream."""
    current = torch.cuda.current_stream()
    current.wait_stream(stream)
    for tensor in (batch.images, batch.targets):
        tensor.record_stream(current)
    return batch


def train_loader(
    images: Images,
    protocol: Protocol,
    run: Run,
    device: torch.device,
    process: int = 0,
    processes: int = 1,
) -> tuple[Iterable[ImageBatch], SampleOrder]:
    """This process's training micro-batches on the device, and the order that they follow."""
    recipe = protocol.recipe
    repeats = recipe.augmentation.repeats
    order = SampleOrder(len(images.targets), recipe.batch, repeats, run.seed, process, processes)
    dataset = _Training(images, TrainPixels(protocol), run.seed)
    ranks = len(order.own_ranks)

    def deal(chunks: Iterator[Chunk]) -> Iterator[list[Chunk]]:
        """The images of each virtual rank; in a step's chunks, ranks take turns."""
        size = recipe.batch.micro_batch_size
        for first in chunks:
            step = [first, *(next(chunks) for _ in range(ranks - 1))]
            for rank in range(ranks):
                yield [
                    chunk.every(ranks, (rank - number * size) % ranks)
                    for number, chunk in enumerate(step)
                ]

    loader = _loader(dataset, order.chunks(), run, device)
    return _Batches(loader, protocol, run, device, deal, ImageBatch), order


def eval_loader(
    images: Images,
    protocol: Protocol,
    run: Run,
    device: torch.device,
    process: int = 0,
    processes: int = 1,
) -> Iterable[EvalBatch]:
    """Batches of this process's share of the validation images; in order if it is alone."""
    order = evaluation_batches(len(images.targets), run.evaluation_batch_size, process, processes)
    loader = _loader(_Evaluation(images, EvalPixels(protocol)), order, run, device)
    return _Batches(
        loader, protocol, run, device, lambda chunks: ([chunk] for chunk in chunks), EvalBatch
    )


def _loader(dataset: Dataset[Chunk], order: Any, run: Run, device: torch.device) -> Iterable[Chunk]:
    workers = _workers(run, device)
    return DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=_unchanged,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_own_session,
        pin_memory=device.type == "cuda",
    )


def _unchanged(chunk: Any) -> Any:
    """Nothing is left to collate: ``__getitems__`` of the data sets returns a chunk."""
    return chunk


def _own_session(worker: int) -> None:
    """Leave the training process's group, so that a scheduler's signals do not reach loaders."""
    os.setsid()


def _workers(run: Run, device: torch.device) -> int:
    if run.workers is not None:
        return run.workers
    return min(os.cpu_count() or 1, MAX_WORKERS) if device.type == "cuda" else 0
