"""Borrow a model for a measurement, and give it back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain

import torch
from torch import nn


@contextmanager
def measuring(
    model: nn.Module, *, training: bool, device: torch.device | str | None = None
) -> Iterator[torch.device]:
    """``model`` in one mode on ``device`` (None: where it is), which becomes the current one.

    Afterwards every module's mode, the model's device and torch's random numbers are what
    they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    first = next(chain(model.parameters(), model.buffers()), None)
    home = torch.device("cpu") if first is None else first.device
    target = home if device is None else torch.device(device)
    on_cuda = target.type == "cuda"
    with (
        torch.random.fork_rng(devices=[target] if on_cuda else []),
        torch.cuda.device(target) if on_cuda else nullcontext(),
    ):
        try:
            model.train(training)
            if target != home:
                model.to(target)
            yield target
        finally:
            if target != home:
                model.to(home)
            for module, mode in modes:
                module.training = mode


def images_shape(
    batch_size: int, in_chans: int, image_size: int | tuple[int, int]
) -> tuple[int, int, int, int]:
    """(B, channels, height, width); one number is a square's side."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return batch_size, in_chans, height, width
