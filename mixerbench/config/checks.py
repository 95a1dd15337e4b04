"""Checks of resolved settings that need neither torch nor data: the fast refusals.

What one setting must be stands at the setting, in `schema.py`; here is what several must be
together.
"""

import dataclasses
from collections.abc import Mapping
from functools import reduce
from importlib.util import find_spec
from typing import Any, Final

from mixerbench.config.quantities import between, choice
from mixerbench.config.rules import Bound, settings_of
from mixerbench.config.schema import Batch, Settings, flatten
from mixerbench.config.sizes import halved_grid, read_size, token_grid
from mixerbench.config.sources import source_catalog
from mixerbench.errors import Refusal
from mixers.core.names import nearest
from mixers.core.plan import assign, check_names, check_prefix, choices_in, read_plan
from mixers.core.spec import Spec

_SIZE: Final = between(1, 2**16)  # channels, blocks, heads


def check(settings: Settings, catalogs: Mapping[str, Mapping[str, Spec]]) -> None:
    """Refuse settings that no run could follow.

    Args:
        catalogs: kind (mixer, channel_mixer, merging, ...) -> name -> what is registered.

    Raises:
        Refusal: names the setting, its value and what is possible.
    """
    for setting in settings_of(Settings):
        value = reduce(getattr, setting.path.split("."), settings)
        _check_bound(setting.path, value, setting.bound)
    source = settings.protocol.data.source
    _check_bound("protocol.data.source", source, choice(*source_catalog(settings.plugins)))
    for path, value in flatten(dataclasses.asdict(settings)):
        if not _is_number(value):
            raise Refusal(
                f"{path.removeprefix('model.')}={value}: give a number between -1e100 "
                "and 1e100, a whole one between -1e15 and 1e15."
            )
    for name, value in settings.model["size"].items():
        numbers = value if isinstance(value, list) else [value]
        if name != "name" and not (numbers and all(map(_SIZE.allows, numbers))):
            raise Refusal(f"size.{name}={value}: {_SIZE.hint}.")
    if settings.protocol.data.pixels == "same-law-opencv" and find_spec("cv2") is None:
        raise Refusal(
            "protocol.data.pixels=same-law-opencv needs OpenCV: pip install 'mixerbench[opencv]'."
        )
    _check_batch(settings)
    _check_launcher(settings)
    _check_model(settings, catalogs)


def _is_number(value: Any) -> bool:
    """False for nan, infinity and what is too large to compute with; looks into lists and plans."""
    if isinstance(value, Mapping):
        return all(map(_is_number, value.values()))
    if isinstance(value, list):
        return all(map(_is_number, value))
    if not isinstance(value, (int, float)):
        return True
    most = 1e15 if isinstance(value, int) else 1e100
    return -most < value < most


def _check_bound(path: str, value: Any, bound: Bound | None) -> None:
    if bound is not None and value is not None and not bound.allows(value):
        raise Refusal(f"{path}={value}: {bound.hint}.")


def check_processes(batch: Batch, processes: int) -> None:
    """Refuse a number of processes that cannot share the virtual ranks of a step evenly.

    Raises:
        Refusal: names the numbers that can.
    """
    virtual_ranks = batch.size // batch.micro_batch_size
    if virtual_ranks % processes:
        fitting = [str(n) for n in range(1, virtual_ranks + 1) if virtual_ranks % n == 0]
        raise Refusal(
            f"{processes} processes cannot share a batch of {batch.size} images in micro-batches "
            f"of {batch.micro_batch_size}: run.devices (times the machines) may be "
            f"{', '.join(fitting)}. Smaller micro-batches (protocol.recipe.batch.micro_batch_size) "
            "are another protocol."
        )


def _check_batch(settings: Settings) -> None:
    recipe = settings.protocol.recipe
    batch, micro = recipe.batch.size, recipe.batch.micro_batch_size
    mixed = bool(recipe.mixup.mixup or recipe.mixup.cutmix)
    if batch % micro:
        raise Refusal(
            f"a batch of {batch} images is not divisible into micro-batches of {micro}: "
            "change protocol.recipe.batch.size or protocol.recipe.batch.micro_batch_size."
        )
    check_processes(recipe.batch, settings.run.devices * settings.launcher.nodes)
    if settings.run.parallel == "fsdp" and settings.run.precision == "fp16":
        raise Refusal(
            "run.precision=fp16 scales its loss, which run.parallel=fsdp does not: use bf16."
        )
    if settings.run.precision == "fp64" and settings.run.measure:
        raise Refusal(
            "run.precision=fp64 is for checking results, not for measuring speed: "
            "set run.measure=false beside it."
        )
    if recipe.loss.name == "binary_cross_entropy" and recipe.loss.label_smoothing and mixed:
        raise Refusal(
            "binary cross-entropy takes every class of a mixture as a target, and label smoothing "
            "puts all classes into it: set protocol.recipe.loss.label_smoothing=0."
        )
    if micro % 2 and mixed:
        raise Refusal(
            f"mixup pairs the images of a micro-batch, and {micro} is odd: "
            "set protocol.recipe.batch.micro_batch_size to an even number."
        )


def _check_launcher(settings: Settings) -> None:
    run, launcher = settings.run, settings.launcher
    if launcher.nodes > 1 and launcher.name != "slurm":
        raise Refusal(
            f"launcher.nodes={launcher.nodes} needs launcher=slurm; without SLURM start "
            "'torchrun --nnodes=... -m mixerbench train ...' on each machine."
        )
    for option in launcher.options:
        if not option.startswith("--"):
            raise Refusal(
                f"launcher.options={launcher.options}: give sbatch's own options, "
                """'launcher.options=["--qos=high"]'."""
            )
    if launcher.devices is not None and len(launcher.devices) < run.devices:
        raise Refusal(
            f"launcher.devices={launcher.devices} are fewer than run.devices={run.devices} of "
            "one run: name more GPUs, or set run.devices lower."
        )


def _check_model(settings: Settings, catalogs: Mapping[str, Mapping[str, Spec]]) -> None:
    protocol, model = settings.protocol, settings.model
    mixers, backbone, size = catalogs["mixer"], model["backbone"], model["size"]
    facts = catalogs["backbone"][backbone["name"]].facts
    for slot in facts["slots"]:
        name = backbone[slot]
        if name not in catalogs[slot]:
            raise Refusal(f"unknown {slot} {name!r}. {nearest(name, catalogs[slot])}")
    plan = read_plan(model["mixer"])
    check_names(plan, list(mixers))
    for own in choices_in(plan):
        mixers[own.name].check_options(own.options)
    for kind in ("stem", "backbone"):
        given = {key: value for key, value in model[kind].items() if key != "name"}
        catalogs[kind][model[kind]["name"]].check_options(given)
    depths = read_size(size).depths
    with_prefix = assign(plan, depths)[-1]  # a class token joins at the last stage
    check_prefix(with_prefix, lambda name: mixers[name].facts, backbone.get("pool", ""))
    sizes = [protocol.image_size, protocol.evaluation.image_size or protocol.image_size]
    grids = [token_grid((side, side), model["stem"]["patch_size"]) for side in sizes]
    if facts["even_grids"]:
        for grid in grids:
            for stage in range(2, len(depths) + 1):
                grid = halved_grid(*grid, stage)
    if grids[0] != grids[1]:
        parts = [
            ("mixer", choice.name, mixers[choice.name], choice.options)
            for choice in choices_in(plan)
        ]
        if "channel_mixer" in backbone:
            name = backbone["channel_mixer"]
            parts.append(("channel_mixer", name, catalogs["channel_mixer"][name], {}))
        for kind, name, entry, options in parts:
            tied = any(options.get(option) for option in entry.facts.get("grid_options", ()))
            if tied or not entry.facts.get("any_grid", True):
                raise Refusal(
                    f"{kind} {name!r} runs only on the {grids[0][0]} x {grids[0][1]} tokens "
                    f"that it was trained on, not on {grids[1][0]} x {grids[1][1]}: leave "
                    f"protocol.evaluation.image_size out, or choose a {kind} that runs on any grid."
                )
