"""The measured peak of a device, which a model's own arithmetic is set against."""

import time
from contextlib import nullcontext
from functools import cache
from types import MappingProxyType
from typing import Final

import torch

from mixerbench.devices import autocast, weight_dtype

SECONDS: Final = 0.15
"""For the measurement, beside the first product, which loads libraries and starts threads."""

_SIDES: Final = MappingProxyType({"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192)})
"""Of the matrices, as far up as the time allows: large ones reach the peak, small ones are quick
where the hardware has no fast product for the precision."""

_REPEATS: Final = 3  # of each size: a shared machine can stop a program for a second


def training_flops(macs: float) -> float:
    """Model FLOPs of forward and backward for so many multiply-adds of a forward pass.

    2 for each forward, 4 backward, for the gradients of both factors: PaLM (arXiv:2204.02311,
    appendix B), whose model FLOPs utilization, MFU, is their share of the peak. What a run
    computes twice, for gradient checkpointing, does not count.
    """
    return 6 * macs


def peak_flops(device: torch.device | str, precision: str) -> float:
    """FLOP/s of a large matrix product on ``device`` under autocast to ``precision``, measured.

    2 FLOPs per multiply-add, on as many threads as torch has now, the best of several products.
    A practical bound: the vendor's figure assumes clocks that a loaded device does not hold, and
    a program that shares its cores gets less of them. Remembered by the process; the first call
    takes up to 0.3 s, and on a GPU the memory of three matrices of 8192 x 8192.

    Raises:
        ValueError: an unknown precision.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return _measured(device, precision, torch.get_num_threads())


def forget() -> None:
    """Let the next call of ``peak_flops`` measure again."""
    _measured.cache_clear()


@cache
def _measured(device: torch.device, precision: str, threads: int) -> float:
    on_cuda = device.type == "cuda"
    draws = torch.Generator(device).manual_seed(0)  # the global one is the training's
    with torch.no_grad(), torch.cuda.device(device) if on_cuda else nullcontext():

        def matrix(side: int, dtype: torch.dtype) -> torch.Tensor:
            # Not zeros: GPUs multiply them with less power, hence at higher clocks.
            return torch.rand(side, side, device=device, dtype=dtype, generator=draws)

        def seconds() -> float:
            start = _now(on_cuda)
            torch.mm(factor, factor)
            return _now(on_cuda) - start

        with autocast(device, precision):
            little = matrix(16, weight_dtype(precision))
            dtype = (little @ little).dtype  # cast once: autocast would cast in every product
        begin, best = _now(on_cuda), 0.0
        for side in _SIDES.get(device.type, _SIDES["cpu"]):
            factor = matrix(side, dtype)
            seconds()
            once = min(seconds() for _ in range(_REPEATS))
            best = max(best, 2 * side**3 / once)
            # The next size does 8 times as much.
            if _now(on_cuda) - begin + (1 + _REPEATS) * 8 * once > SECONDS:
                break
        while _now(on_cuda) - begin + once < SECONDS:
            best = max(best, 2 * side**3 / seconds())
    return best


def _now(on_cuda: bool) -> float:
    if on_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
