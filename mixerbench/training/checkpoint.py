"""Checkpoints: one safetensors file each, all tensors and a JSON header, no code.

A file is written beside its place, flushed to the disk and renamed, so a name that ends
in ``.safetensors`` is always whole.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:  # reading a header needs no torch
    from torch import Tensor

CHECKPOINTS = "checkpoints"
"""The folder of them inside a run's folder."""

_HEADER = "mixerbench"


def save(path: Path, tensors: Mapping[str, "Tensor"], header: Mapping[str, Any]) -> None:
    """Write ``tensors`` and a JSON-able ``header`` atomically."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(_apart(tensors), str(part), metadata={_HEADER: json.dumps(header)})
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _apart(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Contiguous tensors that share no memory, which safetensors would refuse."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.detach().contiguous()
        apart[name] = whole.clone() if place in seen else whole
        seen.add(place)
    return apart


def load(path: Path, device: str = "cpu") -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """The tensors and the header of a file; a file of another program has an empty header.

    Raises:
        ValueError: it is no readable safetensors file.
    """
    from safetensors.torch import load_file

    about = header(path)
    try:
        return load_file(str(path), device=device), about
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def header(path: Path) -> dict[str, Any]:
    """The header alone; empty for a file of another program.

    Raises:
        ValueError: it is no readable safetensors file.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            found: dict[str, Any] = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            return found
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"cannot read the checkpoint {path} ({error}): give a .safetensors file that "
        "mixerbench wrote. Other formats can execute code when they are loaded."
    )


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest step, or None."""
    return max(folder.glob("step-*.safetensors"), default=None)


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.safetensors"


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for path in sorted(folder.glob("step-*.safetensors"))[:-keep]:
        path.unlink()


def with_prefix(prefix: str, tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    start = f"{prefix}."
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
