"""The folder of a run: what is in it, and how an unfinished one is found again."""

import dataclasses
import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

import yaml
from filelock import AcquireReturnProxy, FileLock, Timeout

from mixerbench.config.schema import Settings, build, fingerprint, protocol_fingerprint
from mixerbench.errors import UserError
from mixerbench.tracking import journal
from mixerbench.tracking.keys import Artifact
from mixerbench.tracking.upload import RUN_FILE


def identity_of(settings: Settings) -> dict[str, Any]:
    """What makes a run this run and no other: a checkpoint and a resume must agree in it."""
    return {
        "protocol_fingerprint": protocol_fingerprint(settings.protocol),
        "model_fingerprint": fingerprint(settings.model),
        "seed": settings.run.seed,
    }


def open_folder(settings: Settings) -> tuple[Path, AcquireReturnProxy[FileLock]]:
    """The folder to train in, and its lock against a second process: a context to leave.

    ``run.resume`` decides: a new folder, the newest unfinished one of these settings, or
    the one that it names. A launch that has been restarted goes on with its own.

    Raises:
        UserError: the named folder holds another run, a finished one, or is in use.
    """
    identity = identity_of(settings)
    folder = _to_continue(settings, identity) or _new_folder(settings, identity)
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder} is being trained by another process: wait for it.") from None
    if not (folder / RUN_FILE).exists():
        _describe(folder, settings, identity)
    (folder / Artifact.CONFIG).write_text(
        yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False)
    )
    return folder, lock


def read_settings(folder: Path) -> Settings:
    """The settings that a run was started with."""
    return build(Settings, yaml.safe_load((folder / Artifact.CONFIG).read_text()))


def _new_folder(settings: Settings, identity: dict[str, Any]) -> Path:
    protocol = f"{settings.protocol.name}-{identity['protocol_fingerprint'][:8]}"
    label = re.sub(r"[^\w.-]", "", settings.label)  # what Hydra reads unquoted in run.resume=
    name = f"{label}-seed{settings.run.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    parent = Path(settings.run.root).expanduser().absolute() / protocol
    for attempt in range(1, 100):
        folder = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}.") from None
        return folder
    raise UserError(f"{parent} has a hundred runs called {name}: remove some.")


def _launch_id() -> str | None:
    """What torch's elastic agent calls this launch, the same after a restart; None without one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name == "none" else name  # torchrun's default, which is nobody's own


def _describe(folder: Path, settings: Settings, identity: dict[str, Any]) -> None:
    protocol = settings.protocol
    content = {
        **identity,
        "uid": uuid.uuid4().hex,
        "launch": _launch_id(),
        "name": f"{settings.label}-seed{settings.run.seed}",
        "label": settings.label,
        "experiment": settings.tracking.experiment or f"mixerbench-{protocol.name}",
        "protocol": protocol.name,
        "description": protocol.description,
    }
    (folder / RUN_FILE).write_text(json.dumps(content, indent=2))


def _to_continue(settings: Settings, identity: dict[str, Any]) -> Path | None:
    root, resume, launch = Path(settings.run.root), settings.run.resume, _launch_id()
    if launch is not None:
        own = _newest_unfinished(root, {**identity, "launch": launch})
        if own is not None:
            return own
    if resume == "never":
        return None
    if resume == "auto":
        return _newest_unfinished(root, identity)
    folder = Path(resume)
    _check_resumable(folder, identity)
    return folder


def _newest_unfinished(root: Path, identity: dict[str, Any]) -> Path | None:
    for path in sorted(
        root.expanduser().absolute().glob(f"*/*/{RUN_FILE}"),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    ):
        content = json.loads(path.read_text())
        same = all(content.get(key) == value for key, value in identity.items())
        if same and not journal.is_finished(path.parent / journal.FILE_NAME):
            return path.parent
    return None


def _check_resumable(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / RUN_FILE
    if not path.is_file():
        raise UserError(
            f"run.resume={folder} is no run's folder: give never, auto, or a folder below run.root."
        )
    content = json.loads(path.read_text())
    for key, value in identity.items():
        if content.get(key) != value:
            raise UserError(
                f"{folder} holds another run: its {key.replace('_', ' ')} is {content.get(key)}, "
                f"these settings give {value}. Use the settings it was started with."
            )
    if journal.is_finished(folder / journal.FILE_NAME):
        raise UserError(f"{folder} is finished: nothing is left to resume.")
