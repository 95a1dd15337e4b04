"""The files of a packed data set: their names, columns and descriptions."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from mixerbench.config.sources import JOURNAL_FILE, PACK_FILE
from mixerbench.data.decode import printable, reason_of
from mixerbench.errors import Refusal

FORMAT = 2
READABLE = (1, FORMAT)  # 1 did not say how large the folder's files were
SPLITS = ("train", "val")

FILE, JPEG, RAW, UNREADABLE = "file", "jpeg", "raw", "unreadable"
"""Kinds of rows: the original file's bytes; a JPEG made when packing; pixels, (height, width, 3)
of uint8; no image but the reason for that, in UTF-8."""

ROW = (
    pa.field("name", pa.binary()),  # the path in the split's folder; not always UTF-8
    pa.field("target", pa.int32()),
    pa.field("kind", pa.string()),
    pa.field("height", pa.int32()),  # a file's as its header says, before the EXIF tag turns it
    pa.field("width", pa.int32()),
    pa.field("crc32", pa.uint32()),  # of the image's bytes
)
SHARD_SCHEMA = pa.schema([*ROW, pa.field("image", pa.large_binary())])
INDEX_SCHEMA = pa.schema(
    [
        *ROW,
        pa.field("shard", pa.int32()),
        pa.field("row", pa.int32()),
        pa.field("offset", pa.int64()),  # of the image's bytes in the shard's file
        pa.field("length", pa.int64()),
    ]
)

METADATA_KEY: Final = b"mixerbench.pack"
"""The key of a shard's metadata: JSON that says what was packed, how, and which part is here."""


def description_of(settings: Mapping[str, Any]) -> str | None:
    """What packing did to the training images' pixels; None if they stay equal."""
    if settings["short_side"] is None:
        return None
    resized = f"short_side={settings['short_side']}"
    if settings["quality"] is not None:
        resized += f" jpeg quality={settings['quality']} {settings['subsampling']}"
    return f"{resized} {settings['interpolation']}"


@contextmanager
def refusing_malformed(root: Path) -> Iterator[None]:
    """Turn every error that a malformed ``pack.json`` or index can cause into one line.

    Raises:
        Refusal: instead of that error.
    """
    try:
        yield
    except (pa.ArrowException, LookupError, TypeError, AttributeError, json.JSONDecodeError) as e:
        raise Refusal(
            f"{root / PACK_FILE} or a file beside it is not as it was written "
            f"({type(e).__name__}: {printable(str(e))}): pack the images again, into another "
            "folder."
        ) from None


def read_manifest(root: Path) -> dict[str, Any]:
    """The content of ``pack.json``.

    Raises:
        Refusal: it is not there, not readable, or of another version.
    """
    try:
        manifest = json.loads((root / PACK_FILE).read_text())
    except FileNotFoundError:
        if (root / JOURNAL_FILE).is_file():
            raise Refusal(
                f"{root} is not packed to its end: run the same 'mixerbench pack' again."
            ) from None
        raise Refusal(f"{root} is no packed data set: it has no {PACK_FILE}.") from None
    except (OSError, ValueError) as error:
        raise Refusal(f"{root / PACK_FILE} cannot be read ({reason_of(error)}).") from None
    if not isinstance(manifest, dict) or manifest.get("format") not in READABLE:
        version = manifest.get("format") if isinstance(manifest, dict) else None
        raise Refusal(
            f"{root} is packed in format {version}, and this version of mixerbench reads "
            f"{' and '.join(map(str, READABLE))}: pack it again."
        )
    return manifest
