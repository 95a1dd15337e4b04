"""Devices and number formats."""

import torch

from mixerbench.config.schema import Run
from mixerbench.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one, else the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"run.device={name}: give auto, cpu, cuda or cuda:<number>.") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"run.device={name}: this machine has {count} GPU(s) that torch can use.")
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in ``precision``; weights stay in float32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def grad_scaler(device: torch.device, run: Run) -> torch.amp.GradScaler:
    """Loss scaling, which only fp16 needs; otherwise it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=run.precision == "fp16")
