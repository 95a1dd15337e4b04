"""Checkpoints as others publish them, read without running anything that stands in them."""

import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mixerbench.errors import first_line
from mixerbench.training import checkpoint

if TYPE_CHECKING:
    from torch import Tensor


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a safetensors file or one of ``torch.save`` holds; nothing in it is executed.

    Objects of other kinds than tensors and plain containers (a training script's arguments,
    its configuration) are replaced by inert ones.

    Raises:
        ValueError: it holds something else than weights, or cannot be read.
    """
    _check_kind(path)
    if _is_safetensors(path):
        tensors: dict[str, Tensor] = checkpoint.load(path)[0]
        return tensors
    import torch

    reader = SimpleNamespace(
        __name__=__name__, Unpickler=_Unpickler, load=lambda file, **kw: _Unpickler(file).load()
    )
    try:
        with open(path, "rb") as file:  # of a path, torch would look at the suffix
            content = torch.load(file, map_location="cpu", weights_only=False, pickle_module=reader)
    except Exception as error:  # a file that is no pickle can make it fail in any way
        reason = first_line(error)
        raise ValueError(f"cannot be read as a checkpoint ({reason}).") from None
    if isinstance(content, _Inert):
        raise ValueError(f"holds a whole pickled object, which is code. {_WEIGHTS_ONLY}")
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not a mapping of names to weights.")
    return content


_WEIGHTS_ONLY = "Give the weights alone: torch.save(model.state_dict(), FILE)."

_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch.save began a file before version 1.6: its own magic number, pickled."""

_ZIP = b"PK\x03\x04"

_OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with 'git lfs pull'",
    b"<": "a web page: the download has failed",
    b"{": "JSON text",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
    b"\x89HDF": "an HDF5 file, such as of Keras",
    b"\x93NUMPY": "an array of NumPy",
    b"\x08": "an ONNX model, or another protocol buffer",
    b"\x80": "a pickle that torch.save did not write",
}
"""What is taken for a checkpoint by mistake, by its first bytes."""


def _check_kind(path: Path) -> None:
    """Decide by content, before torch sees the file: its loader runs what a program holds.

    Raises:
        ValueError: it is neither safetensors nor weights that torch.save wrote; what it is.
    """
    with open(path, "rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        raise ValueError("is empty.")
    if _is_safetensors(path) or start.startswith(_OLD_TORCH):
        return
    if start.startswith(_ZIP):
        _check_zip(path)
        return
    if start[257:262] == b"ustar":
        raise ValueError("is a tar archive: unpack it first.")
    found = next((what for magic, what in _OTHERS.items() if start.startswith(magic)), None)
    raise ValueError(
        f"cannot be read as a checkpoint: it is {found or 'of no known kind'}. "
        "Expected safetensors, or weights that torch.save wrote."
    )


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(1) == b"{" and length <= path.stat().st_size - 8


def _check_zip(path: Path) -> None:
    """Weights as torch.save packs them: a pickle and bare numbers, no code, nothing compressed.

    Raises:
        ValueError: it is another archive, above all TorchScript, whose loader runs it.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if not any(entry.filename.endswith("/data.pkl") for entry in entries):
            raise ValueError("none that torch.save wrote")
        # torch's own reader decides by its own listing, and two readers may see two archives.
        names = [str(name) for name in torch._C.PyTorchFileReader(str(path)).get_all_records()]
    except (zipfile.BadZipFile, RuntimeError, ValueError, OSError, NotImplementedError) as error:
        raise ValueError(f"is no zip archive of weights ({first_line(error)}).") from None
    inner = {entry.filename.partition("/")[2] for entry in entries} | set(names)
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise ValueError(f"is a TorchScript archive, which holds a program. {_WEIGHTS_ONLY}")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("is a compressed archive, and torch.save compresses nothing.")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("declares more than the file holds.")


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
