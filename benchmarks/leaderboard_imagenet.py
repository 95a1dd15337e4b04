"""A board of ImageNet's size, 40 models x 3 seeds x 50,000 images: its analysis and its pages.

Peer: pandas and statsmodels, McNemar's exact test of each two models with one seed each, from
the same files. Ours makes the same p-values, and intervals, ranks, agreement and calibration. With
three seeds, and for the pages, there is no peer. Each turn is a process of its own, as a command
is, imports included.

    python benchmarks/leaderboard_imagenet.py [--entries 40] [--store FOLDER] [--rounds 3]

Filling a store takes about a second a run; ``--store`` keeps it for later.
"""

import json
import os
import random
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from harness import HERE, Benchmark, Turn, compare, process

sys.path.insert(0, str(HERE.parent / "tests" / "helpers"))  # the generator that the tests use

SEEDS = 3
IMAGES, CLASSES = 50_000, 1000
PEER = "pandas and statsmodels"

READ = """
import json, shutil, sys
from pathlib import Path
from leaderboard.ranking.boards import boards
from leaderboard.reading.mlflow_source import MlflowSource
source = MlflowSource(sys.argv[1])
reading = source.read()
assert not reading.skipped, reading.skipped
runs = [run for run in reading.runs if int(run.seed) < int(sys.argv[2])]
(board,) = boards(runs, source=source)
"""
OURS = f"""{READ}
print(json.dumps([one.p_images for one in board.analysis.comparisons.values()]))
"""
PAGES = f"""{READ}
from leaderboard.site import write_site
print(json.dumps(write_site(source, [board], Path(sys.argv[3])).bytes))
"""
FILES = f"""{READ}
from mixerbench.tracking.keys import Artifact
entries = [runs[0] for runs in ([*entry.runs] for entry in board.everyone)]
order = list(dict.fromkeys(run.model_fingerprint for run in runs))
entries.sort(key=lambda run: order.index(run.model_fingerprint))
print(json.dumps([str(source.artifact(run, Artifact.PREDICTIONS)) for run in entries]))
"""
THEIRS = """
import json, sys
from itertools import combinations
import pandas
from statsmodels.stats.contingency_tables import mcnemar
frames = [pandas.read_parquet(path).set_index("image") for path in sys.argv[1:]]
right = [frame["target"] == frame["top1"] for frame in frames]
tests = [mcnemar(pandas.crosstab(a, b), exact=True) for a, b in combinations(right, 2)]
print(json.dumps([float(test.pvalue) for test in tests]))
"""


def fill(folder: Path, entries: int, images: int, classes: int) -> str:
    """The address of a store with that many entries; what is there already stays."""
    import made_stores

    if not (folder / "mlflow.db").exists():
        folder.mkdir(parents=True, exist_ok=True)
        store = made_stores.MadeStore(folder, classes=classes)
        made_stores.fill(store, entries, SEEDS, images=images, classes=classes)
    return f"sqlite:///{folder / 'mlflow.db'}"


def check_same(ours: list[float], theirs: list[float]) -> None:
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if worst > 1e-9:
        sys.exit(f"ours and {PEER} differ by {worst:.2g} in a p-value.")


def main() -> None:
    benchmark = Benchmark(__file__, __doc__, rounds=3)
    benchmark.parser.add_argument("--entries", type=int, default=40)
    benchmark.parser.add_argument("--store", type=Path, help="where it is kept for another time")
    options = benchmark.options()
    entries = 2 if options.tiny else options.entries
    size = (100, 5) if options.tiny else (IMAGES, CLASSES)
    turns: dict[str, dict[str, list[Turn]]] = defaultdict(lambda: defaultdict(list))
    memory: dict[str, float] = {}
    megabytes = 0.0
    one, all_seeds = f"{entries} x 1 runs", f"{entries} x {SEEDS} runs"
    with tempfile.TemporaryDirectory() as place:
        uri = fill(options.store or Path(place) / "store", entries, *size)

        def run(case: str, name: str, code: str, *arguments: str, cache: str) -> Any:
            environment = {"XDG_CACHE_HOME": cache, "MLFLOW_DISABLE_TELEMETRY": "true"}
            turn, mib, said = process(code, *arguments, environment=environment)
            turns[case][name].append(turn)
            memory[name] = max(memory.get(name, 0), mib)
            return json.loads(said)

        for number in range(options.rounds):
            fetched, new = f"{place}/fetched-{number}", f"{place}/cache-{number}"
            files = run("", "", FILES, uri, "1", cache=fetched)
            for path in Path(fetched).glob("mixerbench/*/analyses/*"):
                path.unlink()
            sides = [
                lambda cache=fetched: run(one, "ours", OURS, uri, "1", cache=cache),
                lambda cache=fetched, files=files: run(one, PEER, THEIRS, *files, cache=cache),
            ]
            order = random.sample((0, 1), 2)
            said = {place: sides[place]() for place in order}
            check_same(said[0], said[1])
            if not options.tiny:  # each of these processes imports for seconds
                run(all_seeds, "first analysis, fetched from the store", OURS, uri, "3", cache=new)
            out = f"{place}/site-{number}"
            megabytes = run(all_seeds, "pages", PAGES, uri, "3", out, cache=new) / 1e6
    turns.pop("")
    rows = compare(one, turns[one], PEER, memory_mib=memory)
    for name, own in turns[all_seeds].items():
        figures = {"memory_mib": memory, "megabytes": {"pages": megabytes}}
        rows += compare(all_seeds, {name: own}, name, **figures)
    benchmark.write(options, rows, cores=os.cpu_count())


if __name__ == "__main__":
    main()
