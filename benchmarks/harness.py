"""What the benchmarks share: turns in one process, ratios round by round, figures as JSON.

A machine that others use too, or that grows warm, slows everything down for a while. So all
candidates run in turns, each round in another order, and what is reported are ratios within a
round: their median and quartiles. On a CPU the process's own time says more than the clock on
the wall, which counts others' work; on a GPU only the wall does.
"""

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixerbench.devices import autocast, choose_device
from mixerbench.measure.hardware import hardware_name
from mixerbench.measure.memory import MIB, peak_bytes
from mixerbench.training.provenance import git_state

HERE = Path(__file__).parent
RESULTS = HERE / "results"
_TURN_SECONDS = 0.2  # as in torch.utils.benchmark.Timer.blocked_autorange
_PACKAGES = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "mlflow")


@dataclass(frozen=True)
class Turn:
    """What one turn of a candidate took, in seconds."""

    cpu: float | None  # of this process, all threads; None: the work is another program's
    wall: float


class Pass:
    """A forward and a backward pass of a part or a model, as training makes them.

    Args:
        forward: what is timed, from ``x``.
        x: the input; it gets a gradient if it ``requires_grad``, as that of any but the first
            layer does.
        parameters: by name; what is compared between candidates must be named alike.
        precision: of autocast.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        x: Tensor,
        parameters: Mapping[str, nn.Parameter],
        precision: str = "fp32",
    ) -> None:
        self._forward, self._x, self._precision = forward, x, precision
        self._leaves = {"x": x, **parameters} if x.requires_grad else dict(parameters)
        self._weights: Tensor | None = None  # of the outputs in the sum that is differentiated

    def __call__(self) -> None:
        self._run()
        self._forget()

    def results(self) -> dict[str, Tensor]:
        """The output and every gradient, by name."""
        output = self._run().detach()
        found = {n: leaf.grad for n, leaf in self._leaves.items() if leaf.grad is not None}
        self._forget()
        return {"output": output, **found}

    def _run(self) -> Tensor:
        with autocast(self._x.device, self._precision):
            output = self._forward(self._x)
        if output.requires_grad:  # not the zeros of mixer none
            if self._weights is None:
                generator = torch.Generator().manual_seed(0)
                weights = torch.randn(output.shape, generator=generator)
                self._weights = weights.to(output)
            output.backward(self._weights)
        return output

    def _forget(self) -> None:
        for leaf in self._leaves.values():
            leaf.grad = None


def check_same(
    case: str,
    passes: Mapping[str, Pass],
    peer: str,
    tolerance: float = 1e-5,
    *,
    gradients: bool = True,
) -> dict[str, float]:
    """How far each candidate's output and gradients are from ``peer``'s, of the largest value.

    Random numbers are the same for all. 0 means equal bit by bit.

    Args:
        gradients: False compares the outputs alone, where parameters have other names.

    Raises:
        SystemExit: further than ``tolerance``: then there is nothing to compare.
    """
    outcomes = {}
    for name, one in passes.items():
        torch.manual_seed(0)
        results = one.results()
        outcomes[name] = results if gradients else {"output": results["output"]}
    expected = outcomes.pop(peer)
    worst = {}
    for name, found in outcomes.items():
        if found.keys() != expected.keys():
            unlike = sorted(found.keys() ^ expected.keys())
            sys.exit(f"{case}: {name} and {peer} do not both have {', '.join(unlike)}.")
        differences = {key: _difference(found[key], expected[key]) for key in expected}
        key = max(differences, key=differences.__getitem__)
        worst[name] = differences[key]
        if not worst[name] <= tolerance:
            sys.exit(f"{case}: {name} and {peer} differ by {worst[name]:.2g} in {key}.")
    return worst


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value, or to 0.01 where that is smaller."""
    if one.shape != other.shape:
        return float("inf")
    largest = max(other.abs().max().item(), 0.01)
    return (one.double() - other.double()).abs().max().item() / largest


def peak_mib(call: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """What a call allocates at its peak, above what is there before it."""
    call()  # what is kept from a first call on is not this call's
    return peak_bytes(call, torch.device(device)) / MIB


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, list[Turn]]:
    """Turns of every candidate, one in each round; one round before them is not counted.

    A turn is one call, or as many as take ``_TURN_SECONDS``: a layer stands in a row of its
    like, not after a peer that has emptied the caches and given its memory back.
    """
    names, shuffle = list(candidates), random.Random(seed).shuffle
    first = {name: timed(candidates[name], device).wall for name in names}
    calls = {
        name: math.ceil(_TURN_SECONDS / took) if rounds > 1 else 1 for name, took in first.items()
    }
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for _ in range(rounds):
        shuffle(names)
        for name in names:
            turns[name].append(timed(candidates[name], device, calls[name]))
    return turns


def timed(call: Callable[[], object], device: torch.device | str = "cpu", calls: int = 1) -> Turn:
    """The mean of so many calls in a row, waited for."""
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        call()
    if is_cuda:
        torch.cuda.synchronize()
    return Turn((time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls)


def process(code: str, *arguments: str, environment: Mapping[str, str]) -> tuple[Turn, float, str]:
    """What a process of this Python code took, its MiB, and the last line that it printed.

    Args:
        environment: beside this process's own.
    """
    code += _PEAK
    cpu, wall = _seconds_of_children(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**os.environ, **environment}, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    turn = Turn(_seconds_of_children() - cpu, time.perf_counter() - wall)
    *_, said, kib = done.stdout.strip().splitlines()
    return turn, int(kib) / 1024, said


# Not ru_maxrss: a process is born with the peak of the one that started it, which has torch.
_PEAK = """
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
            if any(getattr(turn, clock) is None for turn in [*own, *turns[peer]]):
                continue
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
        options = self.parser.parse_intermixed_args()
        options.device = choose_device(options.device)
        if options.tiny:
            options.rounds = 1
        torch.set_num_threads(1)
        return options

    def hardware(self, options: argparse.Namespace) -> str:
        """On what it runs, in a line."""
        return hardware_name(options.device, options.precision)

    def write(
        self, options: argparse.Namespace, rows: Sequence[Mapping[str, Any]], **more: Any
    ) -> Path | None:
        """Print the figures, and keep them; a tiny run's only where ``--out`` says so.

        Args:
            more: what belongs to no row, under a name of its own.

        Returns:
            The file.
        """
        commit, dirty = git_state() or ("unknown", False)
        result = {
            "what": self._what,
            "command": " ".join(["python", f"benchmarks/{self._name}.py", *sys.argv[1:]]),
            "hardware": self.hardware(options),
            "clock": "wall" if options.device.type == "cuda" else "cpu",
            "cores": os.cpu_count(),
            "versions": {name: found for name in _PACKAGES if (found := _version(name))},
            "commit": commit + ("-dirty" if dirty else ""),
            "rounds": options.rounds,
            **more,
            "rows": list(rows),
        }
        text = json.dumps(_rounded(result), indent=1) + "\n"
        for row in rows:
            print(_line(row))
        out = options.out or (None if options.tiny else RESULTS / f"{self._name}.json")
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text, encoding="utf-8")
        return out


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
