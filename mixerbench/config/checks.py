"""Checks of resolved settings that need neither torch nor data: the fast refusals."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from mixerbench.config.schema import (
    LAUNCHERS,
    PARALLEL,
    PIXELS,
    PRECISIONS,
    Batch,
    Settings,
    flatten,
)
from mixerbench.config.sizes import halved_grid, token_grid
from mixerbench.config.sources import source_catalog
from mixerbench.errors import Refusal
from mixers.core.catalog import Entry, nearest
from mixers.core.plan import check_names, check_prefix, read_plan, spread

_CHOICES = {
    "run.precision": PRECISIONS,
    "run.parallel": PARALLEL,
    "launcher.name": LAUNCHERS,
    "protocol.data.pixels": PIXELS,
    "protocol.recipe.augmentation.crop": ("resized", "padded"),
    "protocol.recipe.schedule.interval": ("epoch", "step"),
    "protocol.recipe.loss.name": ("cross_entropy", "binary_cross_entropy"),
    "protocol.recipe.mixup.mode": ("batch",),  # timm's other modes take timm's own CutMix box
    "protocol.recipe.regularization.drop_path_schedule": ("linear", "constant"),
    "protocol.recipe.distillation.kind": ("none", "soft", "hard"),
}

_Test = Callable[[Any], bool]


def _from(least: int, most: float) -> tuple[str, _Test]:
    """A slip of a key asks for a million processes: what no machine has is refused too."""
    return f"give {least} or more, up to {most}", lambda value: least <= value <= most


def _above_zero(most: float) -> tuple[str, _Test]:
    return f"give a number above 0, up to {most}", lambda value: 0 < value <= most


_ZERO_OR_MORE: tuple[str, _Test] = ("give 0 or more", lambda value: value >= 0)
_POSITIVE: tuple[str, _Test] = ("give a number above 0", lambda value: value > 0)
_SHARE: tuple[str, _Test] = ("give a number from 0 to 1", lambda value: 0 <= value <= 1)
_BELOW_ONE: tuple[str, _Test] = ("give 0 or more, below 1", lambda value: 0 <= value < 1)
_PER_CHANNEL: tuple[str, _Test] = ("give one number for each of 3 channels", lambda v: len(v) == 3)
_RANGE: tuple[str, _Test] = (
    "give [low, high] above 0",
    lambda value: len(value) == 2 and 0 < value[0] <= value[1],
)
_SHARES: tuple[str, _Test] = (
    "give [low, high] above 0 and up to 1",
    lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= 1,
)

_PIXELS = _from(1, 16384)  # of an image's side
_IMAGES = _from(1, 2**20)  # of a batch
_EPOCHS = 1_000_000
_SIZE = _from(1, 2**16)  # channels, blocks, heads
_STEPS = _from(1, 10**9)
_SECONDS = 24 * 60 * 60
_PROCESSES = 1024  # or threads

_BOUNDS: Mapping[str, tuple[str, _Test]] = {
    "tracking.experiment": ("give a name, or null for the protocol's", lambda value: bool(value)),
    "protocol.name": (
        "give letters, digits, '.', '_' and '-', as it names a folder, and no '.' first",
        lambda value: re.fullmatch(r"[\w-][\w.-]*", value) is not None,
    ),
    "protocol.image_size": _PIXELS,
    "protocol.patch_size": _PIXELS,
    "protocol.data.num_classes": _from(1, 1_000_000),
    "protocol.data.train_images": _from(1, 10**9),
    "protocol.data.val_images": _from(1, 10**9),
    "protocol.data.mean": _PER_CHANNEL,
    "protocol.data.std": (
        "give one number above 0 for each of 3 channels",
        lambda value: len(value) == 3 and min(value) > 0,
    ),
    "protocol.data.max_corrupt": _SHARE,
    "protocol.recipe.epochs": _from(1, _EPOCHS),
    "protocol.recipe.batch.size": _IMAGES,
    "protocol.recipe.batch.micro_batch_size": _IMAGES,
    "protocol.recipe.optimizer.lr": _POSITIVE,
    "protocol.recipe.optimizer.lr_batch_size": _IMAGES,
    "protocol.recipe.optimizer.offset_lr_scale": _POSITIVE,
    "protocol.recipe.optimizer.momentum": _BELOW_ONE,
    "protocol.recipe.optimizer.betas": (
        "give two numbers from 0 to 1",
        lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value),
    ),
    "protocol.recipe.optimizer.eps": _POSITIVE,
    "protocol.recipe.optimizer.weight_decay": _ZERO_OR_MORE,
    "protocol.recipe.optimizer.clip_grad_norm": _POSITIVE,
    "protocol.recipe.schedule.warmup_epochs": _from(0, _EPOCHS),
    "protocol.recipe.schedule.warmup_lr": _ZERO_OR_MORE,
    "protocol.recipe.schedule.min_lr": _ZERO_OR_MORE,
    "protocol.recipe.augmentation.scale": _SHARES,
    "protocol.recipe.augmentation.ratio": _RANGE,
    "protocol.recipe.augmentation.hflip": _SHARE,
    "protocol.recipe.augmentation.color_jitter": _ZERO_OR_MORE,
    "protocol.recipe.augmentation.random_erasing": _SHARE,
    "protocol.recipe.augmentation.random_erasing_count": _from(1, 1000),
    "protocol.recipe.augmentation.repeats": _from(1, 1000),
    "protocol.recipe.mixup.mixup": _ZERO_OR_MORE,
    "protocol.recipe.mixup.cutmix": _ZERO_OR_MORE,
    "protocol.recipe.mixup.prob": _SHARE,
    "protocol.recipe.mixup.switch_prob": _SHARE,
    "protocol.recipe.loss.label_smoothing": _BELOW_ONE,
    "protocol.recipe.regularization.drop_path": _BELOW_ONE,
    "protocol.recipe.regularization.dropout": _BELOW_ONE,
    "protocol.recipe.batch_norm_momentum": (
        "give a number above 0 and up to 1",
        lambda value: 0 < value <= 1,
    ),
    "protocol.recipe.ema.decay": _SHARE,
    "protocol.recipe.distillation.alpha": _SHARE,
    "protocol.recipe.distillation.tau": _POSITIVE,
    "protocol.evaluation.crop_ratio": _above_zero(10),
    "protocol.evaluation.image_size": _PIXELS,
    "run.seed": ("give a number from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "run.device": (
        "give auto, cpu, cuda or cuda:<number>",
        lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None,
    ),
    "run.devices": _from(1, _PROCESSES),
    "run.max_restarts": _from(0, 1_000_000),
    "run.threads": _from(1, _PROCESSES),
    "run.workers": _from(0, _PROCESSES),
    "run.log_every_steps": _STEPS,
    "run.evaluate_every_epochs": _from(1, _EPOCHS),
    "run.checkpoint_every_epochs": _from(1, _EPOCHS),
    "run.checkpoint_every_steps": _STEPS,
    "run.keep_checkpoints": _from(1, 1_000_000),
    "run.evaluation_batch_size": _IMAGES,
    "run.measure_batch_size": _IMAGES,
    "run.measure_seconds": _above_zero(_SECONDS),
    "tracking.upload_every_seconds": _above_zero(_SECONDS),
    "tracking.timeout_seconds": _above_zero(_SECONDS),
    "tracking.flush_seconds": _from(0, _SECONDS),
    "tracking.system_metrics_every_seconds": _above_zero(_SECONDS),
    "launcher.devices": (
        "give the numbers of GPUs, from 0",
        lambda value: min(value, default=0) >= 0,
    ),
    "launcher.jobs": _from(1, 100_000),
    "launcher.nodes": _from(1, 100_000),
    "launcher.minutes": _from(1, 366 * 24 * 60),
    "launcher.warning_seconds": _from(1, 65535),  # as sbatch has it
    "launcher.cpus_per_device": _from(1, _PROCESSES),
    "launcher.memory_gib": _from(1, 1_000_000),
}
"""What a value must be, beyond its type; None, where a setting may be null, always passes."""


def check(settings: Settings, catalogs: Mapping[str, Mapping[str, Entry]]) -> None:
    """Refuse settings that no run could follow.

    Args:
        catalogs: what is registered, by kind: mixer, channel_mixer, merging, ...

    Raises:
        Refusal: what came, what fits, what to do.
    """
    sources = tuple(source_catalog(settings.plugins))
    for path, choices in {"protocol.data.source": sources, **_CHOICES}.items():
        value = _get(settings, path)
        if value not in choices:
            raise Refusal(f"{path}={value}: choose one of {', '.join(choices)}.")
    for path, (hint, fits) in _BOUNDS.items():
        value = _get(settings, path)
        if value is not None and not fits(value):
            raise Refusal(f"{path}={value}: {hint}.")
    for path, value in flatten(dataclasses.asdict(settings)):
        if not _is_number(value):
            raise Refusal(
                f"{path.removeprefix('model.')}={value}: give a number between -1e100 "
                "and 1e100, a whole one between -1e15 and 1e15."
            )
    hint, fits = _SIZE
    for name, value in settings.model["size"].items():
        numbers = value if isinstance(value, list) else [value]
        if name != "name" and not (numbers and all(map(fits, numbers))):
            raise Refusal(f"size.{name}={value}: {hint}.")
    if settings.protocol.data.pixels == "same-law-opencv" and find_spec("cv2") is None:
        raise Refusal(
            "protocol.data.pixels=same-law-opencv needs OpenCV: pip install 'mixerbench[opencv]'."
        )
    _check_batch(settings)
    _check_launcher(settings)
    _check_model(settings, catalogs)


def _is_number(value: Any) -> bool:
    """Not nan, inf, or beyond all reckoning; inside lists and the mappings of a plan too."""
    if isinstance(value, Mapping):
        return all(map(_is_number, value.values()))
    if isinstance(value, list):
        return all(map(_is_number, value))
    if not isinstance(value, (int, float)):
        return True
    most = 1e15 if isinstance(value, int) else 1e100
    return -most < value < most


def _get(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


def check_processes(batch: Batch, processes: int) -> None:
    """Refuse a number of processes that cannot share the virtual ranks of a step evenly.

    Raises:
        Refusal: which numbers can.
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


def _check_model(settings: Settings, catalogs: Mapping[str, Mapping[str, Entry]]) -> None:
    protocol, model = settings.protocol, settings.model
    mixers, backbone, size = catalogs["mixer"], model["backbone"], model["size"]
    for slot in ("channel_mixer", "merging"):
        name = backbone.get(slot)
        if name is not None and name not in catalogs[slot]:
            raise Refusal(f"unknown {slot} {name!r}. {nearest(name, catalogs[slot])}")
    plan = read_plan(model["mixer"])
    check_names(plan, list(mixers))
    if "depths" in size:
        # a class token joins at the last stage
        with_prefix = spread(plan, len(size["depths"]), "stages")[-1:]
    else:
        with_prefix = spread(plan, size["depth"])
    check_prefix(with_prefix, lambda name: mixers[name].facts, backbone.get("pool", ""))
    sizes = [protocol.image_size, protocol.evaluation.image_size or protocol.image_size]
    grids = [token_grid((side, side), model["stem"]["patch_size"]) for side in sizes]
    if catalogs["backbone"][backbone["name"]].facts.get("even_grids"):
        for grid in grids:
            for stage in range(2, len(size["depths"]) + 1):
                grid = halved_grid(*grid, stage)
    if grids[0] != grids[1]:
        parts = [("mixer", choice.name, mixers[choice.name], choice.options) for choice in plan]
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
