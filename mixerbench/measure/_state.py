"""Change a model for a measurement, and restore it afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def measuring(
    model: nn.Module, *, training: bool, device: torch.device | str | None = None
) -> Iterator[torch.device]:
    """``model`` on a device, in training or evaluation mode; gives that device.

    Afterwards every module's mode, the model's device and torch's random numbers are what
    they were.

    Args:
        device: made torch's current one; None: the device that the model is on.
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


@contextmanager
def without_a_trace(model: nn.Module) -> Iterator[None]:
    """``model`` with gradients on and none there; gradients and buffers are restored afterwards."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    copies = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, copy in copies:
                buffer.copy_(copy)


def images_shape(
    batch_size: int, in_chans: int, image_size: int | tuple[int, int]
) -> tuple[int, int, int, int]:
    """(B, channels, height, width); an ``image_size`` of one number is the side of a square."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return batch_size, in_chans, height, width


def cross_entropy(logits: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
    outputs = logits if isinstance(logits, tuple) else (logits,)  # two with distillation
    return torch.stack([F.cross_entropy(output, targets) for output in outputs]).sum()
