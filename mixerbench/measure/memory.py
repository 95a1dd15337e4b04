"""How much memory a training step needs at its peak."""

import os
from collections.abc import Callable
from itertools import accumulate, chain

import torch
from torch import nn

from mixerbench.devices import autocast
from mixerbench.measure._state import cross_entropy, images_shape, measuring, without_a_trace

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
    with measuring(model, training=True) as device, without_a_trace(model):

        def step() -> None:
            images = torch.zeros(images_shape(batch_size, in_chans, image_size), device=device)
            # Soft targets, as mixup makes them.
            targets = torch.full((batch_size, num_classes), 1 / num_classes, device=device)
            with autocast(device, precision):
                loss = cross_entropy(model(images), targets)
            loss.backward()
            model.zero_grad(set_to_none=True)

        peak = peak_bytes(step, device)
    weights = sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))
    return (weights + peak) / MIB


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most that ``call`` allocates on ``device`` at once; on a GPU it runs twice."""
    return _cuda_peak(call) if device.type == "cuda" else _cpu_peak(call)


def _cuda_peak(step: Callable[[], object]) -> int:
    """Bytes that a second step adds to what is allocated; the first creates cuBLAS' workspace."""
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(step: Callable[[], object]) -> int:
    """The highest running sum of the allocator's events during a step."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports on stderr that no GPU is there
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        step()
    assert profiler.kineto_results is not None
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    sizes: list[int] = [event.nbytes() for event in events]  # negative when freed
    return max(accumulate(sizes, initial=0))
