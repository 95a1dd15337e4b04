"""An official checkpoint becomes one of mixerbench. torch is loaded once the settings are good."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.text import plain
from mixerbench.commands._foreign import read_checkpoint
from mixerbench.config.compose import compose
from mixerbench.config.presets import official_code
from mixerbench.errors import Refusal
from mixerbench.training import checkpoint

if TYPE_CHECKING:
    from torch import Tensor

PROTOCOL = "imagenet_deit"  # how the papers evaluate: 224 px, crop ratio 0.875, bicubic


def import_checkpoint(preset: str, file: str, out_file: str | None, ema: bool) -> str:
    """Convert the ``file``, which holds the model ``preset``; returns what was done.

    Args:
        out_file: where to; the default is ``<preset>.safetensors`` in the working folder.
        ema: the moving average that the file holds beside the weights.

    Raises:
        Refusal: no such preset or file, no code of it, or entries that do not fit, and which.
    """
    source = Path(file).expanduser()
    out = Path(out_file or f"{preset}.safetensors").expanduser()
    official_code(preset)
    if not source.is_file():
        what = "is a folder: give the file in it" if source.is_dir() else "is no file"
        raise Refusal(f"there is no checkpoint {source}: it {what}.")
    if out.suffix != ".safetensors":
        raise Refusal(f"out={out}: give a name that ends in .safetensors.")
    if out.exists():
        raise Refusal(f"{out} exists already: give another name with out=FILE, or remove it.")
    settings = compose([f"preset={preset}", f"protocol={PROTOCOL}"])

    from mixerbench.models import convert_official

    try:
        content = read_checkpoint(source)
        tensors = convert_official(preset, content, ema=ema)
        _check_sizes(tensors, source)
    except (ValueError, OSError) as error:
        raise Refusal(f"{source}: {plain(str(error))}") from None
    about = {"settings": dataclasses.asdict(settings), "imported_from": source.name}
    checkpoint.save(out, tensors, about)
    count = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
    return (
        f"{preset}: {len(tensors)} entries, {count:,} numbers, each in its place\n{out}\n"
        f"'mixerbench eval checkpoint={out} data.root=FOLDER' evaluates it as the paper does."
    )


def _check_sizes(tensors: Mapping[str, "Tensor"], source: Path) -> None:
    """ValueError: one number, said to stand for many; nobody publishes weights so."""
    size = source.stat().st_size
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > size and tensor.numel() > 1:
            raise ValueError(f"{name} declares more numbers than the file holds.")
