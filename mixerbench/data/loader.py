"""Loaders for training and for evaluation."""

import os

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixerbench.config.schema import Protocol, Run
from mixerbench.data.draws import seed_generators
from mixerbench.data.images import Images
from mixerbench.data.order import Sample, SampleOrder
from mixerbench.recipe.augmentation import Transform, eval_transform, train_transform

Item = tuple[Tensor, int, int]
MAX_WORKERS = 16


class _Augmented(Dataset[Item]):
    """(image, target, index) of a ``Sample``; the draws are the sample's own."""

    def __init__(self, images: Images, transform: Transform, seed: int) -> None:
        self._images, self._transform, self._seed = images, transform, seed

    def __getitem__(self, sample: Sample) -> Item:
        image, epoch, repeat = sample
        seed_generators("sample", self._seed, epoch, image, repeat)
        return self._transform(self._images.load(image)), self._images.targets[image], image


class _Plain(Dataset[Item]):
    def __init__(self, images: Images, transform: Transform) -> None:
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images.targets)

    def __getitem__(self, index: int) -> Item:
        return self._transform(self._images.load(index)), self._images.targets[index], index


def train_loader(
    images: Images, protocol: Protocol, run: Run, device: torch.device
) -> tuple[DataLoader[Item], SampleOrder]:
    """Micro-batches of (images, targets, indices) in the order that is returned beside it."""
    recipe = protocol.recipe
    order = SampleOrder(len(images.targets), recipe.batch, recipe.augmentation.repeats, run.seed)
    dataset = _Augmented(images, train_transform(protocol), run.seed)
    workers = _workers(run, device)
    loader = DataLoader(
        dataset,
        batch_sampler=order,  # type: ignore[arg-type]  # yields samples, not plain indices
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    return loader, order


def eval_loader(
    images: Images, protocol: Protocol, run: Run, device: torch.device
) -> DataLoader[Item]:
    """All images once, in the order of the data set."""
    workers = _workers(run, device)
    return DataLoader(
        _Plain(images, eval_transform(protocol)),
        batch_size=run.evaluation_batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


def _workers(run: Run, device: torch.device) -> int:
    if run.workers is not None:
        return run.workers
    return min(os.cpu_count() or 1, MAX_WORKERS) if device.type == "cuda" else 0
