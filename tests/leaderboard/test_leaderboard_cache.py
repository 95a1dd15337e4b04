"""What is remembered of a store between readings is what the store has now."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboard.opening import open_source, read_runs
from leaderboard.reading import mlflow_pages
from leaderboard.reading.cache import Cache
from leaderboard.reading.curves import CURVE_POINTS, thinned
from leaderboard.reading.mlflow_source import MlflowSource
from leaderboard.reading.results import Reading
from mixerbench.tracking.keys import Metric


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, store_at) -> Path:
    """A store without runs: making one takes seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    store_at(f"sqlite:///{path}").client.search_experiments()
    return path


@pytest.fixture
def fresh(empty: Path, tmp_path: Path, store_at):
    path = tmp_path / "mlflow.db"
    path.write_bytes(empty.read_bytes())
    store = store_at(f"sqlite:///{path}")
    store.clock = int(time.time() * 1000) - 7 * 24 * 3600 * 1000
    return store


def _names(store) -> list[str]:
    """What a reading says, which must be what one without a memory says."""
    reading = read_runs(store.uri)
    assert _all(reading) == _all(MlflowSource(store.uri, refresh=True).read())
    return sorted(run.name for run in reading.runs)


def _all(reading: Reading) -> object:
    return reading.runs, reading.skipped, reading.measurements


def _read_in_a_process(uri: str, then: str = "") -> subprocess.Popen[str]:
    program = (
        f"from leaderboard import read_runs; import sys; runs = read_runs({uri!r}).runs\n"
        f"print(len(runs), 'mlflow' in sys.modules)\n{then}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )


def test_a_store_that_has_not_changed_is_not_even_opened(fresh):
    fresh.log("attention")
    said = [_read_in_a_process(fresh.uri).communicate()[0].split() for _ in range(2)]
    assert said == [["1", "True"], ["1", "False"]]
    fresh.log("pooling")
    assert len(read_runs(fresh.uri).runs) == 2


def test_new_runs_and_experiments_are_seen(fresh):
    assert _names(fresh) == []
    fresh.log("attention")
    assert _names(fresh) == ["attention-0"]
    fresh.log("attention", seed=1)
    fresh.log("pooling", experiment="second")
    assert _names(fresh) == ["attention-0", "attention-1", "pooling-0"]
    fresh.client.rename_experiment(fresh.experiments["second"], "third")
    assert {run.experiment for run in read_runs(fresh.uri).runs} == {"digits", "third"}


def test_deleted_restored_and_removed_runs_are_seen(fresh):
    run_id = fresh.log("attention")
    fresh.log("pooling")
    assert _names(fresh) == ["attention-0", "pooling-0"]
    fresh.client.delete_run(run_id)
    assert _names(fresh) == ["pooling-0"]
    assert read_runs(fresh.uri).skipped == {"deleted": 1}
    fresh.client.restore_run(run_id)
    assert _names(fresh) == ["attention-0", "pooling-0"]
    fresh.client.delete_run(run_id)
    assert _names(fresh) == ["pooling-0"]
    subprocess.run(
        [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", fresh.uri],
        check=True,
        capture_output=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": fresh.uri},
    )
    assert _names(fresh) == ["pooling-0"]
    assert read_runs(fresh.uri).skipped == {}


def test_deleted_and_restored_experiments_are_seen(fresh):
    fresh.log("attention")
    fresh.log("pooling", experiment="second")
    assert _names(fresh) == ["attention-0", "pooling-0"]
    fresh.client.delete_experiment(fresh.experiments["second"])
    reading = read_runs(fresh.uri)
    assert [run.name for run in reading.runs] == ["attention-0"]
    assert reading.skipped == {"of deleted experiments": 1}
    fresh.client.restore_experiment(fresh.experiments["second"])
    assert _names(fresh) == ["attention-0", "pooling-0"]


def test_a_run_that_finishes_is_seen_also_when_its_end_lies_in_the_past(fresh):
    running = fresh.log("attention", status=None)
    fresh.log("pooling")
    assert _names(fresh) == ["pooling-0"]
    assert read_runs(fresh.uri).skipped == {"not finished": 1}
    fresh.client.set_terminated(running, end_time=fresh.clock - 24 * 3600 * 1000)
    assert _names(fresh) == ["attention-0", "pooling-0"]


def test_a_run_that_was_resumed_is_seen_with_its_new_numbers(fresh):
    run_id = fresh.log("attention", status="FAILED")
    assert _names(fresh) == []
    fresh.client.update_run(run_id, status="RUNNING")
    assert _names(fresh) == []
    fresh.client.log_metric(run_id, Metric.FINAL_TOP1, 77.0, timestamp=fresh.clock + 5, step=9)
    fresh.client.set_terminated(run_id)
    assert _names(fresh) == ["attention-0"]
    assert read_runs(fresh.uri).runs[0].metrics[Metric.FINAL_TOP1] == 77.0


def test_a_run_that_was_uploaded_long_after_its_end_is_seen(fresh):
    fresh.clock = int(time.time() * 1000)
    fresh.log("attention")
    assert _names(fresh) == ["attention-0"]
    fresh.clock -= 24 * 3600 * 1000
    fresh.log("pooling", metrics={Metric.UPLOADED_AT: time.time()})
    assert _names(fresh) == ["attention-0", "pooling-0"]


def test_one_clock_in_the_future_does_not_hide_what_comes_later(fresh):
    now = int(time.time() * 1000)
    fresh.clock = now + 365 * 24 * 3600 * 1000
    fresh.log("attention")
    assert _names(fresh) == []
    assert read_runs(fresh.uri).skipped == {"that ended before 2020 or in the future": 1}
    fresh.clock = now
    fresh.log("pooling")
    assert _names(fresh) == ["pooling-0"]


def test_another_store_in_the_place_of_the_first_has_none_of_its_runs(fresh, empty: Path):
    fresh.log("attention")
    assert _names(fresh) == ["attention-0"]
    path = Path(fresh.uri.removeprefix("sqlite:///"))
    with sqlite3.connect(empty) as content:
        script = "\n".join(content.iterdump())
    path.unlink()
    with sqlite3.connect(path) as other:
        other.executescript(script)
        other.execute("UPDATE experiments SET creation_time = creation_time + 1")
    # In a process of its own: MLflow keeps the file open that is no longer there.
    assert _read_in_a_process(fresh.uri).communicate()[0].split() == ["0", "True"]
    assert MlflowSource(fresh.uri).cache.runs() == {}


def _put_back(path: Path, backup: bytes) -> None:
    """In place, so that MLflow's open connections see it."""
    with open(path, "r+b") as file:
        file.write(backup)
        file.truncate()


def test_a_backup_that_was_put_back_is_the_store_as_it_was(fresh):
    """Without the run that came later, and with the first end of one that was resumed."""
    path = Path(fresh.uri.removeprefix("sqlite:///"))
    resumed = fresh.log("attention")
    fresh.log("pooling")
    assert _names(fresh) == ["attention-0", "pooling-0"]
    (before,) = [run for run in read_runs(fresh.uri).runs if run.run_id == resumed]
    backup = path.read_bytes()
    fresh.client.update_run(resumed, status="RUNNING")
    fresh.client.log_metric(resumed, Metric.FINAL_TOP1, 77.0, timestamp=fresh.clock + 5, step=9)
    fresh.client.set_terminated(resumed, end_time=fresh.clock + 9000)
    fresh.log("shift")
    assert _names(fresh) == ["attention-0", "pooling-0", "shift-0"]
    _put_back(path, backup)
    assert _names(fresh) == ["attention-0", "pooling-0"]
    (again,) = [run for run in read_runs(fresh.uri).runs if run.run_id == resumed]
    assert again == before


def test_runs_that_were_removed_between_two_readings_are_gone(fresh):
    """``mlflow gc`` right after a deletion: nobody has seen them deleted."""
    fresh.log("attention")
    run_id = fresh.log("pooling")
    assert _names(fresh) == ["attention-0", "pooling-0"]
    fresh.client.delete_run(run_id)
    fresh.client._tracking_client.store._hard_delete_run(run_id)
    assert _names(fresh) == ["attention-0"]
    assert read_runs(fresh.uri).skipped == {}


def test_a_server_whose_newest_run_is_gone_is_read_anew(fresh, monkeypatch: pytest.MonkeyPatch):
    """Of a server nobody lists the runs; the store stands for one here."""
    monkeypatch.setattr(MlflowSource, "_listed", lambda store: None)
    fresh.log("attention")
    run_id = fresh.log("pooling")
    assert _names(fresh) == ["attention-0", "pooling-0"]
    fresh.client.delete_run(run_id)
    fresh.client._tracking_client.store._hard_delete_run(run_id)
    assert _names(fresh) == ["attention-0"]


def test_a_store_larger_than_a_page_is_read_whole(fresh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mlflow_pages, "PAGE", 3)
    for seed in range(8):
        fresh.log("attention", seed=seed)
        if seed in (3, 6):
            assert len(_names(fresh)) == seed + 1
    assert len(_names(fresh)) == 8


def test_two_processes_may_read_at_once(fresh):
    for seed in range(5):
        fresh.log("attention", seed=seed)
    readers = [_read_in_a_process(fresh.uri) for _ in range(3)]
    said = [reader.communicate()[0].split() for reader in readers]
    assert [count for count, _ in said] == ["5"] * 3
    assert sorted(opened for _, opened in said) == ["False", "False", "True"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no database at all, but long enough to be looked at" * 99),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 8192),
        lambda path: path.write_bytes(b""),
    ],
)
def test_a_damaged_cache_is_begun_anew(fresh, damage: Callable[[Path], object]):
    fresh.log("attention")
    assert len(read_runs(fresh.uri).runs) == 1
    path = MlflowSource(fresh.uri).cache.folder / "runs.db"
    damage(path)
    assert len(read_runs(fresh.uri).runs) == 1
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (1,)


def test_where_nothing_can_be_written_the_cache_is_temporary(
    fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fresh.log("attention")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = open_source(fresh.uri)
    assert len(source.read().runs) == 1
    assert len(source.read().runs) == 1
    folder = source.cache.folder
    assert folder.is_dir()
    assert not folder.is_relative_to(tmp_path)
    del source
    assert not folder.exists()


def test_a_cache_that_stops_taking_anything_is_left_for_a_temporary_one(
    fresh, monkeypatch: pytest.MonkeyPatch
):
    fresh.log("attention")
    source = open_source(fresh.uri)
    first, update = source.cache.folder, Cache.update

    def full(cache: Cache, *arguments: object, **named: object) -> None:
        if cache.folder == first:
            raise sqlite3.OperationalError("database or disk is full")
        update(cache, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Cache, "update", full)
    assert len(source.read().runs) == 1
    assert source.cache.folder != first


def test_a_cache_of_another_format_is_begun_anew(fresh):
    fresh.log("attention")
    read_runs(fresh.uri)
    with sqlite3.connect(MlflowSource(fresh.uri).cache.folder / "runs.db") as db:
        db.execute("UPDATE facts SET value = '0' WHERE name = 'format'")
        db.execute("UPDATE runs SET state = ?", (json.dumps({"of": "old"}),))
    assert len(read_runs(fresh.uri).runs) == 1


def test_artifacts_and_curves_are_fetched_once(fresh, tmp_path: Path):
    run_id = fresh.log("attention", status=None)
    for step in range(450):
        if step % 50 == 0:  # a few calls are enough
            fresh.client.log_metric(run_id, Metric.TRAIN_LOSS, float(step), step=step)
    (tmp_path / "config.yaml").write_text("a: 1")
    fresh.client.log_artifact(run_id, str(tmp_path / "config.yaml"))
    fresh.client.set_terminated(run_id)
    source = open_source(fresh.uri)
    (run,) = source.read().runs
    path = source.artifact(run, "config.yaml")
    assert path is not None
    assert path.read_text() == "a: 1"
    assert source.artifact(run, "none.parquet") is None
    expected = {Metric.TRAIN_LOSS: [(step, float(step)) for step in range(0, 450, 50)]}
    assert source.curves(run) == expected
    Path(fresh.uri.removeprefix("sqlite:///")).unlink()  # from here on only the memory is left
    assert source.artifact(run, "config.yaml") == path
    assert source.curves(run) == expected


@pytest.mark.parametrize("length", [0, 1, 2, 199, 200, 201, 399, 1000, 37_500])
def test_a_long_curve_is_thinned_to_means_and_ends_where_it_ended(length: int):
    points = [(step, float(step)) for step in range(length)]
    thin = thinned(points[::-1])
    assert len(thin) <= CURVE_POINTS
    assert thin[-1:] == points[-1:]
    assert thinned(thin) == thin
    if length <= CURVE_POINTS:
        assert thin == points
    else:
        width = thin[0][0] + 1
        assert thin[0] == (width - 1, (width - 1) / 2)
    assert thinned([*points, (length, float("nan")), (length, 1.797e308)]) == thin


def test_a_user_without_a_home_gets_a_cache_for_this_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(RuntimeError, match="home directory"):
        Path.home()
    assert Cache("sqlite:////nowhere.db").runs() == {}
