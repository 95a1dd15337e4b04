"""``mixerbench import``: an official checkpoint becomes one of mixerbench.

torch is loaded once the settings are known to be good.
"""

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mixerbench.config.compose import compose
from mixerbench.config.presets import official_code
from mixerbench.errors import UserError, as_user_errors, first_line
from mixerbench.training import checkpoint

if TYPE_CHECKING:
    from torch import Tensor

PROTOCOL = "imagenet_deit"  # how the papers evaluate: 224 px, crop ratio 0.875, bicubic


def import_checkpoint(arguments: Sequence[str], ema: bool) -> str:
    """Convert the file of ``checkpoint=``, which holds ``preset=``; returns what was done.

    Args:
        arguments: ``preset=NAME``, ``checkpoint=FILE``, and ``out=FILE`` or not.
        ema: the moving average that the file holds beside the weights.

    Raises:
        UserError: no such preset or file, no code of it, or entries that do not fit, and which.
    """
    given = _read(arguments)
    preset, source = given["preset"], Path(given["checkpoint"]).expanduser()
    out = Path(given.get("out", f"{preset}.safetensors")).expanduser()
    with as_user_errors():
        official_code(preset)
    if not source.is_file():
        raise UserError(f"there is no checkpoint {source}.")
    if out.suffix != ".safetensors":
        raise UserError(f"out={out}: give a name that ends in .safetensors.")
    if out.exists():
        raise UserError(f"{out} exists already: give another name with out=FILE, or remove it.")
    settings = compose([f"preset={preset}", f"protocol={PROTOCOL}"])

    from mixerbench.models import convert_official

    try:
        tensors = convert_official(preset, read_checkpoint(source), ema=ema)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    about = {"settings": dataclasses.asdict(settings), "imported_from": source.name}
    checkpoint.save(out, tensors, about)
    count = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
    return (
        f"{preset}: {len(tensors)} entries, {count:,} numbers, each in its place\n{out}\n"
        f"'mixerbench eval checkpoint={out} data.root=FOLDER' evaluates it as the paper does."
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a ``.safetensors`` file or one of ``torch.save`` holds; nothing in it is executed.

    Objects of other kinds than tensors and plain containers (a training script's arguments,
    its configuration) are replaced by inert ones.

    Raises:
        ValueError: the file cannot be read.
    """
    if path.suffix == ".safetensors":
        tensors: dict[str, Tensor] = checkpoint.load(path)[0]
        return tensors
    import torch

    reader = SimpleNamespace(
        __name__=__name__, Unpickler=_Unpickler, load=lambda file, **kw: _Unpickler(file).load()
    )
    try:
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    except Exception as error:  # a file that is no pickle can make it fail in any way
        reason = first_line(error)
        raise ValueError(f"cannot be read as a checkpoint ({reason}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not a mapping of names to weights.")
    return content


_TENSORS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
}
"""All that a pickle of tensors needs, beside the names of storages, which torch resolves."""


class _Unpickler(pickle.Unpickler):
    """Finds what makes tensors, and for every other name a class that does nothing.

    A pickle can call only what ``find_class`` hands out. torch's own ``weights_only`` reader is
    as safe but refuses mappings of unknown classes, such as the configuration in LIT's files.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TENSORS:
            return super().find_class(module, name)
        return _Inert


class _Inert(dict[Any, Any]):
    """Stands for an object of any other kind: takes everything, keeps nothing of use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


def _read(arguments: Sequence[str]) -> dict[str, str]:
    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in ("preset", "checkpoint", "out") or not equals or not value:
            raise UserError(
                f"import takes preset=NAME, checkpoint=FILE and out=FILE, not {argument!r}."
            )
        given[key] = value
    for key in ("preset", "checkpoint"):
        if key not in given:
            raise UserError(f"import needs {key}=...: 'mixerbench import --help' shows how.")
    return given
