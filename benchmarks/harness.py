"""What the benchmarks share: turns in one process, ratios round by round, figures as JSON.

A machine that others use too, or that grows warm, slows everything down for a while. So all
candidates run in turns, each round in another order, and what is reported are ratios within a
round: their median and quartiles. On a CPU the process's own time says more than the clock on
the wall, which counts others' work; on a GPU only the wall does.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mixerbench.devices import choose_device
from mixerbench.measure.hardware import hardware_name
from mixerbench.training.provenance import git_state

HERE = Path(__file__).parent
RESULTS = HERE / "results"
_PACKAGES = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "mlflow")


@dataclass(frozen=True)
class Turn:
    """What one turn of a candidate took, in seconds."""

    cpu: float  # of this process, all threads
    wall: float


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, list[Turn]]:
    """Turns of every candidate, one in each round; one round before them is not counted."""
    names, shuffle = list(candidates), random.Random(seed).shuffle
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(rounds + 1):
        shuffle(names)
        for name in names:
            turn = timed(candidates[name], device)
            if number:
                turns[name].append(turn)
    return turns


def timed(call: Callable[[], object], device: torch.device | str = "cpu") -> Turn:
    """One call, waited for."""
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    if is_cuda:
        torch.cuda.synchronize()
    return Turn(time.process_time() - cpu, time.perf_counter() - wall)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    lower, median, upper = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else (values[0],) * 3
    )
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper}


def compare(
    case: str, turns: Mapping[str, Sequence[Turn]], peer: str, **more: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row for each candidate: its times, and how many times faster it is than ``peer``.

    Args:
        case: what was run: a size, a setting.
        more: further figures of each candidate, by name: ``memory_mib={"ours": 3.0}``.
    """
    rows = []
    for name, own in turns.items():
        row: dict[str, Any] = {"case": case, "candidate": name}
        for clock in ("cpu", "wall"):
            mine = [getattr(turn, clock) for turn in own]
            theirs = [getattr(turn, clock) for turn in turns[peer]]
            row[f"{clock}_ms"] = spread([1e3 * seconds for seconds in mine])
            if name != peer:
                row["peer"] = peer
                row[f"{clock}_ratio"] = spread(
                    [other / one for one, other in zip(mine, theirs, strict=True)]
                )
        rows.append(row | {key: figures[name] for key, figures in more.items() if name in figures})
    return rows


class Benchmark:
    """The command line of a benchmark, and the file that it writes.

    Args:
        file: its ``__file__``, after which the results are called.
        doc: its ``__doc__``; the first line says in the results what was measured.
        rounds: how many there are unless ``--rounds`` says so.
    """

    def __init__(self, file: str, doc: str, rounds: int) -> None:
        self._name, self._what = Path(file).stem, doc.strip().splitlines()[0]
        self.parser = argparse.ArgumentParser(
            description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add = self.parser.add_argument
        add("--rounds", type=int, default=rounds, help=f"turns of each candidate ({rounds})")
        add("--tiny", action="store_true", help="the smallest sizes, one round: does it run?")
        add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
        add("--precision", default="fp32", help="fp32 or bf16, under autocast")
        add("--out", type=Path, help=f"where the figures go (results/{self._name}.json)")

    def options(self) -> argparse.Namespace:
        """What the command line says; one thread on the CPU, as in a run."""
        options = self.parser.parse_args()
        options.device = choose_device(options.device)
        if options.tiny:
            options.rounds = 1
        torch.set_num_threads(1)
        return options

    def write(self, options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print the figures, and keep them; a tiny run's only where ``--out`` says so."""
        commit, dirty = git_state() or ("unknown", False)
        result = {
            "what": self._what,
            "command": " ".join(["python", f"benchmarks/{self._name}.py", *sys.argv[1:]]),
            "hardware": hardware_name(options.device, options.precision),
            "cores": os.cpu_count(),
            "versions": {name: found for name in _PACKAGES if (found := _version(name))},
            "commit": commit + ("-dirty" if dirty else ""),
            "rounds": options.rounds,
            "rows": list(rows),
        }
        text = json.dumps(_rounded(result), indent=1) + "\n"
        for row in rows:
            print(_line(row))
        out = options.out or (None if options.tiny else RESULTS / f"{self._name}.json")
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text, encoding="utf-8")


def _line(row: Mapping[str, Any]) -> str:
    parts = [f"{row['case']:<28} {row['candidate']:<28}"]
    for clock in ("cpu", "wall"):
        if f"{clock}_ms" in row:
            parts.append(f"{row[f'{clock}_ms']['median']:>10.2f} ms {clock}")
        if ratio := row.get(f"{clock}_ratio"):
            quartiles = f"{ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f}"
            parts.append(f"{ratio['median']:.2f} x ({quartiles})")
    return "  ".join(parts)


def _rounded(value: Any) -> Any:
    """Four digits: what follows is noise."""
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
