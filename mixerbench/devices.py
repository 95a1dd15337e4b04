"""Devices and number formats."""

from types import MappingProxyType

import torch

from mixerbench.config.schema import PRECISIONS, Run
from mixerbench.errors import Refusal

_DTYPES = MappingProxyType(
    dict(
        zip(PRECISIONS, (torch.float32, torch.bfloat16, torch.float16, torch.float64), strict=True)
    )
)


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one, else the CPU.

    Raises:
        Refusal: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise Refusal(f"run.device={name}: this machine has {count} GPU(s) that torch can use.")
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in ``precision``; weights are in ``weight_dtype``.

    Raises:
        Refusal: an unknown precision.
    """
    check_precision(precision)
    half = _DTYPES[precision].itemsize < 4
    return torch.autocast(device.type, _DTYPES[precision] if half else None, enabled=half)


def weight_dtype(precision: str) -> torch.dtype:
    """Of weights, images and optimizer state: float64 for fp64, else float32."""
    return torch.float64 if precision == "fp64" else torch.float32


def check_precision(precision: str) -> None:
    """Refuse a precision that is none.

    Raises:
        Refusal: names the known ones.
    """
    if precision not in PRECISIONS:
        raise Refusal(f"unknown precision {precision!r}. Known: {', '.join(PRECISIONS)}.")


def grad_scaler(device: torch.device, run: Run) -> torch.amp.GradScaler:
    """Loss scaling, which only fp16 needs; otherwise it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=run.precision == "fp16")
