"""Many models measured side by side, so that they can be ranked.

A machine that slows down for a while (heat, another job) would harm only the model that is
measured just then, if models were measured one after the other. In rounds over all models it
harms all alike.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from mixerbench.measure._state import measuring
from mixerbench.measure.energy import EnergyMeter, energy_counter
from mixerbench.measure.flops import count_macs
from mixerbench.measure.hardware import hardware_name
from mixerbench.measure.memory import training_step_memory_mib
from mixerbench.measure.model_costs import Measures, count_parameters
from mixerbench.measure.speed import Spread, latency_ms, throughput

ROUNDS: Final = 20
"""Slices that a model's time is divided into; the median of their results is reported."""


@dataclass(frozen=True)
class Counted:
    """A model, on the CPU, and what it costs on every machine."""

    model: nn.Module
    parameters: int  # trainable
    gmacs: float  # 1e9 multiply-adds of one image, by flops.CONVENTION


def count(model: nn.Module, image_size: int | tuple[int, int], in_chans: int = 3) -> Counted:
    """Count ``model`` before it is measured.

    Raises:
        CountingError: as ``count_macs``.
    """
    gmacs = count_macs(model, image_size, in_chans).total / 1e9
    return Counted(model, count_parameters(model), gmacs)


def measure_interleaved(
    models: Mapping[str, Counted],
    image_size: int | tuple[int, int],
    *,
    num_classes: int,
    batch_size: int,
    seconds: float,
    precision: str,
    device: torch.device | str,
    in_chans: int = 3,
    seed: int = 0,
    progress: Callable[[str, float], None] = lambda name, done: None,
) -> dict[str, Measures]:
    """Measure memory, then in each of ``ROUNDS`` rounds a slice of every model's speed and latency.

    Every round has its own order. The result of a slice is its median; median and quartiles
    over rounds are reported. A model is on ``device`` during its slices only, so that not all of
    them have to fit.

    Args:
        seconds: for the throughput of each model, and as many again for its latency. A slice
            has one timed pass at least, however long that takes.
        seed: of the order.
        progress: called with the name of the next model, and the share (0..1) of all slices that
            is done.
    """
    names = list(models)
    counter = energy_counter(device)
    meters = {name: EnergyMeter(counter) for name in names}
    memory: dict[str, float] = {}
    speeds: dict[str, list[float]] = {name: [] for name in names}
    latencies: dict[str, list[float]] = {name: [] for name in names}
    timing: dict[str, Any] = {
        "seconds": seconds / ROUNDS,
        "precision": precision,
        "device": device,
        "in_chans": in_chans,
    }
    # Memory comes first: a model that does not fit is known before any time is spent.
    for name in names:
        progress(name, 0.0)
        model = models[name].model
        with measuring(model, training=False, device=device):
            memory[name] = training_step_memory_mib(
                model, image_size, batch_size, num_classes, precision=precision, in_chans=in_chans
            )
    shuffle = random.Random(seed).shuffle
    order = names.copy()
    for finished in range(ROUNDS):
        shuffle(order)
        for position, name in enumerate(order):
            progress(name, (finished + position / len(order)) / ROUNDS)
            model = models[name].model
            with measuring(model, training=False, device=device):
                speed = throughput(model, image_size, batch_size, energy=meters[name], **timing)
                latency = latency_ms(model, image_size, **timing)
            speeds[name].append(speed.median)
            latencies[name].append(latency.median)
    hardware = hardware_name(device, precision)
    return {
        name: Measures(
            parameters=counted.parameters,
            gmacs=counted.gmacs,
            images_per_second=Spread.of(speeds[name]),
            latency_ms=Spread.of(latencies[name]),
            memory_mib=memory[name],
            joules_per_image=meters[name].joules_per_image,
            batch_size=batch_size,
            hardware=hardware,
        )
        for name, counted in models.items()
    }
