"""Results in a folder that can be given to others: written, checked, read like a store.

============================  =====================================================
bundle.json                   schema version, checksums of the rest
runs.json                     what was logged of each run and its settings; measurements
predictions.parquet           per image and run, as ``keys.Prediction``
curves.parquet                ``run_id, metric, step, value``
hardest_images.parquet        as ``keys.Hardest``, with small pictures
============================  =====================================================

What names places on somebody's machine (data.root, run.root, the store) is as if it had not been
set, and weights and plugins are left out: nothing in a bundle is ever executed.
"""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from leaderboard import claims
from leaderboard.cache import Cache
from leaderboard.repeat import command_of
from leaderboard.runs import (
    CURVE_POINTS,
    CURVES,
    INFINITY,
    OWN,
    Curves,
    Measurement,
    Reading,
    Run,
    digest_of,
    in_order,
    reading_of,
    skipped_line,
)
from leaderboard.source import Source
from leaderboard.tables import (
    ADDED,
    CURVES_FILE,
    RUN_ID,
    TABLES,
    BundleTable,
    TableError,
    is_small_png,
    read_logged,
    schema_of,
)
from leaderboard.text import plain
from mixerbench.config.schema import Run as RunSettings
from mixerbench.config.schema import flatten
from mixerbench.tracking.figures import TOLERANCE
from mixerbench.tracking.keys import Artifact, Hardest, Metric, Param, Prediction, Tag
from mixers.core.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 2
"""Of what is written; all from 1 are read. 2: predictions have checksums of the images' pixels."""

FILE = "bundle.json"
RUNS = "runs.json"

PLACES: Mapping[str, str | None] = {
    "protocol.data.root": None,
    "protocol.recipe.distillation.teacher_checkpoint": None,
    "run.root": RunSettings.root,
    "run.resume": RunSettings.resume,
}
"""Settings that name files of one machine, and what stands in a bundle instead: the default."""

_PLACES_OF_THE_COMMAND = (
    *PLACES,
    *(place.removeprefix(Param.PROTOCOL) for place in PLACES),  # data.root stands for it
    *("tracking", "launcher"),
)
_A_PATH = re.compile(r"""(^|[\s=,:'"\[{])(~|\.{0,2})/""")
_PARAMS_LEFT_OUT = (f"{Param.ENVIRONMENT}platform",)  # with a kernel's name, which may be a site's
_TAGS_LEFT_OUT = (Tag.RUN_DIR, Tag.CONFIG_DRIFT, Tag.IMPORTED)

# What a file may look like, see `_misfit`: of a mapping all keys, or one type of any keys.
_STATE = {
    **{"experiment": str, "name": str, "status": str, "deleted": bool},
    **{"started": int, "finished": int, "tags": {str: str}, "params": {str: str}},
    **{"metrics": {str: float}},
}
_MEASUREMENT = {
    **{"run_id": str, "finished": int, "hardware": str, "session": str},
    **{"protocol_fingerprint": str, "model_fingerprint": str, "metrics": {str: float}},
}
_CONTENT = {
    **{"experiments": {str: str}, "parts": {str: {str: str}}, "runs": {str: _STATE}},
    **{"settings": {str: dict}, "measurements": {str: _MEASUREMENT}},
}
_ABOUT = {"schema": int, "files": {str: str}}
_LEVELS = 20  # of nesting; settings have 5
_ID = re.compile(r"[0-9A-Za-z]{1,64}")  # of a run: it becomes the name of a folder
_SESSION = re.compile(r"[\w.-]{1,64}")
# What MLflow takes.
_KEY = re.compile(r"(?!.*(^|/)\.*(/|$))[\w.\-: /]{1,250}")

_LINES = 10  # of an error


class JsonLimits(NamedTuple):
    mib: int
    values: int  # commas and brackets, in texts too


class BundleError(Refusal):
    """What is wrong with a bundle: a line, or one for each of its runs that are refused."""


def is_bundle(folder: Path) -> bool:
    return (folder / FILE).is_file()


class Bundle:
    """A bundle as a source of results.

    Opening it checks its version, its files and their form; reading it checks every run.
    """

    def __init__(self, folder: Path) -> None:
        """BundleError: it is damaged, or of another version."""
        self.folder = folder
        self.name = f"bundle {folder.resolve().name}"
        about = _read_json(folder / FILE)
        schema = about.get("schema") if isinstance(about, dict) else None
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise BundleError(
                f"{folder / FILE} has schema {str(schema)[:20]}; this version reads 1 to {SCHEMA}."
            )
        _check_form(about, _ABOUT, folder / FILE)
        self._files = about["files"]
        self._check_files()
        content = _read_json(folder / RUNS)
        _check_form(content, _CONTENT, folder / RUNS)
        if len(content["runs"]) > MOST_RUNS:
            raise BundleError(f"{folder / RUNS} has more than {MOST_RUNS:,} runs.")
        if reason := next(_misfits_of_names(content), None):
            raise BundleError(f"{folder / RUNS}: {reason}.")
        self._content = content
        with _as_bundle_errors():
            self._tables = {name: BundleTable(folder / name, schema) for name in TABLES}
        for name, table in self._tables.items():
            if strange := table.run_ids - content["runs"].keys():
                line = f"{folder / name} has a run that is not in {RUNS}: {strange}."
                raise BundleError(_one_line(line))

    @cached_property
    def cache(self) -> Cache:
        return Cache(f"bundle {json.dumps(self._files, sort_keys=True)}")

    def read(self) -> Reading:
        """BundleError: a run claims what it does not show, one line for each."""
        content = self._content
        reading = reading_of(
            *(content["runs"], content["parts"], content["experiments"]), verify=False
        )  # check_runs does, by the settings and predictions that are here
        if reading.skipped:
            line = skipped_line(reading.skipped)
            raise BundleError(f"{self.folder} holds what is no result. {line}")
        check_runs(reading.runs, content["settings"], self._predictions)
        for run in reading.runs:
            self._check_pictures_and_curves(run)
        measurements = [Measurement(**one) for one in content["measurements"].values()]
        for one in measurements:
            problems = chain(
                claims.problems_of_time(one.finished), claims.problems_of_metrics(one.metrics)
            )
            if problem := next(problems, None):
                raise BundleError(_one_line(f"measurement {one.run_id}: {problem.line}."))
        return reading._replace(measurements=in_order(measurements))

    def artifact(self, run: Run, name: str, *, again: bool = False) -> Path | None:
        def write(path: Path) -> None:
            import pyarrow.parquet as pq
            import yaml

            if name == Artifact.CONFIG:
                settings = self._content["settings"][run.run_id]
                path.write_text(yaml.safe_dump(settings, sort_keys=False))
            elif (rows := self._rows(name, run)) is not None:
                empty = {
                    name for name in rows.column_names if rows.column(name).null_count == len(rows)
                }
                # Of a run that had none: a column of nothing would be another file.
                left_out = [RUN_ID, *empty.intersection(ADDED)]
                pq.write_table(rows.drop_columns(left_out), path)

        table = self._tables.get(name)
        if name != Artifact.CONFIG and (table is None or run.run_id not in table.run_ids):
            return None
        return self.cache.file("artifacts", run.run_id, name, make=write, again=again)

    def plugins(self, run: Run) -> list[str]:
        """The names of the files that its mixers come from."""
        found = self._content["settings"][run.run_id].get("plugins", [])
        return [name for name in found if isinstance(name, str)]

    def curves(self, run: Run) -> Curves:
        rows = self._rows(CURVES_FILE, run)
        found: dict[str, list[tuple[int, float]]] = {}
        for row in rows.to_pylist() if rows else ():
            found.setdefault(row["metric"], []).append((row["step"], row["value"]))
        return {key: found[key] for key in CURVES if key in found}

    def _predictions(self, run: Run) -> "pa.Table | None":
        rows = self._tables[Artifact.PREDICTIONS].rows(run.run_id)
        claimed = run.metrics.get(Metric.VAL_IMAGES)
        if rows and claimed is not None and rows != claimed:  # before they are read
            raise BundleError(
                f"{_title(run)}: its predictions give {Metric.VAL_IMAGES} = {rows}, but it claims "
                f"{claimed:.0f}."
            )
        return self._rows(Artifact.PREDICTIONS, run)

    def _rows(self, name: str, run: Run) -> "pa.Table | None":
        with _as_bundle_errors():
            return self._tables[name].of(run.run_id)

    def _check_files(self) -> None:
        expected = {RUNS, *TABLES}
        if self._files.keys() != expected:
            raise BundleError(f"{self.folder / FILE} must list {', '.join(sorted(expected))}.")
        for name, checksum in self._files.items():
            path = self.folder / name
            if not path.is_file():
                raise BundleError(f"{self.folder} lacks its file {name}.")
            if _checksum(path) != checksum:
                raise BundleError(f"{path} was changed or damaged: its checksum is another one.")

    def _check_pictures_and_curves(self, run: Run) -> None:
        hardest = self._rows(Artifact.HARDEST, run)
        pictures = hardest.column(Hardest.THUMBNAIL).to_pylist() if hardest else ()
        if not all(picture is None or is_small_png(picture) for picture in pictures):
            raise BundleError(f"{_title(run)}: a thumbnail of its hardest images is no small PNG.")
        for metric, points in self.curves(run).items():
            steps = [step for step, _ in points]
            good = all(abs(value) < INFINITY for _, value in points)
            if not good or steps != sorted(steps) or steps[0] < 0 or len(steps) > CURVE_POINTS:
                raise BundleError(
                    f"{_title(run)}: its curve of {metric} has more than {CURVE_POINTS} points, "
                    "steps out of order, or values that are no numbers."
                )


@dataclass(frozen=True)
class Exported:
    folder: Path
    runs: int
    measurements: int


def export(
    source: Source, runs: Iterable[Run], folder: Path, measurements: Iterable[Measurement] = ()
) -> Exported:
    """Write a bundle of these runs into a new folder, whole or not at all.

    The same results give the same bytes.

    BundleError: others could not check a run: it logged no predictions, or other settings than
    its fingerprint says. ValueError: the folder exists, or there is no run.
    """
    if folder.exists():
        raise Refusal(f"{folder} exists: give a new folder.")
    runs = sorted(runs, key=lambda run: run.run_id)
    measurements = sorted(measurements, key=lambda one: one.run_id)
    if not runs:
        raise Refusal("there is no run to export.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        new = Path(place) / folder.name
        new.mkdir()
        _write_json(new / RUNS, _content_of(source, runs, measurements))
        for name in (Artifact.PREDICTIONS, Artifact.HARDEST):
            _write_table(new / name, ((run, _logged_table(source, run, name)) for run in runs))
        _write_table(new / CURVES_FILE, ((run, _curves_table(source.curves(run))) for run in runs))
        files = {path.name: _checksum(path) for path in new.iterdir()}
        _write_json(new / FILE, {"schema": SCHEMA, "files": files})
        Bundle(new).read()  # what leaves this machine is what others will take
        os.rename(new, folder)
    return Exported(folder, len(runs), len(measurements))


def check_runs(
    runs: Iterable[Run],
    settings: Mapping[str, Mapping[str, Any]],
    predictions: Callable[[Run], "pa.Table | None"],
) -> None:
    """Does each run show what it claims?

    ``settings`` are by run id. BundleError: a line for each that does not.
    """
    images: dict[str, tuple[Run, Shown]] = {}  # of the first run of each protocol
    seen: dict[tuple[str, str, str], Run] = {}  # by model and digest of predictions
    refused = []
    for run in runs:
        own, rows = settings.get(run.run_id, {}), predictions(run)
        try:
            problems = chain(
                _settings_problems(run, own),
                _prediction_problems(run, own, rows),
                _claim_problems(run, own),
            )
            problem = next(problems, None)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            problem = f"its settings are not those of a mixerbench run ({error!r:.100})"
        if problem is None and rows is not None:
            shown = _shown(rows)
            first, expected = images.setdefault(run.protocol_fingerprint, (run, shown))
            problem = _other_images(run, shown, first, expected)
        if problem is None and rows is not None:
            columns = (rows.column(name).to_numpy() for name in claims.PREDICTED)
            if digest := claims.digest_of_predictions(*columns):
                key = (run.protocol_fingerprint, run.model_fingerprint, digest)
                twin = seen.setdefault(key, run)
                if twin.seed != run.seed:
                    problem = claims.same_predictions(twin.seed).line
        if problem is not None:
            refused.append(_one_line(f"{_title(run)}: {problem}."))
    if refused:
        more = [f"... and {len(refused) - _LINES} more."] if len(refused) > _LINES else []
        raise BundleError("\n".join([*refused[:_LINES], *more]))


def _settings_problems(run: Run, settings: Mapping[str, Any]) -> Iterator[str]:
    model, protocol = settings["model"], settings["protocol"]
    recorded = claims.of_protocol(protocol), claims.of_model(model), claims.of_run(settings["run"])
    problems = [
        claims.problems_of_settings(run.tags, *recorded),
        claims.differences("tag", run.tags, {Tag.MODEL: settings["label"]}),
    ]
    yield from (problem.line for problem in chain(*problems))
    for prefix, part in ((Param.MODEL, model), (Param.PROTOCOL, protocol)):
        logged = run.params.get(prefix.removesuffix("."), {})
        expected = dict(flatten(part, prefix))
        for problem in claims.differences("parameter", logged, expected):
            yield problem.line
        if more := logged.keys() - expected.keys():
            yield f"its parameter {min(more)} is not in its settings"


def _claim_problems(run: Run, settings: Mapping[str, Any]) -> Iterator[str]:
    classes = settings["protocol"]["data"]["num_classes"]
    problems = [
        claims.problems_of_time(run.finished),
        claims.problems_of_tags(run.tags),
        claims.problems_of_metrics(run.metrics, classes),
    ]
    yield from (problem.line for problem in chain(*problems))


def _prediction_problems(
    run: Run, settings: Mapping[str, Any], rows: "pa.Table | None"
) -> Iterator[str]:
    import numpy as np

    if rows is None or not len(rows):
        yield "it has no predictions"
        return
    target, top1, confidence, probability, in_top5 = (
        rows.column(name).to_numpy()
        for name in (
            *(Prediction.TARGET, Prediction.TOP1, Prediction.CONFIDENCE),
            *(Prediction.TARGET_PROBABILITY, Prediction.IN_TOP5),
        )
    )
    correct = target == top1
    for problem in claims.problems_of_predictions(run.metrics, correct, in_top5):
        yield problem.line
    if len(rows.column(Prediction.IMAGE).unique()) != len(rows):
        yield "an image stands twice in its predictions"
    classes = settings["protocol"]["data"]["num_classes"]
    if min(target.min(), top1.min()) < 0 or max(target.max(), top1.max()) >= classes:
        yield f"its predictions name a class beyond its {classes}"
    for values in (confidence, probability):
        if not np.all((values >= 0) & (values <= 1 + TOLERANCE)):  # false for NaN
            yield "its predictions have a probability that is not within 0 and 1"
    if np.any(probability > confidence + TOLERANCE):
        yield "its predictions have a class that is more probable than the predicted one"
    if np.any(correct & (np.abs(confidence - probability) > TOLERANCE)):
        yield "its predictions give two probabilities to one class"
    # Among six equal classes, of a model that learned nothing, the predicted one may be the sixth.
    if np.any(correct & ~in_top5 & (confidence > 1 / 6 + TOLERANCE)):
        yield "its predictions have a predicted class that is not among the first five"


Shown = Mapping[str, tuple[int, int | None]]
"""Class and checksum of each image."""


def _shown(rows: "pa.Table") -> Shown:
    names = (Prediction.IMAGE, Prediction.TARGET, Prediction.CHECKSUM)
    columns = [
        rows.column(name).to_pylist() if name in rows.column_names else [None] * len(rows)
        for name in names
    ]
    return {image: (target, checksum) for image, target, checksum in zip(*columns, strict=True)}


def _other_images(run: Run, shown: Shown, first: Run, expected: Shown) -> str | None:
    """What tells the images of two runs of one protocol apart: only unreadable ones may."""
    common = shown.keys() & expected.keys()
    missing = len(expected) - len(common), len(shown) - len(common)
    excused = (one.metrics.get(Metric.UNREADABLE_VAL_IMAGES, 0) for one in (run, first))
    nearly_all = (1 - claims.MOST_UNREADABLE) * max(len(shown), len(expected))
    if (
        any(lacks > count for lacks, count in zip(missing, excused, strict=True))
        or len(common) < nearly_all
        or any(shown[image][0] != expected[image][0] for image in common)
    ):
        return (
            "it was evaluated on other images, or their classes are others, than "
            f"{first.name} of the same protocol"
        )
    for image in common:
        if None not in (one := shown[image][1], other := expected[image][1]) and one != other:
            return f"its image {image:.80} has other pixels than that of {first.name}"
    return None


def _title(run: Run) -> str:
    return _one_line(f"run {run.name[:80]} ({run.run_id})")


# --- writing --------------------------------------------------------------------------------


def _content_of(
    source: Source, runs: Sequence[Run], measurements: Sequence[Measurement]
) -> dict[str, Any]:
    import yaml

    states, settings = {}, {}
    parts: dict[str, Mapping[str, str]] = {}
    for run in runs:
        config = source.artifact(run, Artifact.CONFIG)
        try:
            logged: Any = yaml.safe_load(config.read_text()) if config else None
            settings[run.run_id] = _without_places(logged)
        except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            reason = "it logged none" if config is None else f"{error!r:.100}"
            raise BundleError(f"{_title(run)} has no usable {Artifact.CONFIG}: {reason}.") from None
        groups = {name: _defaults_at_places(group) for name, group in run.params.items()}
        digests = {name: digest_of(group) for name, group in groups.items()}
        parts |= {digests[name]: group for name, group in groups.items()}
        states[run.run_id] = {
            "experiment": run.experiment_id,
            "name": run.name,
            "status": "FINISHED",
            "deleted": False,
            "started": run.started,
            "finished": run.finished,
            "tags": _public_tags(run, settings[run.run_id]["plugins"]),
            "params": digests,
            # When it came to a store is no property of a result.
            "metrics": {k: v for k, v in run.metrics.items() if k != Metric.UPLOADED_AT},
        }
    return {
        "experiments": {run.experiment_id: run.experiment for run in runs},
        "parts": parts,
        "runs": states,
        "settings": settings,
        "measurements": {
            one.run_id: {**dataclasses.asdict(one), "metrics": dict(one.metrics)}
            for one in measurements
        },
    }


def _without_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they would be with the defaults where one machine's files are named."""
    plugins = [Path(plugin).name for plugin in settings["plugins"]]
    new: dict[str, Any] = json.loads(json.dumps(settings))
    for place, default in PLACES.items():
        *groups, field = place.split(".")
        group = new
        for name in groups:
            group = group[name]
        group[field] = default
    return new | {
        "tracking": {},
        "launcher": {},
        "plugins": plugins,
        "overrides": _public_arguments(settings["overrides"], plugins),
    }


def _defaults_at_places(params: Mapping[str, str]) -> dict[str, str]:
    public = {key: value for key, value in params.items() if key not in _PARAMS_LEFT_OUT}
    return {key: str(PLACES.get(key, value)) for key, value in public.items()}


def _public_tags(run: Run, plugins: Sequence[str]) -> dict[str, str]:
    # By its uid a run is known in whatever store it comes to.
    tags = {Tag.UID: run.run_id, **run.tags}
    tags = {key: value for key, value in tags.items() if key != Tag.COMMAND}
    if command := command_of(run, plugins):
        tags[Tag.COMMAND] = command
    return {key: value for key, value in tags.items() if key not in _TAGS_LEFT_OUT}


def _public_arguments(arguments: Iterable[str], plugins: Sequence[str]) -> list[str]:
    """Those that name no place; plugins by their names."""
    public = []
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+~")
        if key == "plugins":
            public.append(f"plugins=[{','.join(plugins)}]")
        elif not _A_PATH.search(argument) and not any(
            key == place or key.startswith(f"{place}.") for place in _PLACES_OF_THE_COMMAND
        ):
            public.append(argument)
    return public


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One value a line and always in the same order: git shows what has changed."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _write_table(path: Path, parts: Iterable[tuple[Run, "pa.Table | None"]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_of(path.name)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for run, table in parts:
            if table is None:
                continue
            try:
                table = table.add_column(0, RUN_ID, pa.array([run.run_id] * len(table), "string"))
                for name in ADDED.keys() & set(schema.names) - set(table.column_names):
                    nothing = pa.nulls(len(table), schema.field(name).type)
                    table = table.append_column(name, nothing)
                writer.write_table(table.select(schema.names).cast(schema))
            except (pa.ArrowException, KeyError) as error:
                reason = _one_line(error)
                raise BundleError(f"{_title(run)}: its {path.name} is none: {reason}.") from None


def _logged_table(source: Source, run: Run, name: str) -> "pa.Table | None":
    path = source.artifact(run, name)
    try:
        return read_logged(path) if path else None
    except TableError as error:
        raise BundleError(f"{_title(run)}: {_one_line(error)}") from None


def _curves_table(curves: Curves) -> "pa.Table":
    import pyarrow as pa

    rows = [(metric, *point) for metric, points in curves.items() for point in points]
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    types = ("string", "int64", "double")
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.table(arrays, ["metric", "step", "value"])


# --- reading --------------------------------------------------------------------------------


@contextmanager
def _as_bundle_errors() -> Iterator[None]:
    try:
        yield
    except TableError as error:
        raise BundleError(_one_line(error)) from None


MOST: Mapping[str, JsonLimits] = {
    FILE: JsonLimits(mib=1, values=1000),  # five checksums
    # A run takes 7 KiB and 100 values, parameters that several share included.
    RUNS: JsonLimits(mib=64, values=2_000_000),
}
"""What is read of each JSON file. A value takes some hundred bytes, be it an empty list."""

MOST_RUNS = 10_000


def _read_json(path: Path) -> Any:
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
        raise BundleError(f"cannot read {path}: {_one_line(error)}.") from None
    return content


def _one_line(text: object) -> str:
    """Without line breaks and what a terminal would obey: anybody may have written it."""
    return plain(str(text))[:400]


def _check_levels(content: Any, levels: int) -> None:
    if isinstance(content, dict | list):
        if not levels:
            raise Refusal(f"it is nested in more than {_LEVELS} levels")
        for value in content.values() if isinstance(content, dict) else content:
            _check_levels(value, levels - 1)


def _check_form(content: Any, form: Any, path: Path) -> None:
    if where := _misfit(content, form):
        raise BundleError(f"{path} is not as a bundle's: see {_one_line(where)}.")


def _misfit(value: Any, form: Any, where: str = "its top") -> str:
    """Where a value has another form; empty if nowhere. A form is a type, or a mapping of forms."""
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


def _misfits_of_names(content: Mapping[str, Any]) -> Iterator[str]:
    """What neither a folder nor MLflow would take, or has nothing that it refers to."""
    runs, parts, measurements = content["runs"], content["parts"], content["measurements"]
    ids = [*runs, *measurements, *(run["tags"].get(Tag.UID, "") for run in runs.values())]
    for one in ids:
        if not _ID.fullmatch(one):
            yield f"{one!r:.80} is no id of a run"
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
    for one in measurements.values():
        if not _SESSION.fullmatch(one["session"]):
            yield f"{one['session']!r:.80} is no session of measurements"
        if _model_of(one) not in models:
            yield f"measurement {one['run_id']:.80} is of a model without a run"
    if any(run_id != one["run_id"] for run_id, one in measurements.items()):
        yield "a measurement has two ids"
    for one in (*runs.values(), *measurements.values()):
        if not 0 <= one.get("started", 0) <= one["finished"] < 2**53:
            yield "a time is out of range"
    named = [*(one["metrics"] for one in (*runs.values(), *measurements.values())), *parts.values()]
    for key in set(chain.from_iterable(named)):
        if not _KEY.fullmatch(key):
            yield f"MLflow takes no name like {key!r:.80}"
    texts = {
        "tag": [
            *(text for run in runs.values() for text in run["tags"].values()),
            *(one["hardware"] for one in measurements.values()),
        ],
        "parameter": [text for part in parts.values() for text in part.values()],
        "experiment": content["experiments"].values(),
        "name": [run["name"] for run in runs.values()],
    }
    for kind, values in texts.items():
        if any(len(text) > claims.LONGEST[kind] for text in values):
            yield f"a text is longer than the {claims.LONGEST[kind]} characters of a {kind}"
    if not all(content["experiments"].values()):
        yield "an experiment has no name"
    for key in {key for run in runs.values() for key in run["tags"]}:
        if not (key.startswith(OWN) and _KEY.fullmatch(key)):
            yield f"{key!r:.80} is no tag of mixerbench"


def _model_of(measurement: Mapping[str, str]) -> tuple[str, str]:
    return measurement["protocol_fingerprint"], measurement["model_fingerprint"]


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
