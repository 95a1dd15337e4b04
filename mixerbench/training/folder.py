"""The folder of a run: what is in it, and how an unfinished one is found again."""

import dataclasses
import json
import re
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import AcquireReturnProxy, FileLock, Timeout

from mixerbench.config.presets import PARTS
from mixerbench.config.schema import (
    Protocol,
    Settings,
    build,
    fingerprint,
    protocol_fingerprint,
)
from mixerbench.errors import Refusal, first_line
from mixerbench.files import file_sha256, write_whole
from mixerbench.tracking import journal
from mixerbench.tracking.keys import Artifact
from mixerbench.tracking.passwords import masked
from mixerbench.tracking.upload import RUN_FILE, Upload
from mixerbench.training.launch import launch_id, may_be_a_restart

if TYPE_CHECKING:
    from torch import nn

    from mixerbench.data.images import Splits

_LOCK = ".lock"
_MODEL = "model_fingerprint"  # of an identity
_PROTOCOL = "protocol_fingerprint"


def complete(protocol: Protocol, splits: "Splits", teacher: "nn.Module | None" = None) -> None:
    """Fill in what depends on data and teacher; after this the fingerprint is final.

    Args:
        teacher: the recipe's, if it is loaded already: pretrained weights change with timm.

    Raises:
        Refusal: there is no teacher checkpoint, or no such teacher.
    """
    data, distillation = protocol.data, protocol.recipe.distillation
    data.num_classes = len(splits.train.classes)
    data.digest = splits.digest()
    data.packed = splits.packed
    data.content = splits.content
    if distillation.kind == "none":
        return
    if distillation.teacher_checkpoint is None:
        from mixerbench.models.weights import weights_digest
        from mixerbench.objectives import objective_of

        teacher = teacher or objective_of(protocol).create_teacher(
            protocol.recipe, data.num_classes
        )
        assert teacher is not None  # there is a kind of distillation
        distillation.teacher_digest = weights_digest(teacher.state_dict())
    else:
        path = Path(distillation.teacher_checkpoint).expanduser()
        if not path.is_file():
            raise Refusal(f"there is no teacher checkpoint {path}.")
        distillation.teacher_digest = file_sha256(path)[:16]


def identity_of(settings: Settings) -> dict[str, Any]:
    """What tells a run from all others: a checkpoint is resumed only by a run of the same identity.

    Final once the protocol is ``complete``.
    """
    return {
        _PROTOCOL: protocol_fingerprint(settings.protocol),
        _MODEL: fingerprint(settings.model),
        "seed": settings.run.seed,
    }


def header_of(settings: Settings) -> dict[str, Any]:
    """What the header of each of a run's checkpoints says of it; passwords are masked."""
    return {
        "identity": identity_of(settings),
        "settings": masked(dataclasses.asdict(settings)),
    }


def open_folder(settings: Settings) -> tuple[Path, AcquireReturnProxy[FileLock]]:
    """The folder to train in, and its lock against a second process: a context to leave.

    ``run.resume`` decides: a new folder, the newest unfinished one of these settings, or the one
    that it names. A launch that was restarted continues its own folder. A finished folder is
    opened only if its upload to MLflow is incomplete.

    Raises:
        Refusal: the named folder holds another run, a finished one, or is in use.
    """
    identity = identity_of(settings)
    folder = _to_continue(settings, identity) or _new_folder(settings, identity)
    try:
        lock = FileLock(folder / _LOCK).acquire(timeout=0)
    except Timeout:
        raise Refusal(f"{folder} is being trained by another process: wait for it.") from None
    if is_finished(folder):  # only its upload is left
        return folder, lock
    for part in folder.rglob("*.part"):  # of a process that was killed
        part.unlink()
    if not (folder / RUN_FILE).exists():
        _describe(folder, settings, identity)
    text = yaml.safe_dump(masked(dataclasses.asdict(settings)), sort_keys=False)
    write_whole(folder / Artifact.CONFIG, text)
    return folder, lock


def find_folders(root: str, identities: Sequence[dict[str, Any]]) -> list[list[Path]]:
    """The folders below ``root`` (run.root) that hold a run, for each identity; newest first."""
    paths = Path(root).expanduser().absolute().glob(f"*/*/{RUN_FILE}")
    there = [path for path in paths if path.is_file()]
    newest_first = sorted(there, key=lambda path: path.stat().st_mtime, reverse=True)
    folders: list[list[Path]] = [[] for _ in identities]
    for path in newest_first:
        content = _identity_in(path)
        for of_identity, identity in zip(folders, identities, strict=True):
            if all(content.get(key) == value for key, value in identity.items()):
                of_identity.append(path.parent)
    return folders


_reported: set[Path] = set()


def _identity_in(path: Path) -> dict[str, Any]:
    """The content of a run.json; {} if a crash has damaged it, which is printed once."""
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return content
        reason = "no mapping"
    except (OSError, ValueError, RecursionError) as error:
        reason = first_line(error)
    if path not in _reported:
        _reported.add(path)
        print(f"mixerbench: {path} is set aside, it is damaged ({reason}).", file=sys.stderr)
    return {}


def is_finished(folder: Path) -> bool:
    """Did the run come to its end?"""
    return journal.is_finished(folder / journal.FILE_NAME)


def is_free(folder: Path, wait_seconds: float = 0) -> bool:
    """Does no process train in the folder, now or after so many seconds at most?"""
    try:
        with FileLock(folder / _LOCK).acquire(timeout=wait_seconds):
            return True
    except Timeout:
        return False


def read_settings(folder: Path) -> Settings:
    """The settings that a run was started with; a password in them was masked.

    Raises:
        ValueError, TypeError: the file is damaged.
    """
    path = folder / Artifact.CONFIG
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise Refusal(f"{path} is damaged ({first_line(error)}).") from None
    if not isinstance(content, dict):
        raise Refusal(f"{path} is damaged: it holds no settings.")
    return build(Settings, content)


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
            raise Refusal(f"cannot make the folder {folder}: {error.strerror}.") from None
        return folder
    raise Refusal(f"{parent} has a hundred runs called {name}: remove some.")


def _describe(folder: Path, settings: Settings, identity: dict[str, Any]) -> None:
    protocol = settings.protocol
    content = {
        **identity,
        "uid": uuid.uuid4().hex,
        "launch": launch_id(),
        "name": f"{settings.label}-seed{settings.run.seed}",
        "label": settings.label,
        "experiment": settings.tracking.experiment or f"mixerbench-{protocol.name}",
        "protocol": protocol.name,
        "description": protocol.description,
    }
    write_whole(folder / RUN_FILE, json.dumps(content, indent=2))


def _to_continue(settings: Settings, identity: dict[str, Any]) -> Path | None:
    resume = settings.run.resume
    if may_be_a_restart():
        own = _newest_unfinished(settings, {**identity, "launch": launch_id()})
        if own is not None:
            return own
    if resume == "never":
        return None
    if resume == "auto":
        unfinished = _newest_unfinished(settings, identity)
        if unfinished is None:
            _say_why_not_continued(settings, identity)
        return unfinished
    folder = Path(resume)
    _check_resumable(folder, settings, identity)
    return folder


def _newest_unfinished(settings: Settings, identity: dict[str, Any]) -> Path | None:
    """The newest run whose training is not finished, else the newest if its upload is not.

    A process that was killed between training and upload has nothing left to train.
    """
    (folders,) = find_folders(settings.run.root, [identity])
    for folder in folders:
        if not is_finished(folder):
            return folder
    return next((folder for folder in folders[:1] if not _is_uploaded(folder, settings)), None)


def _is_uploaded(folder: Path, settings: Settings) -> bool:
    return settings.tracking.offline or Upload(folder, settings.tracking).is_complete()


def _say_why_not_continued(settings: Settings, identity: dict[str, Any]) -> None:
    """Name an unfinished run that the user may have meant, and what has changed since."""
    for key, reason in ((_MODEL, _plugins_changed), (_PROTOCOL, _images_changed)):
        others = {name: value for name, value in identity.items() if name != key}
        (folders,) = find_folders(settings.run.root, [others])
        for folder in folders:
            if not is_finished(folder) and (change := reason(folder, settings)):
                print(
                    f"mixerbench: {folder} is unfinished, but {change}: a new run begins.",
                    file=sys.stderr,
                )
                return


def _plugins_changed(folder: Path, settings: Settings) -> str | None:
    changed = _only_plugins_differ(folder, settings)
    return "the source of its plugins was another" if changed else None


def _images_changed(folder: Path, settings: Settings) -> str | None:
    """How its images differ from those of these settings; None if more differs, or nothing."""
    try:
        before = read_settings(folder).protocol.data
    except Exception:  # of a damaged file: the caller gives another reason
        return None
    now = settings.protocol.data
    same = dataclasses.replace(now, digest=before.digest, content=before.content)
    protocol = dataclasses.replace(settings.protocol, data=same)
    if _identity_in(folder / RUN_FILE).get(_PROTOCOL) != protocol_fingerprint(protocol):
        return None
    if now.digest != before.digest:
        return "its images had other names or labels"
    if now.content == before.content:
        return None
    if before.content is None:
        return (
            "it was begun before fingerprints said what the images are (the sizes of files, or "
            f"what generates them: now {now.content})"
        )
    return f"its images were others (then {before.content}, now {now.content})"


def _only_plugins_differ(folder: Path, settings: Settings) -> bool:
    try:
        model = read_settings(folder).model
        return model != settings.model and all(
            model[part] == settings.model[part] for part in PARTS
        )
    except Exception:  # of an old or a damaged file: the caller gives another reason
        return False


def _check_resumable(folder: Path, settings: Settings, identity: dict[str, Any]) -> None:
    path = folder / RUN_FILE
    if not path.is_file():
        raise Refusal(
            f"run.resume={folder} is no run's folder: give never, auto, or a folder below run.root."
        )
    content = _identity_in(path)
    for key, value in identity.items():
        if content.get(key) != value:
            if key == _MODEL and _only_plugins_differ(folder, settings):
                raise Refusal(
                    f"{folder} was begun with other source of its plugins: put back what it keeps "
                    f"in {folder / Artifact.PLUGINS}, or start a new run."
                )
            if key == _PROTOCOL and (change := _images_changed(folder, settings)):
                raise Refusal(f"{folder} cannot be continued, {change}: start a new run.")
            raise Refusal(
                f"{folder} holds another run: its {key.replace('_', ' ')} is {content.get(key)}, "
                f"these settings give {value}. Use the settings it was started with."
            )
    if is_finished(folder) and _is_uploaded(folder, settings):
        raise Refusal(f"{folder} is finished: nothing is left to resume.")
