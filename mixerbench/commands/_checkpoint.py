"""The work of ``mixerbench eval``: the accuracy of weights in a file.

torch is loaded once the settings are known to be good.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboard.text import plain
from mixerbench.config.assignments import key_of
from mixerbench.config.compose import compose
from mixerbench.config.overrides import overrides_of
from mixerbench.config.parts import part_catalog
from mixerbench.config.presets import PARTS
from mixerbench.config.schema import Settings
from mixerbench.config.sizes import read_size
from mixerbench.errors import Refusal, first_line
from mixerbench.objectives import objective_of
from mixerbench.tracking.keys import Artifact
from mixerbench.training import checkpoint
from mixers.core.plan import choices_in, read_plan

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mixerbench.data.images import Images
    from mixerbench.objectives import Evaluation


def evaluate_place(place: str, given: Sequence[str], ema: bool, predictions: str | None) -> str:
    """Evaluate the checkpoint at ``place``; returns the result as a sentence.

    Args:
        given: settings that differ from those that it was trained with.
        ema: the moving average instead of the weights themselves.
        predictions: a Parquet file to write, one row per image.

    Raises:
        Refusal: there is no such checkpoint, or it fits neither model nor data.
    """
    path = find_file(place, ema)
    saved = checkpoint.header(path).get("settings")
    settings = compose(given) if saved is None else _compose_saved(path, saved, given)
    other_source = ""
    if saved and all(settings.model[part] == saved["model"][part] for part in PARTS):
        settings.label = plain(saved.get("label", settings.label))  # a preset's name
        digests = settings.model.get("plugins")
        if digests != saved["model"].get("plugins", digests):  # older files have none
            other_source = ", with other source of its plugins than it was trained with"
    result, images = evaluate_checkpoint(settings, read_weights(path, ema))
    if predictions is not None:
        result.write_predictions(Path(predictions), images)
    return (
        f"{settings.label}{' (EMA)' if ema else ''} on {settings.protocol.name}: "
        f"{objective_of(settings.protocol).summary(result)}{other_source}"
    )


def _compose_saved(path: Path, saved: Any, given: Sequence[str]) -> Settings:
    """The settings in a file's header, with those that are given beside or instead of them.

    The header is data. What it says of plugins is told and not done.

    Raises:
        Refusal: they do not fit this version, or need a plugin that is not given.
    """
    try:
        overrides = overrides_of(saved, given)
        _check_plugins(saved, given)
        return compose([*overrides, *given])
    except (ValueError, Refusal) as error:
        raise Refusal(
            f"{path}: {plain(str(error))} (Settings stand in the file itself; where they do not "
            "fit, give model and protocol here.)"
        ) from None


def _check_plugins(saved: Mapping[str, Any], given: Sequence[str]) -> None:
    """ValueError: a mixer is of a plugin, which is code, and the command line names none."""
    chosen = set(map(key_of, given))
    if chosen & {"plugins", "mixer", "preset"}:
        return
    known = part_catalog("mixer")
    unknown = [
        one.name for one in choices_in(read_plan(saved["model"]["mixer"])) if one.name not in known
    ]
    files = ",".join(
        re.sub(r"[^\w.-]", "_", Path(file).name) for file in saved.get("plugins") or ()
    )
    if unknown and files:
        raise Refusal(
            f"its mixer {unknown[0]!r} is of the plugin {files}, which is code and is run only "
            f"when you name it. If you have it and trust it, add 'plugins=[{files}]'."
        )


def evaluate_checkpoint(
    settings: Settings, tensors: Mapping[str, "Tensor"]
) -> tuple["Evaluation", "Images"]:
    """Build the settings' model, load ``tensors`` into it, run the validation images.

    Raises:
        Refusal: the tensors belong to another model, or the data is not there.
    """
    from mixerbench.data.corrupt import CorruptImages
    from mixerbench.data.loader import eval_loader
    from mixerbench.data.source import images_of
    from mixerbench.devices import choose_device, weight_dtype

    device = choose_device(settings.run.device)
    splits = images_of(settings)
    model = _build(settings, len(splits.train.classes), len(tensors))
    load_weights(model, tensors, settings.label)
    model.to(device, weight_dtype(settings.run.precision))
    loader = eval_loader(splits.val, settings.protocol, settings.run, device)
    corrupt = CorruptImages(splits.val, "val", settings.protocol.data.max_corrupt)
    objective = objective_of(settings.protocol)
    result = objective.evaluate(model, loader, device, settings.run.precision, corrupt=corrupt)
    return result, splits.val


def _build(settings: Settings, num_classes: int, entries: int) -> "nn.Module":
    """A model that the ``entries`` of a file can belong to.

    Raises:
        Refusal: its settings ask for more than that, or than this machine has.
    """
    from mixerbench.models.build import build_model

    blocks = sum(read_size(settings.model["size"]).depths)
    if blocks > entries:  # which nobody would live to see built
        raise Refusal(f"a model of {blocks} blocks has more entries than the file, {entries}.")
    try:
        return build_model(settings, num_classes)
    except (RuntimeError, MemoryError, OverflowError) as error:  # numbers that nothing can have
        raise Refusal(f"no such model can be built here: {first_line(error)}") from None


def find_file(place: str, ema: bool) -> Path:
    """The file of weights at ``place``.

    Args:
        place: a run's folder, or a safetensors file.
        ema: the moving average instead of the weights themselves.

    Raises:
        Refusal: nothing is there.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        path = _file_in(path, ema)
    if not path.is_file():
        raise Refusal(f"there is no checkpoint {path}: give a run's folder or a file.")
    return path


def read_weights(path: Path, ema: bool) -> dict[str, "Tensor"]:
    """The state dict in a file of weights, or in a checkpoint, which has both.

    Raises:
        Refusal: it is no readable safetensors file.
    """
    tensors, _ = checkpoint.load(path)
    return checkpoint.under_prefix("ema" if ema else "model", tensors) or tensors


def load_weights(model: "nn.Module", tensors: Mapping[str, "Tensor"], label: str) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        Refusal: how many entries are missing, left over or of another shape, and which; or
            one holds no numbers that training gives.
    """
    from mixerbench.models.weights import check_numbers

    check_numbers(tensors, model.state_dict())
    try:
        result = model.load_state_dict(dict(tensors), strict=False)
        found = {"missing": result.missing_keys, "left over": result.unexpected_keys}
    except RuntimeError:  # torch raises for shapes even when it is not strict
        own = model.state_dict()
        found = {
            "missing": [name for name in own if name not in tensors],
            "left over": [name for name in tensors if name not in own],
            "of another shape": [
                f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
                for name in own
                if name in tensors and own[name].shape != tensors[name].shape
            ],
        }
    wrong = [
        f"{len(names)} {what} ({plain(names[0])}, ...)" for what, names in found.items() if names
    ]
    if wrong:
        raise Refusal(
            f"the checkpoint is of another model than {label}: {', '.join(wrong)}. "
            "Leave the model settings out to evaluate the one it was trained as."
        )


def _file_in(folder: Path, ema: bool) -> Path:
    final = folder / (Artifact.EMA if ema else Artifact.MODEL)
    if final.is_file():
        return final
    newest = checkpoint.newest(folder / checkpoint.CHECKPOINTS)
    if newest is None:
        raise Refusal(f"{folder} has no weights: give a run's folder, or a safetensors file.")
    return newest
