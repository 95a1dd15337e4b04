"""How long a leaderboard of thousands of runs takes to open: at first, again, and with news.

Peer: ``mlflow.search_runs``, MLflow's own data frame of all runs, on the same SQLite store. Each
reading is a process of its own, as a command is, imports included; the kinds take turns.

    python benchmarks/leaderboard_store.py [--runs 10000] [--store FOLDER] [--rounds 3] [--out FILE]

Filling a store through the client's API takes about 80 ms a run; ``--store`` keeps it for later.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "helpers"))  # the generator that the tests use

READ = """
import leaderboard, resource, sys
text = leaderboard.leaderboard_text(sys.argv[1], format="json")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(text))
"""
PEER = """
import mlflow, resource, sys
mlflow.set_tracking_uri(sys.argv[1])
found = mlflow.search_runs(search_all_experiments=True, max_results=50000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(found))
"""
SEEDS = 50  # of one model, so that the board has runs / 50 entries, each of the newest run a seed


def fill(folder: Path, runs: int) -> str:
    """The address of a store with that many runs; what is there already stays."""
    from made_stores import MadeStore

    path = folder / "mlflow.db"
    if path.exists():
        return f"sqlite:///{path}"
    store = MadeStore(folder)
    for number in range(runs):
        model, seed = divmod(number, SEEDS)
        store.log(f"model_{model}", seed=seed, top1=50 + 40 * number / runs)
    return store.uri


def read(code: str, uri: str, cache: str) -> tuple[float, float]:
    """Seconds and MiB of a process."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "MLFLOW_DISABLE_TELEMETRY": "true"}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, uri], env=environment, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    return time.perf_counter() - begin, int(done.stdout.split()[0]) / 1024


def add_run(uri: str) -> None:
    """One more run in the store."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.search_experiments(max_results=1)[0]
    (last,) = client.search_runs([experiment.experiment_id], max_results=1)
    run = client.create_run(experiment.experiment_id, tags=dict(last.data.tags))
    for key, value in last.data.metrics.items():
        client.log_metric(run.info.run_id, key, value)
    client.set_terminated(run.info.run_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "leaderboard_store.json")
    options = parser.parse_args()
    kinds: dict[str, list[tuple[float, float]]] = {
        name: [] for name in ("first", "again", "with_news", "peer")
    }
    with tempfile.TemporaryDirectory() as place:
        folder = options.store or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        uri = fill(folder, options.runs)
        for round in range(options.rounds):
            cache = str(Path(place) / f"cache-{round}")
            kinds["first"].append(read(READ, uri, cache))
            kinds["again"].append(read(READ, uri, cache))
            add_run(uri)
            kinds["with_news"].append(read(READ, uri, cache))
            kinds["peer"].append(read(PEER, uri, cache))
    result: dict[str, Any] = {
        "what": f"a process that reads a SQLite store of {options.runs} runs and prints the board",
        "rounds": options.rounds,
        "mlflow": _version("mlflow"),
        "hardware": f"{os.cpu_count()} cores",
    }
    for name, measured in kinds.items():
        seconds = [one[0] for one in measured]
        result[name] = {
            "seconds_median": statistics.median(seconds),
            "seconds": seconds,
            "memory_mib": max(one[1] for one in measured),
        }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    main()
