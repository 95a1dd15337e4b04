"""The work of ``mixerbench reproduce``: the papers' models, counted, beside what was published."""

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from mixerbench.config.presets import PRESETS, TWICE, Preset, find_preset
from mixerbench.errors import Refusal
from mixerbench.measure.flops import CONVENTION, count_macs, macs_by_formula, on_cpu
from mixerbench.measure.model_costs import count_parameters
from mixerbench.models import create_model

IMAGE_SIZE = 224  # pixels; of every published figure

FORMATS = ("terminal", "markdown", "json")


@dataclass(frozen=True)
class Row:
    """One preset: what it has here, and what its paper says. Differences are relative."""

    preset: str
    parameters: int
    counted_parameters: int  # those that the paper counts
    published_parameters: str  # millions
    parameters_agree: bool  # to the published digit
    gmacs: float  # executed, by measure.flops.CONVENTION
    gflops: float  # by the paper's convention
    published_gflops: str
    convention: str
    gflops_difference: float | None
    gflops_agree: bool  # to the published digit
    published_top1: str
    note: str


def reproduce(names: Sequence[str], format: str) -> str:
    """The table of the presets in ``names``, of all if there are none.

    Raises:
        Refusal: no such preset, or no such format.
    """
    if format not in FORMATS:
        raise Refusal(f"--format {format}: choose one of {', '.join(FORMATS)}.")
    presets = {name: find_preset(name) for name in names} if names else dict(PRESETS)
    progress = track(presets.items(), "counting", console=Console(stderr=True), transient=True)
    rows = [row(name, preset) for name, preset in progress]
    if format == "json":
        return json.dumps([dataclasses.asdict(one) for one in rows], indent=2)
    return markdown(rows) if format == "markdown" else _terminal(rows)


def row(name: str, preset: Preset) -> Row:
    """Build the model, count it, and set the published figures beside it."""
    with torch.device("meta"):  # no time for random numbers that nothing reads
        model = create_model(preset=name)
    count = count_macs(on_cpu(model), IMAGE_SIZE)
    parameters = counted = count_parameters(model)
    if not preset.with_classifier:
        counted -= count_parameters(model.head)
    by_formula = macs_by_formula(model, count)
    gflops = (2 if preset.convention == TWICE else 1) * by_formula / 1e9
    published = float(preset.flops) if preset.flops else None
    return Row(
        preset=name,
        parameters=parameters,
        counted_parameters=counted,
        published_parameters=preset.parameters,
        parameters_agree=agrees(counted / 1e6, preset.parameters, down=not preset.with_classifier),
        gmacs=count.total / 1e9,
        gflops=gflops,
        published_gflops=preset.flops,
        convention=preset.convention,
        gflops_difference=None if published is None else gflops / published - 1,
        gflops_agree=agrees(gflops, preset.flops),
        published_top1=preset.top1,
        note=preset.note,
    )


def agrees(value: float, published: str, *, down: bool = False) -> bool:
    """Is ``value``, rounded to as many digits, what was published? ``down``: rounded down."""
    digits = len(published.partition(".")[2])
    shifted = value * 10**digits
    rounded = math.floor(shifted) if down else math.floor(shifted + 0.5)
    return f"{rounded / 10**digits:.{digits}f}" == published


_HEADER = (
    "preset",
    "parameters",
    "M",
    "published M",
    "GFLOPs",
    "published GFLOPs",
    "difference",
    "counted in",
    "published top-1",
)


def _cells(row: Row) -> Iterable[str]:
    difference = row.gflops_difference
    return (
        row.preset,
        f"{row.parameters:,}",
        f"{row.counted_parameters / 1e6:.3f}" + (" =" if row.parameters_agree else " !"),
        row.published_parameters,
        f"{row.gflops:.3f}",
        row.published_gflops or "-",
        "-" if difference is None else f"{difference:+.1%}" + (" =" if row.gflops_agree else " !"),
        row.convention,
        row.published_top1 or "-",
    )


def _notes(rows: Sequence[Row]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for one in rows:
        if one.note:
            notes.setdefault(one.note, []).append(one.preset)
    return [
        f"{IMAGE_SIZE} px, 1000 classes. '=': equal to the published digit; '!': not equal. M: "
        "millions of parameters, LIT's without the classifier and rounded down, as published.",
        f"GFLOPs: 1e9 {CONVENTION}. SASA's paper counts 2 for each, and a window of 7 x 7 for "
        "q·k, q·r and the values of every position, border or not.",
        "Top-1 on ImageNet-1k is the papers', held out: of a part of the training set. It was not "
        "measured.",
        *(f"{', '.join(presets)}: {note}." for note, presets in notes.items()),
    ]


def _terminal(rows: Sequence[Row]) -> str:
    table = Table(box=None, pad_edge=False)
    for column in _HEADER:
        table.add_column(column, justify="left" if column in ("preset", "counted in") else "right")
    for one in rows:
        table.add_row(*map(Text, _cells(one)))
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    console = Console(highlight=False, width=columns)
    with console.capture() as capture:
        console.print(table)
        for note in _notes(rows):
            console.print(Text(f"\n{note}"))
    return capture.get().rstrip()


def markdown(rows: Sequence[Row]) -> str:
    """The table as the README carries it."""
    lines = ["| " + " | ".join(_HEADER) + " |", "|---" + "|---:" * 6 + "|---|---:|"]
    lines += ["| " + " | ".join(_cells(one)) + " |" for one in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(rows))])
