"""Checkpoints: one safetensors file each, all tensors and a JSON header, no code.

A file is written under another name, flushed to the disk and renamed: one whose name ends in
``.safetensors`` was complete when it was written. A checksum of header and tensors finds damage
that came later.
"""

import errno
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mixerbench.errors import Refusal

if TYPE_CHECKING:  # reading a header needs no torch
    from torch import Tensor

CHECKPOINTS = "checkpoints"
"""The folder of them inside a run's folder."""

_HEADER = "mixerbench"
_CHECKSUM = "mixerbench.crc32"
_LONGEST_HEADER = 16_000_000  # characters; ours have some ten thousand


class DamagedError(Refusal):
    """A file that cannot be read, or that has changed since it was written."""


def save(path: Path, tensors: Mapping[str, "Tensor"], header: Mapping[str, Any]) -> None:
    """Write ``tensors`` and a JSON-able ``header`` atomically.

    Raises:
        OSError: there is no room for it; nothing is left of the attempt.
    """
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    apart, text = _apart(tensors), json.dumps(header)
    metadata = {_HEADER: text, _CHECKSUM: _checksum(text, apart)}
    try:
        save_file(apart, str(part), metadata=metadata)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
    except (SafetensorError, OSError) as error:
        part.unlink(missing_ok=True)
        # safetensors has the reason in its words only
        full = "os error 28" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from None
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
        storage = tensor.untyped_storage().data_ptr()
        values = tensor.detach().contiguous()
        apart[name] = values.clone() if storage in seen else values
        seen.add(storage)
    return apart


def _checksum(header: str, tensors: Mapping[str, "Tensor"]) -> str:
    import torch

    crc = zlib.crc32(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def load(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """The tensors and the header of a file; a file of another program has an empty header.

    Raises:
        DamagedError: it is no readable safetensors file, or not what was written.
    """
    from safetensors.torch import load_file

    metadata = _metadata(path)
    text = metadata.get(_HEADER, "{}")
    parsed = _parse_header(path, text)
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    written = metadata.get(_CHECKSUM)
    if written is not None and written != (now := _checksum(text, tensors)):
        raise DamagedError(
            f"the checkpoint {path} is damaged: it was written with checksum {written} and now "
            f"has {now}. Use an earlier one, or a copy."
        )
    return tensors, parsed


def header(path: Path) -> dict[str, Any]:
    """The header alone; empty for a file of another program.

    Raises:
        DamagedError: it is no readable safetensors file.
    """
    return _parse_header(path, _metadata(path).get(_HEADER, "{}"))


def _parse_header(path: Path, text: str) -> dict[str, Any]:
    if len(text) > _LONGEST_HEADER:
        raise _unreadable(path, f"its header of {len(text):,} characters is none of ours")
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(parsed, dict):
        raise _unreadable(path, "its header is no JSON object")
    return parsed


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: object) -> DamagedError:
    return DamagedError(
        f"cannot read the checkpoint {path} ({error}): give a .safetensors file that "
        "mixerbench wrote. Other formats can execute code when they are loaded."
    )


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints, that of the latest step first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest step, or None."""
    return next(iter(newest_first(folder)), None)


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.safetensors"


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for path in newest_first(folder)[keep:]:
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
