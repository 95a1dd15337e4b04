"""``mixerbench profile``: the measures of a model that was not trained."""

import dataclasses
import json

import torch
from rich.console import Console
from rich.table import Table

from mixerbench.config.checks import known_classes
from mixerbench.config.schema import Settings
from mixerbench.devices import choose_device
from mixerbench.errors import as_user_errors
from mixerbench.measure.flops import CONVENTION
from mixerbench.measure.profile import by_module, measure_model
from mixerbench.training.loop import build_model
from mixers import load_plugin

_FALLBACK_CLASSES = 1000  # ImageNet's, where the protocol learns the number from the data


def profile(settings: Settings, as_json: bool) -> str:
    """Measure the settings' model at the protocol's resolution.

    Raises:
        UserError: the model's parts do not fit each other.
    """
    device = choose_device(settings.run.device)
    torch.set_num_threads(settings.run.threads)
    size = settings.protocol.image_size
    classes = known_classes(settings.protocol.data) or _FALLBACK_CLASSES
    with as_user_errors():
        for plugin in settings.plugins:
            load_plugin(plugin)
        model = build_model(settings, classes).to(device)
    measures = measure_model(
        model,
        size,
        num_classes=classes,
        batch_size=settings.run.measure_batch_size,
        seconds=settings.run.measure_seconds,
        precision=settings.run.precision,
        device=device,
    )
    if as_json:
        content = {"model": settings.label, "image_size": size, "gmacs_convention": CONVENTION}
        return json.dumps(content | dataclasses.asdict(measures), indent=2)
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    table.add_column("kind")
    table.add_column("parameters", justify="right")
    table.add_column("GMACs", justify="right")
    for row in by_module(model, size):
        table.add_row(row.name, row.kind, f"{row.parameters:,}", f"{row.gmacs:.4f}")
    table.add_row("total", "", f"{measures.parameters:,}", f"{measures.gmacs:.4f}", style="bold")
    energy = measures.joules_per_image
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(f"{settings.label} at {size} px, {classes} classes\n")
        console.print(table)
    return (
        f"{capture.get()}\n"
        f"{measures.images_per_second.median:,.1f} images/s forward at "
        f"batch {measures.batch_size}, "
        f"{measures.latency_ms.median:.2f} ms for one image, "
        f"{measures.memory_mib:,.0f} MiB peak for a training step of {measures.batch_size} images"
        f"{'' if energy is None else f', {1e3 * energy:,.3g} mJ for one image forward'}\n"
        f"on {measures.hardware}\n"
        f"GMACs: 1e9 {CONVENTION}"
    )
