"""The JSON files of a bundle: how much of them is read, and what they may look like."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from leaderboard.claims.of_values import LONGEST
from leaderboard.reading.results import INFINITY, OWN
from leaderboard.text import plain
from mixerbench.tracking.keys import Tag
from mixers.core.errors import Refusal

SCHEMA = 2
"""Of what is written; all from 1 are read. 2: predictions have checksums of the images' pixels."""
FILE = "bundle.json"
RUNS = "runs.json"
# The forms of the two files, as `_misfit` reads them.
_STATE = {
    **{"experiment": str, "name": str, "status": str, "deleted": bool},
    **{"started": int, "finished": int, "tags": {str: str}, "params": {str: str}},
    **{"metrics": {str: float}},
}
_MEASUREMENT = {
    **{"run_id": str, "finished": int, "hardware": str, "session": str},
    **{"protocol_fingerprint": str, "model_fingerprint": str, "metrics": {str: float}},
}
CONTENT_FORM = {
    **{"experiments": {str: str}, "parts": {str: {str: str}}, "runs": {str: _STATE}},
    **{"settings": {str: dict}, "measurements": {str: _MEASUREMENT}},
}
HEADER_FORM = {"schema": int, "files": {str: str}}
_LEVELS = 20  # of nesting; settings have 5
_ID = re.compile(r"[0-9A-Za-z]{1,64}")  # of a run: it becomes the name of a folder
_SESSION = re.compile(r"[\w.-]{1,64}")
# What MLflow takes.
_KEY = re.compile(r"(?!.*(^|/)\.*(/|$))[\w.\-: /]{1,250}")


class JsonLimits(NamedTuple):
    mib: int
    values: int  # commas and brackets, in texts too


class BundleError(Refusal):
    """What is wrong with a bundle: a line, or one for each of its runs that are refused."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One value a line and always in the same order: git shows what has changed."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


MOST: Mapping[str, JsonLimits] = {
    FILE: JsonLimits(mib=1, values=1000),  # five checksums
    # A run takes 7 KiB and 100 values, parameters that several share included.
    RUNS: JsonLimits(mib=64, values=2_000_000),
}
"""What is read of each JSON file. A value takes some hundred bytes, be it an empty list."""
MOST_RUNS = 10_000


def read_json(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise Refusal(f"{word} is no number")

    most = MOST[path.name]
    try:
        if (size := path.stat().st_size) > most.mib * 2**20:
            raise Refusal(f"it has {size / 2**20:.0f} MiB, more than {most.mib} MiB")
        text = path.read_text(encoding="utf-8")
        if (values := sum(map(text.count, ",[{"))) > most.values:
            raise Refusal(f"it has {values:,} values, more than {most.values:,}")
        content = json.loads(text, parse_constant=refuse)
        _check_levels(content, _LEVELS)
        # Half a character, or 1e999.
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"cannot read {path}: {one_line(error)}.") from None
    return content


def one_line(text: object) -> str:
    """The text without line breaks and control characters: anybody may have written it."""
    return plain(str(text))[:400]


def _check_levels(content: Any, levels: int) -> None:
    if isinstance(content, dict | list):
        if not levels:
            raise Refusal(f"it is nested in more than {_LEVELS} levels")
        for value in content.values() if isinstance(content, dict) else content:
            _check_levels(value, levels - 1)


def check_form(content: Any, form: Any, path: Path) -> None:
    if where := _misfit(content, form):
        raise BundleError(f"{path} is not as a bundle's: see {one_line(where)}.")


def _misfit(value: Any, form: Any, where: str = "its top") -> str:
    """The path at which a value does not have this form; empty if it has it.

    A form is a type, or a mapping: of its keys to forms, or of ``str``, for any key, to one form.
    """
    if not isinstance(form, dict):
        if form is float:  # JSON has numbers of any length
            return "" if type(value) in (int, float) and abs(value) < INFINITY else where
        return "" if type(value) is form else where
    if not isinstance(value, dict):
        return where
    if str in form:
        return next(filter(None, (_misfit(v, form[str], k) for k, v in value.items())), "")
    if value.keys() != form.keys():
        return f"{where}: {min(map(str, value.keys() ^ form.keys()))}"
    return next(filter(None, (_misfit(value[k], form[k], f"{where}.{k}") for k in form)), "")


def misfits_of_names(content: Mapping[str, Any]) -> Iterator[str]:
    """Names that no folder or MLflow would take, and references to what is not in the bundle."""
    runs, parts, measurements = content["runs"], content["parts"], content["measurements"]
    ids = [*runs, *measurements, *(run["tags"].get(Tag.UID, "") for run in runs.values())]
    for identifier in ids:
        if not _ID.fullmatch(identifier):
            yield f"{identifier!r:.80} is no id of a run"
    uids = [run["tags"].get(Tag.UID) for run in runs.values()]
    keys = [(m["session"], *_model_of(m)) for m in measurements.values()]
    if len({*uids}) < len(uids) or len({*keys}) < len(keys):
        yield "a run or a measurement stands twice"
    if content["settings"].keys() != runs.keys():
        yield "the settings are of other runs"
    for run_id, run in runs.items():
        if run["experiment"] not in content["experiments"]:
            yield f"run {run_id} is of no experiment"
        if run["params"].values() - parts.keys():
            yield f"run {run_id} lacks parameters"
    models = {
        (run["tags"].get(Tag.PROTOCOL_FINGERPRINT), run["tags"].get(Tag.MODEL_FINGERPRINT))
        for run in runs.values()
    }
    for measurement in measurements.values():
        if not _SESSION.fullmatch(measurement["session"]):
            yield f"{measurement['session']!r:.80} is no session of measurements"
        if _model_of(measurement) not in models:
            yield f"measurement {measurement['run_id']:.80} is of a model without a run"
    if any(run_id != measurement["run_id"] for run_id, measurement in measurements.items()):
        yield "a measurement has two ids"
    for record in (*runs.values(), *measurements.values()):
        if not 0 <= record.get("started", 0) <= record["finished"] < 2**53:
            yield "a time is out of range"
    named = [
        *(record["metrics"] for record in (*runs.values(), *measurements.values())),
        *parts.values(),
    ]
    for key in set(chain.from_iterable(named)):
        if not _KEY.fullmatch(key):
            yield f"MLflow takes no name like {key!r:.80}"
    texts = {
        "tag": [
            *(text for run in runs.values() for text in run["tags"].values()),
            *(measurement["hardware"] for measurement in measurements.values()),
        ],
        "parameter": [text for part in parts.values() for text in part.values()],
        "experiment": content["experiments"].values(),
        "name": [run["name"] for run in runs.values()],
    }
    for kind, values in texts.items():
        if any(len(text) > LONGEST[kind] for text in values):
            yield f"a text is longer than the {LONGEST[kind]} characters of a {kind}"
    if not all(content["experiments"].values()):
        yield "an experiment has no name"
    for key in {key for run in runs.values() for key in run["tags"]}:
        if not (key.startswith(OWN) and _KEY.fullmatch(key)):
            yield f"{key!r:.80} is no tag of mixerbench"


def _model_of(measurement: Mapping[str, str]) -> tuple[str, str]:
    return measurement["protocol_fingerprint"], measurement["model_fingerprint"]


def checksum_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
