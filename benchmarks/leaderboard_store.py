"""How long a leaderboard of thousands of runs takes to open: at first, again, and with news.

Peer: ``mlflow.search_runs``, MLflow's own data frame of all runs, on the same SQLite store. Each
reading is a process of its own, as a command is, imports included; the kinds take turns.

    python benchmarks/leaderboard_store.py [--runs 10000] [--store FOLDER] [--rounds 3]

Filling a store through the client's API takes about 80 ms a run; ``--store`` keeps it for later.
"""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from harness import HERE, Benchmark, Turn, compare, process

sys.path.insert(0, str(HERE.parent / "tests" / "helpers"))  # the generator that the tests use

READ = """
import leaderboard, sys
print(len(leaderboard.leaderboard_text(sys.argv[1], format="json")))
"""
PEER = """
import mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
print(len(mlflow.search_runs(search_all_experiments=True, max_results=50000)))
"""
KINDS = ("first", "again", "with news", "mlflow.search_runs")
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


def add_run(uri: str) -> None:
    """One more run in the store."""
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient(uri)
    experiment = client.search_experiments(max_results=1)[0]
    (last,) = client.search_runs([experiment.experiment_id], max_results=1)
    run = client.create_run(experiment.experiment_id, tags=dict(last.data.tags))
    for key, value in last.data.metrics.items():
        client.log_metric(run.info.run_id, key, value)
    params = [Param(key, value) for key, value in last.data.params.items()]
    for start in range(0, len(params), 100):  # as many as one call may hold
        client.log_batch(run.info.run_id, params=params[start : start + 100])
    client.set_terminated(run.info.run_id)


def main() -> None:
    benchmark = Benchmark(__file__, __doc__, rounds=3)
    benchmark.parser.add_argument("--runs", type=int, default=10_000)
    benchmark.parser.add_argument("--store", type=Path, help="where it is kept for another time")
    options = benchmark.options()
    # Each of these processes imports for seconds: two of them show whether all run.
    runs, kinds = (3, KINDS[2:]) if options.tiny else (options.runs, KINDS)
    turns: dict[str, list[Turn]] = defaultdict(list)
    memory: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as place:
        folder = options.store or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        uri = fill(folder, runs)
        for number in range(options.rounds):
            # In this order: each kind is what the one before leaves behind. No round goes
            # uncounted, for a command's first call is what is asked about.
            for kind in kinds:
                if kind == "with news":
                    add_run(uri)
                code = PEER if kind == "mlflow.search_runs" else READ
                cache = {"XDG_CACHE_HOME": f"{place}/cache-{number}"}
                quiet = {"MLFLOW_DISABLE_TELEMETRY": "true"}
                turn, mib, _ = process(code, uri, environment=cache | quiet)
                turns[kind].append(turn)
                memory[kind] = max(memory[kind], mib)
    rows = compare(f"{runs} runs", turns, "mlflow.search_runs", memory_mib=memory)
    benchmark.write(options, rows)


if __name__ == "__main__":
    main()
