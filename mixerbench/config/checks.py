"""Checks of resolved settings that need neither torch nor data: the fast refusals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixerbench.config.schema import PRECISIONS, Data, Settings
from mixerbench.config.sizes import token_grid
from mixers.catalog import Entry
from mixers.plan import check_names, check_prefix, read_plan, spread

_CHOICES = {
    "run.precision": PRECISIONS,
    "protocol.data.source": ("digits", "folder", "cifar10", "cifar100", "synthetic"),
    "protocol.recipe.augmentation.crop": ("resized", "padded"),
    "protocol.recipe.loss.name": ("cross_entropy", "binary_cross_entropy"),
    "protocol.recipe.mixup.mode": ("batch", "pair", "elem"),
    "protocol.recipe.regularization.drop_path_schedule": ("linear", "constant"),
    "protocol.recipe.distillation.kind": ("none", "soft", "hard"),
}

_POSITIVE = (
    "protocol.image_size",
    "protocol.recipe.epochs",
    "protocol.recipe.batch.size",
    "protocol.recipe.batch.micro_batch_size",
    "protocol.recipe.augmentation.repeats",
    "run.threads",
    "run.log_every_steps",
    "run.evaluate_every_epochs",
    "run.checkpoint_every_epochs",
    "run.keep_checkpoints",
    "run.evaluation_batch_size",
    "run.measure_batch_size",
)


def check(settings: Settings, mixers: Mapping[str, Entry]) -> None:
    """Refuse settings that no run could follow.

    Raises:
        ValueError: what came, what fits, what to do.
    """
    for path, choices in _CHOICES.items():
        value = _get(settings, path)
        if value not in choices:
            raise ValueError(f"{path}={value}: choose one of {', '.join(choices)}.")
    for path in _POSITIVE:
        value = _get(settings, path)
        if value < 1:
            raise ValueError(f"{path}={value}: give 1 or more.")
    if not 0 <= settings.run.seed < 2**32:
        raise ValueError(f"run.seed={settings.run.seed}: give a number from 0 to 4294967295.")
    _check_batch(settings)
    _check_model(settings, mixers)


def _get(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


def check_data(data: Data) -> None:
    """Refuse a data set that is not where the settings say.

    Raises:
        ValueError: which folder is missing, and how to name another.
    """
    if data.source != "folder":
        return
    hint = "set protocol.data.root=FOLDER, which holds train/<class>/ and val/<class>/ of images."
    if data.root is None:
        raise ValueError(f"data set {data.name!r} has no root: {hint}")
    for split in ("train", "val"):
        folder = Path(data.root).expanduser() / split
        if not folder.is_dir():
            raise ValueError(f"data set {data.name!r}: there is no folder {folder}: {hint}")
        if not any(child.is_dir() for child in folder.iterdir()):
            raise ValueError(f"data set {data.name!r}: {folder} has no class folders: {hint}")


def _check_batch(settings: Settings) -> None:
    recipe = settings.protocol.recipe
    batch, micro = recipe.batch.size, recipe.batch.micro_batch_size
    if batch % micro:
        raise ValueError(
            f"a batch of {batch} images is not divisible into micro-batches of {micro}: "
            "change protocol.recipe.batch.size or protocol.recipe.batch.micro_batch_size."
        )
    if micro % 2 and (recipe.mixup.mixup or recipe.mixup.cutmix):
        raise ValueError(
            f"mixup pairs the images of a micro-batch, and {micro} is odd: "
            "set protocol.recipe.batch.micro_batch_size to an even number."
        )


def _check_model(settings: Settings, mixers: Mapping[str, Entry]) -> None:
    protocol, model = settings.protocol, settings.model
    plan = read_plan(model["mixer"])
    check_names(plan, list(mixers))
    spread(plan, model["size"]["depth"])
    check_prefix(plan, lambda name: mixers[name].facts, model["backbone"].get("pool", ""))
    sizes = [protocol.image_size, protocol.evaluation.image_size or protocol.image_size]
    grids = [token_grid((size, size), model["stem"]["patch_size"]) for size in sizes]
    if grids[0] != grids[1]:
        for choice in plan:
            if not mixers[choice.name].facts.get("any_grid", True):
                raise ValueError(
                    f"mixer {choice.name!r} runs only on the {grids[0][0]} x {grids[0][1]} tokens "
                    f"that it was trained on, not on {grids[1][0]} x {grids[1][1]}: leave "
                    "protocol.evaluation.image_size out, or choose a mixer that runs on any grid."
                )
