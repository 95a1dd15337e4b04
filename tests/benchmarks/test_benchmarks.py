"""Every benchmark runs in its smallest form, and the README says what the results say."""

import importlib.util
import json
import multiprocessing
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(
    path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in ("harness", "table")
)


@pytest.fixture
def run(monkeypatch):
    """Runs a script in a process of its own, a copy of one that imports for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mixerbench.models", "mixerbench.config.compose", "mlflow"])

    def run_script(script: str, *arguments: object) -> int | None:
        path = str(BENCHMARKS / f"{script}.py")
        # A new process takes both from this one.
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        monkeypatch.syspath_prepend(BENCHMARKS)
        process = context.Process(
            target=runpy.run_path, args=(path,), kwargs={"run_name": "__main__"}
        )
        process.start()
        process.join()
        return process.exitcode

    return run_script


@pytest.mark.everything  # a long matrix
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_compares_with_its_peer(script, run, tmp_path):
    if script == "leaderboard_site" and not (
        shutil.which("chromium") and importlib.util.find_spec("playwright")
    ):
        pytest.skip("no browser here")
    out = tmp_path / f"{script}.json"
    before = {path: path.read_bytes() for path in (BENCHMARKS / "results").iterdir()}
    assert run(script, "--tiny", "--device", "cpu", "--out", out) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {"what", "command", "hardware", "versions", "commit", "rounds"} <= result.keys()
    compared = [row for row in result["rows"] if "peer" in row]
    if script != "leaderboard_site" or importlib.util.find_spec("itables"):
        assert compared, "no row compares anything"
    for row in compared:
        assert row["wall_ratio"]["median"] > 0
        assert row["peer"] != row["candidate"]
    kept = {path: path.read_bytes() for path in (BENCHMARKS / "results").iterdir()}
    assert kept == before, "a tiny run has overwritten results"


def test_the_table_in_the_readme_holds_the_results():
    command = [sys.executable, str(BENCHMARKS / "table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
