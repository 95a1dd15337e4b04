"""Loaders for training and for evaluation."""

import os
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixerbench.config.schema import Protocol, Run
from mixerbench.data.draws import seed_generators, seed_of
from mixerbench.data.images import Images, UnreadableImageError, printable
from mixerbench.data.order import Sample, SampleOrder, evaluation_batches
from mixerbench.recipe.augmentation import Transform, eval_transform, train_transform

Item = tuple[Tensor, int, int, int]
"""Image, target, index, and the index of the image that was really loaded.

The last two differ where an image could not be read: image and target are its replacement's.
"""

MAX_WORKERS = 16
_REPLACEMENTS = 100  # tried for one image


class _Augmented(Dataset[Item]):
    """The items of ``Sample``s; the draws are the sample's own, its image replaced or not."""

    def __init__(self, images: Images, transform: Transform, seed: int) -> None:
        self._images, self._transform, self._seed = images, transform, seed

    def __getitem__(self, sample: Sample) -> Item:
        index, epoch, repeat = sample
        image, source = _load(self._images, index)
        seed_generators("sample", self._seed, epoch, index, repeat)
        return self._transform(image), self._images.targets[source], index, source


class _Plain(Dataset[Item]):
    """The items of all images.

    The replacement of an image that cannot be read stands in under its index, and so under its
    name among the predictions, with the replacement's target: accuracy remains a share of as
    many images, in which the replacement counts twice.
    """

    def __init__(self, images: Images, transform: Transform) -> None:
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images.targets)

    def __getitem__(self, index: int) -> Item:
        image, source = _load(self._images, index)
        return self._transform(image), self._images.targets[source], index, source


def _load(images: Images, index: int) -> tuple[Image.Image, int]:
    """The image and its index, or another's where it cannot be read: always the same one.

    Raises:
        UnreadableImageError: and neither can all that were tried in its place.
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


def train_loader(
    images: Images,
    protocol: Protocol,
    run: Run,
    device: torch.device,
    process: int = 0,
    processes: int = 1,
) -> tuple[DataLoader[Item], SampleOrder]:
    """This process's micro-batches of ``Item``s, in the order that is returned beside it."""
    recipe = protocol.recipe
    repeats = recipe.augmentation.repeats
    order = SampleOrder(len(images.targets), recipe.batch, repeats, run.seed, process, processes)
    dataset = _Augmented(images, train_transform(protocol), run.seed)
    loader = DataLoader(
        dataset,
        batch_sampler=order,  # type: ignore[arg-type]  # yields samples, not plain indices
        **_how(run, device),
    )
    return loader, order


def eval_loader(
    images: Images,
    protocol: Protocol,
    run: Run,
    device: torch.device,
    process: int = 0,
    processes: int = 1,
) -> DataLoader[Item]:
    """This process's share of the images; all of them in order for a single one."""
    return DataLoader(
        _Plain(images, eval_transform(protocol)),
        batch_sampler=evaluation_batches(
            len(images.targets), run.evaluation_batch_size, process, processes
        ),
        **_how(run, device),
    )


def _how(run: Run, device: torch.device) -> dict[str, Any]:
    workers = _workers(run, device)
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "worker_init_fn": _own_session,
        "pin_memory": device.type == "cuda",
    }


def _own_session(worker: int) -> None:
    """What a scheduler tells the whole group of processes is not for those that load."""
    os.setsid()


def _workers(run: Run, device: torch.device) -> int:
    if run.workers is not None:
        return run.workers
    return min(os.cpu_count() or 1, MAX_WORKERS) if device.type == "cuda" else 0
