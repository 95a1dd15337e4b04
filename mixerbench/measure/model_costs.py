"""Everything that a model costs, in one call."""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from mixerbench.measure._state import measuring
from mixerbench.measure.energy import EnergyMeter, energy_counter
from mixerbench.measure.flops import MacCount, count_macs
from mixerbench.measure.hardware import hardware_name
from mixerbench.measure.memory import training_step_memory_mib
from mixerbench.measure.speed import Spread, latency_ms, throughput

OWN: Final = "(own)"
"""The row of what belongs to the model itself and to none of its parts."""


@dataclass(frozen=True)
class Measures:
    """What a model costs, and on what it was measured."""

    parameters: int  # trainable
    gmacs: float  # 1e9 multiply-adds of one image, by flops.CONVENTION
    images_per_second: Spread
    latency_ms: Spread
    memory_mib: float
    joules_per_image: float | None  # of the forward passes; None where nothing counts them
    batch_size: int
    hardware: str


@dataclass(frozen=True)
class ModuleRow:
    """One part of a model."""

    name: str
    kind: str
    parameters: int  # trainable
    gmacs: float


def measure_model(
    model: nn.Module,
    image_size: int | tuple[int, int],
    *,
    num_classes: int,
    batch_size: int,
    seconds: float,
    precision: str,
    device: torch.device | str,
    in_chans: int = 3,
    macs: MacCount | None = None,
) -> Measures:
    """Parameters, multiply-adds, speed, memory and energy of ``model`` on ``device``.

    Args:
        seconds: for the throughput, and as many again for the latency.
        macs: those of the model, where they have been counted before.
    """
    macs = macs or count_macs(model, image_size, in_chans)
    hardware = hardware_name(device, precision)
    energy = EnergyMeter(energy_counter(device))
    timing: dict[str, Any] = {"seconds": seconds, "precision": precision, "device": device}
    with measuring(model, training=False, device=device):
        return Measures(
            parameters=count_parameters(model),
            gmacs=macs.total / 1e9,
            images_per_second=throughput(
                model, image_size, batch_size, in_chans=in_chans, energy=energy, **timing
            ),
            latency_ms=latency_ms(model, image_size, in_chans=in_chans, **timing),
            memory_mib=training_step_memory_mib(
                model, image_size, batch_size, num_classes, precision=precision, in_chans=in_chans
            ),
            joules_per_image=energy.joules_per_image,
            batch_size=batch_size,
            hardware=hardware,
        )


def module_rows(model: nn.Module, macs: MacCount) -> list[ModuleRow]:
    """Parameters and multiply-adds of each of the model's ``parts``, out of its count.

    The rows add up to the model: the last one holds what belongs to no part (a class token).
    """
    rows = [
        ModuleRow(name, type(part).__name__, count_parameters(part), macs.by_module[name] / 1e9)
        for name, part in parts(model).items()
    ]
    rest = ModuleRow(
        OWN,
        type(model).__name__,
        count_parameters(model) - sum(row.parameters for row in rows),
        (macs.total - sum(macs.by_module[row.name] for row in rows)) / 1e9,
    )
    return [*rows, rest] if rest.parameters or rest.gmacs else rows


def parts(module: nn.Module) -> dict[str, nn.Module]:
    """The children of ``module`` that compute something, by path; lists of blocks are opened.

    A module without a forward of its own (a stage, which the backbone runs) counts as a list.
    """
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential) or type(child).forward is nn.Module.forward:
            found |= {f"{name}.{path}": part for path, part in parts(child).items()}
        elif not (
            isinstance(child, nn.Identity) or (isinstance(child, _DropoutNd) and not child.p)
        ):
            found[name] = child
    return found


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters; those that are shared count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
