"""The work of ``mixerbench profile``: what a model that was not trained costs, as tables."""

import dataclasses
import json
import shutil
from collections.abc import Iterable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixerbench.config.plugins import load_plugins
from mixerbench.config.schema import Settings
from mixerbench.config.sources import known_classes
from mixerbench.devices import choose_device
from mixerbench.measure.breakdown import Breakdown, OperatorCost, PartCost, break_down
from mixerbench.measure.flops import CONVENTION, count_macs
from mixerbench.measure.model_costs import Measures, measure_model
from mixerbench.models.build import build_model
from mixers.core.conformance import check_mixers

_FALLBACK_CLASSES = 1000  # ImageNet's, where the protocol learns the number from the data
_COLUMNS = 120  # no table is wider, nor wrapped: 100 for names of usual length


def profile(settings: Settings, as_json: bool) -> str:
    """Measure the settings' model at the protocol's resolution.

    Raises:
        Refusal: the model's parts do not fit each other, or a mixer fails a check.
    """
    device = choose_device(settings.run.device)
    torch.set_num_threads(settings.run.threads)
    size = settings.protocol.image_size
    classes = known_classes(settings.protocol.data) or _FALLBACK_CLASSES
    load_plugins(settings)
    model = build_model(settings, classes)
    check_mixers(model)
    how: dict[str, Any] = {
        "num_classes": classes,
        "batch_size": settings.run.measure_batch_size,
        "seconds": settings.run.measure_seconds,
        "precision": settings.run.precision,
        "device": device,
        "macs": count_macs(model, size),
    }
    measures = measure_model(model.to(device), size, **how)
    breakdown = break_down(model, size, **how)
    if as_json:
        content = {"model": settings.label, "image_size": size, "gmacs_convention": CONVENTION}
        content |= dataclasses.asdict(measures)
        return json.dumps(content | {"training_step": dataclasses.asdict(breakdown)}, indent=2)
    console = Console(highlight=False, width=max(shutil.get_terminal_size().columns, _COLUMNS))
    with console.capture() as capture:
        console.print(f"{settings.label} at {size} px, {classes} classes")
        console.print(
            f"one training step of {measures.batch_size} images: forward, cross-entropy, backward\n"
        )
        console.print(_part_table(breakdown))
        console.print()
        console.print(_operator_table(breakdown.operators))
    tables = "\n".join(line.rstrip() for line in capture.get().splitlines())
    return f"{tables}\n\n{_summary(measures, breakdown)}"


def _part_table(breakdown: Breakdown) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("\npart")
    table.add_column("\nkind")
    for heading in ("\nparameters", "\nGMACs", "\nms", "share of\ntime", "activations\nMiB"):
        table.add_column(heading, justify="right")
    table.add_column("share of\npeak", justify="right")
    _add(table, breakdown.parts)
    _add(table, [breakdown.total], "bold")
    if breakdown.blocks:
        count = "the block" if breakdown.blocks == 1 else f"all {breakdown.blocks} blocks"
        table.add_row()
        table.add_row(Text(f"inside {count}", style="bold"))
        _add(table, breakdown.inside_blocks)
    return table


def _add(table: Table, rows: Iterable[PartCost], style: str | None = None) -> None:
    for row in rows:
        table.add_row(
            row.name,
            row.kind,
            f"{row.parameters:,}",
            f"{row.gmacs:.4f}",
            f"{row.forward_ms + row.backward_ms:,.2f}",
            f"{row.time_share:.1%}",
            f"{row.activations_mib:,.2f}",
            f"{row.peak_share:.1%}" if row.gmacs else "-",
            style=style,
        )


def _operator_table(operators: Iterable[OperatorCost]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("\noperator")
    for heading in ("\ncalls", "\nms", "share of\ntime"):
        table.add_column(heading, justify="right")
    for row in operators:
        table.add_row(row.name, f"{row.calls:,}", f"{row.ms:,.2f}", f"{row.time_share:.1%}")
    return table


def _summary(measures: Measures, breakdown: Breakdown) -> str:
    energy = measures.joules_per_image
    return (
        f"{measures.images_per_second.median:,.1f} images/s forward at "
        f"batch {measures.batch_size}, "
        f"{measures.latency_ms.median:.2f} ms for one image, "
        f"{measures.memory_mib:,.0f} MiB peak for a training step of {measures.batch_size} images"
        f"{'' if energy is None else f', {1e3 * energy:,.3g} mJ for one image forward'}\n"
        f"measured peak {breakdown.peak_gflops:,.1f} GFLOP/s (a large matrix product), "
        f"MFU {breakdown.mfu:.1%} (6 FLOPs per multiply-add forward)\n"
        f"on {measures.hardware}\n"
        f"GMACs: 1e9 {CONVENTION}"
    )
