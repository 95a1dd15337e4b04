"""How much memory a training step needs at its peak."""

import os
from collections.abc import Callable
from itertools import accumulate, chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.devices import autocast
from mixerbench.measure._state import images_shape, measuring

MIB = 2**20


def training_step_memory_mib(
    model: nn.Module,
    image_size: int | tuple[int, int],
    batch_size: int,
    num_classes: int,
    *,
    precision: str,
    in_chans: int = 3,
) -> float:
    """Peak MiB of forward, cross-entropy and backward, on the model's own device.

    Weights, buffers, images, activations and gradients are included; the optimizer's state,
    and what else lives on the device, is not. The model is left without a trace: gradients,
    buffers, modes and random numbers are what they were.
    """
    parameters, buffers = list(model.parameters()), list(model.buffers())
    gradients = [parameter.grad for parameter in parameters]
    copies = [buffer.clone() for buffer in buffers]
    with measuring(model, training=True) as device, torch.enable_grad():

        def step() -> None:
            images = torch.zeros(images_shape(batch_size, in_chans, image_size), device=device)
            # Soft targets, as mixup makes them.
            targets = torch.full((batch_size, num_classes), 1 / num_classes, device=device)
            with autocast(device, precision):
                loss = _loss(model(images), targets)
            loss.backward()
            model.zero_grad(set_to_none=True)

        try:
            model.zero_grad(set_to_none=True)
            peak = _cuda_peak(step) if device.type == "cuda" else _cpu_peak(step)
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, copy in zip(buffers, copies, strict=True):
                    buffer.copy_(copy)
    weights = sum(tensor.nbytes for tensor in chain(parameters, buffers))
    return (weights + peak) / MIB


def _loss(logits: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
    outputs = logits if isinstance(logits, tuple) else (logits,)  # two with distillation
    return torch.stack([F.cross_entropy(output, targets) for output in outputs]).sum()


def _cuda_peak(step: Callable[[], None]) -> int:
    """Bytes that a second step adds to what is allocated; the first creates cuBLAS' workspace."""
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(step: Callable[[], None]) -> int:
    """The highest running sum of the allocator's events during a step."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports on stderr that no GPU is there
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        step()
    assert profiler.kineto_results is not None
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    sizes: list[int] = [event.nbytes() for event in events]  # negative when freed
    return max(accumulate(sizes, initial=0))
