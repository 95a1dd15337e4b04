"""A suite: a whole benchmark as one object, mixers x sizes x seeds under one protocol.

Everything that it knows of earlier starts is in the folders below run.root: it keeps no
state of its own that a kill could lose. Knows no torch, as far as the data does not need it.
"""

import copy
import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mixerbench.config.assignments import key_of
from mixerbench.config.compose import compose_sweep
from mixerbench.config.cost_target import Match
from mixerbench.config.files import CONFIGS, config_names
from mixerbench.config.overrides import in_hydras_words
from mixerbench.config.rules import FREE_IN_SUITE, marked
from mixerbench.config.schema import Settings, flatten, protocol_fingerprint
from mixerbench.errors import Preempted, Refusal
from mixerbench.launching.child import View
from mixerbench.launching.local import names_of, run_jobs
from mixerbench.launching.table import BROKEN, FINISHED, IN_USE, WAITING, SuiteTable
from mixerbench.tracking.journal import FILE_NAME, Record, read
from mixerbench.training.folder import complete, find_folders, identity_of, is_finished, is_free
from mixers.core.names import nearest

_FIELDS = ("description", "runs")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+~-]+")
_PATIENCE_SECONDS = 60
"""For a run that another process trains: what a killed suite has left saves its state and ends."""

_OWN = frozenset(marked(Settings, FREE_IN_SUITE))
"""Settings in which the runs of a suite may differ, beside the model."""


@dataclass(frozen=True)
class Suite:
    """The runs of a benchmark, by name."""

    name: str
    description: str
    runs: dict[str, Settings]

    @property
    def any_run(self) -> Settings:
        """For what all runs share."""
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class Found:
    """What earlier starts have left of a run."""

    state: str  # FINISHED, BROKEN, IN_USE or WAITING
    folder: Path | None = None

    def records(self) -> list[Record]:
        return [record for record, _ in read(self.folder / FILE_NAME)] if self.folder else []


# --- reading --------------------------------------------------------------------------------


def read_suite(place: str, given: Sequence[str] = (), match: Match | None = None) -> Suite:
    """The suite of that name or file, with further settings instead of its own or beside them.

    Args:
        match: finds the sizes for ``match=...``, as in ``compose_sweep``.

    Raises:
        Refusal: there is no such suite, its file or a setting cannot be read, or the runs
            differ in more than the model and the seed.
    """
    path = _find(place)
    content = _content(path)
    settings = {_key(key): _override(path, key, value) for key, value in content["runs"].items()}
    for setting in given:
        key = _key(key_of(setting))
        if key == "run.resume":
            raise Refusal("run.resume is not set for a suite: it resumes what is unfinished.")
        settings[key] = setting
    runs = compose_sweep(list(settings.values()), match)
    _check_shared(runs)
    return Suite(path.stem, str(content.get("description") or ""), _named(runs))


def _find(place: str) -> Path:
    if place.endswith((".yaml", ".yml")):
        path = Path(place).expanduser()
        if not path.is_file():
            raise Refusal(f"there is no suite {path}.")
        return path
    known = config_names("suite")
    if place not in known:
        raise Refusal(
            f"unknown suite {place!r}. {nearest(place, known)} Your own file is suite=FILE.yaml."
        )
    return CONFIGS / "suite" / f"{place}.yaml"


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise Refusal(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise Refusal(f"{path} is no suite: expected 'runs:' and below it settings.")
    for key in content:
        if key not in _FIELDS:
            raise Refusal(f"{path}: a suite has no field {key!r}. {nearest(str(key), _FIELDS)}")
    if not isinstance(content.get("runs"), dict) or not content["runs"]:
        raise Refusal(f"{path}: expected settings below 'runs:', such as mixer: [attention, lit]")
    return content


def _key(key: str) -> str:
    """One word for ``recipe.epochs`` and ``protocol.recipe.epochs``."""
    return key.removeprefix("protocol.")


def _override(path: Path, key: Any, value: Any) -> str:
    """``mixer=attention,lit`` for a list, as the command line has it."""
    if value == []:
        raise Refusal(f"{path}: {key} has no values.")
    if key in ("run.resume", "suite"):
        raise Refusal(f"{path}: {key} is not set in a suite.")
    values = value if isinstance(value, list) else [value]
    return f"{key}={','.join(map(_word, values))}"


def _word(value: Any) -> str:
    """A name as a name: what looks like text only is not quoted, as on a command line."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    return in_hydras_words(value)


def _check_shared(runs: Sequence[Settings]) -> None:
    """Refuse what would not stand in one table.

    Raises:
        Refusal: names the setting that differs.
    """
    first = _shared(runs[0])
    for other in map(_shared, runs[1:]):
        for key in dict.fromkeys([*first, *other]):
            if first.get(key) != other.get(key):
                raise Refusal(
                    f"the runs of a suite have one protocol, and differ in the model and run.seed "
                    f"only: {key} is {first.get(key)} in some and {other.get(key)} in others."
                )


def _shared(settings: Settings) -> dict[str, Any]:
    groups = {
        name: dataclasses.asdict(getattr(settings, name))
        for name in ("protocol", "run", "tracking", "launcher")
    }
    return {key: value for key, value in flatten(groups) if key not in _OWN}


def _named(runs: Sequence[Settings]) -> dict[str, Settings]:
    seen: dict[tuple[Any, ...], str] = {}
    names = names_of(runs)
    for name, settings in zip(names, runs, strict=True):
        identity = tuple(identity_of(settings).values())
        if identity in seen:
            raise Refusal(
                f"two runs of the suite are the same one, {seen[identity]} and {name}: name each "
                "model and each seed once."
            )
        seen[identity] = name
    return dict(zip(names, runs, strict=True))


# --- training -------------------------------------------------------------------------------


def fingerprint_of(suite: Suite) -> str:
    """The fingerprint of the suite's protocol; opens the images, which are part of it.

    Raises:
        Refusal: they are not there, or do not fit the settings.
    """
    from mixerbench.data.source import images_of

    protocol = copy.deepcopy(suite.any_run.protocol)
    complete(protocol, images_of(suite.any_run))
    return protocol_fingerprint(protocol)


def find_runs(suite: Suite, fingerprint: str) -> dict[str, Found]:
    """What there is of each run below run.root."""
    identities = [
        identity_of(settings) | {"protocol_fingerprint": fingerprint}
        for settings in suite.runs.values()
    ]
    folders = find_folders(suite.any_run.run.root, identities)
    return {name: _judge(found) for name, found in zip(suite.runs, folders, strict=True)}


def _judge(folders: Sequence[Path]) -> Found:
    """``folders`` of one run, the newest first: a finished one counts, else the newest."""
    for folder in folders:
        if is_finished(folder):
            return Found(FINISHED, folder)
    if not folders:
        return Found(WAITING)
    return Found(BROKEN if is_free(folders[0]) else IN_USE, folders[0])


def run_suite(
    suite: Suite,
    fingerprint: str,
    table: SuiteTable,
    train: Callable[[dict[str, Settings], View], dict[str, str]] = run_jobs,
) -> dict[str, str]:
    """Train what is not finished: resume what was begun, leave out what another process trains.

    Args:
        train: trains runs by their names; returns why each that did not finish did not.

    Returns:
        why each run that did not finish did not.

    Raises:
        Preempted: a scheduler said so; the running ones have saved their state.
    """
    found = find_runs(suite, fingerprint)
    show_found(found, table)
    found |= _wait_for_others(found, table)
    jobs = {
        name: _to_train(settings, found[name])
        for name, settings in suite.runs.items()
        if found[name].state in (WAITING, BROKEN)
    }
    try:
        failures = train(jobs, table)
    except Preempted as stop:
        raise type(stop)(
            f"{str(stop).partition(':')[0]}: the running ones of {len(jobs)} runs have saved their "
            "state. The same command goes on with them."
        ) from None
    for name, one in found.items():
        if one.folder is not None and one.state == IN_USE:
            if is_finished(one.folder):
                table.recall(name, FINISHED, one.records())
            else:
                failures[name] = f"{one.folder} is being trained by another process."
    return failures


def show_found(found: Mapping[str, Found], table: SuiteTable) -> None:
    for name, one in found.items():
        table.recall(name, one.state, one.records())


def _wait_for_others(found: Mapping[str, Found], table: SuiteTable) -> dict[str, Found]:
    """What becomes of the runs that other processes train, within a minute for all together."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    after = {}
    for name, one in found.items():
        if one.folder is None or one.state != IN_USE:
            continue
        table.note(name, f"another process trains it: waiting up to {_PATIENCE_SECONDS} s for it")
        free = is_free(one.folder, max(deadline - time.monotonic(), 0))
        after[name] = _judge([one.folder]) if free else one
        if not free:
            table.note(name, f"left out: {one.folder} is still being trained by another process")
    show_found(after, table)
    return after


def _to_train(settings: Settings, found: Found) -> Settings:
    resume = "never" if found.folder is None else str(found.folder)
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, resume=resume))
