"""What is known of a data set before its images are opened; no torch here.

Which sources there are is read from the decorators in ``mixerbench/data/sources`` and in plugins.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mixerbench.config.schema import Data
from mixerbench.errors import Refusal
from mixers.core.catalog import plugin_path, read_files
from mixers.core.spec import Spec

_HOME = Path(__file__).parents[1] / "data" / "sources"

PACK_FILE = "pack.json"
JOURNAL_FILE = "packing.jsonl"  # instead of it, as long as shards are missing


def source_catalog(plugins: Sequence[str | Path] = ()) -> dict[str, Spec]:
    """Every data source that can be named: the built-in ones, and those of plugin files.

    Raises:
        Refusal: a plugin cannot be read, or two sources have one name.
    """
    return read_files([*sorted(_HOME.glob("*.py")), *map(plugin_path, plugins)], "data")


def has_fact(source: str, fact: str) -> bool:
    """Does a built-in source declare that class attribute as true?"""
    entry = _built_in().get(source)
    return entry is not None and bool(entry.facts.get(fact))


_built_in = cache(source_catalog)  # which do not change while this process lasts


def is_packed(root: Path) -> bool:
    """Does ``root`` hold a packed data set, finished or not?"""
    return any((root / name).is_file() for name in (PACK_FILE, JOURNAL_FILE))


def check_data(data: Data) -> None:
    """Refuse a data set that is not where the settings say, as far as can be seen at once.

    Raises:
        Refusal: which folder is missing, and how to name another.
    """
    if has_fact(data.source, "class_folders"):
        check_class_folders(data)


def check_class_folders(data: Data) -> None:
    """Refuse a root without train/<class>/ and val/<class>/; a packed one is not looked into.

    Raises:
        Refusal: which folder is missing, and how to name another.
    """
    hint = "set protocol.data.root=FOLDER, which holds train/<class>/ and val/<class>/ of images."
    if data.root is None:
        raise Refusal(f"data set {data.name!r} has no root: {hint}")
    if is_packed(Path(data.root).expanduser()):
        return  # what is wrong with it is known when it is opened
    for split in ("train", "val"):
        folder = Path(data.root).expanduser() / split
        if not folder.is_dir():
            raise Refusal(f"data set {data.name!r}: there is no folder {folder}: {hint}")
        if not any(child.is_dir() for child in folder.iterdir()):
            raise Refusal(f"data set {data.name!r}: {folder} has no class folders: {hint}")


def known_classes(data: Data) -> int | None:
    """How many classes there are, without opening the images; None if that is not known yet."""
    if (
        data.num_classes is not None
        or data.root is None
        or not has_fact(data.source, "class_folders")
    ):
        return data.num_classes
    root = Path(data.root).expanduser()
    if (root / PACK_FILE).is_file():
        return len(json.loads((root / PACK_FILE).read_text(encoding="utf-8"))["classes"])
    folder = root / "train"
    if not folder.is_dir():
        return None
    return sum(child.is_dir() for child in folder.iterdir()) or None
