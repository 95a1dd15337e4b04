"""How fast a forward pass is, in evaluation mode."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from mixerbench.devices import autocast
from mixerbench.measure._state import images_shape, measuring
from mixerbench.measure.energy import UNMETERED, EnergyMeter

REPEATS: Final = 20
"""Repeats that the time is divided into: enough for quartiles, each long enough for the clock."""
WARM_UP: Final = 0.2
"""Share of the time that goes by before the first repeat: clocks and caches settle."""


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, and how far apart they were."""

    median: float
    lower_quartile: float
    upper_quartile: float
    repeats: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """The spread of ``samples``, one measurement per repeat."""
        quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        ordered = torch.tensor(samples, dtype=torch.float64).quantile(quartiles)
        lower, median, upper = ordered.tolist()
        return cls(median, lower, upper, len(samples))


def throughput(
    model: nn.Module,
    image_size: int | tuple[int, int],
    batch_size: int,
    *,
    seconds: float,
    precision: str,
    device: torch.device | str,
    in_chans: int = 3,
    energy: EnergyMeter = UNMETERED,
) -> Spread:
    """Images per second of forward passes in batches, images already on the device.

    Takes about ``seconds`` beside the first pass; if one pass takes longer, two passes.

    Args:
        energy: runs while the clock does.
    """
    shape = images_shape(batch_size, in_chans, image_size)
    times = _forward_seconds(model, shape, seconds, precision, device, energy, grouped=True)
    return Spread.of([batch_size / duration for duration in times])


def latency_ms(
    model: nn.Module,
    image_size: int | tuple[int, int],
    *,
    seconds: float,
    precision: str,
    device: torch.device | str,
    in_chans: int = 3,
) -> Spread:
    """Milliseconds from one image to its result; the next pass begins when the last has ended."""
    shape = images_shape(1, in_chans, image_size)
    times = _forward_seconds(model, shape, seconds, precision, device, UNMETERED, grouped=False)
    return Spread.of([1e3 * duration for duration in times])


def _forward_seconds(
    model: nn.Module,
    shape: tuple[int, ...],
    seconds: float,
    precision: str,
    device: torch.device | str,
    energy: EnergyMeter,
    *,
    grouped: bool,
) -> list[float]:
    """Seconds of one forward pass, measured once per repeat.

    Args:
        grouped: a repeat is several passes, of which the mean is taken.
    """
    with measuring(model, training=False, device=device) as target:
        # Not zeros: GPUs multiply them with less power, hence at higher clocks.
        draws = torch.Generator(target).manual_seed(0)
        batch = torch.randn(shape, device=target, generator=draws)

        def forward() -> None:
            with torch.inference_mode(), autocast(target, precision):
                model(batch)

        stopwatch = _cuda_seconds if target.type == "cuda" else _cpu_seconds
        stopwatch(forward, 1)  # compiles, allocates, chooses kernels: outside the time
        begin = time.perf_counter()
        energy.start()
        once = stopwatch(forward, 1)
        if once >= seconds:
            energy.stop(shape[0])
            return [once]
        while time.perf_counter() - begin < WARM_UP * seconds:
            once = min(once, stopwatch(forward, 1))
        passes = max(1, int((1 - WARM_UP) * seconds / REPEATS / once)) if grouped else 1
        times: list[float] = []
        energy.start()
        while not times or time.perf_counter() - begin + passes * once < seconds:
            times.append(stopwatch(forward, passes) / passes)
        energy.stop(len(times) * passes * shape[0])
        return times


def _cpu_seconds(forward: Callable[[], None], passes: int) -> float:
    begin = time.perf_counter()
    for _ in range(passes):
        forward()
    return time.perf_counter() - begin


def _cuda_seconds(forward: Callable[[], None], passes: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()  # the queue is empty: launching counts, what came before does not
    begin.record()
    for _ in range(passes):
        forward()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3
