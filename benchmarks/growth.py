"""How time and memory of every registered mixer grow with the number of tokens.

No peer but each other: a mixer's ratio is attention's time over its own. The power of the
growth between the largest grids is fitted, of the time and of the multiply-adds.

    python benchmarks/growth.py [--rounds 5] [--limit-s 20] [--limit-gib 3]

A grid is left out where its weights with their gradients would not fit, where the memory of
the grids before lets one expect that, or where the grid before took too long already. Beside
the figures a table (growth.md) and a plot (growth.png).
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import Benchmark, Pass, compare, interleave, peak_mib
from table import growth_table

from mixerbench.measure.flops import _count_by_torch
from mixerbench.measure.tokens import DIM, HEADS, _OnImage
from mixers import TokenGrid, create_mixer, list_mixers

SIDES = (7, 14, 28, 56, 112)
LARGEST = 3  # grids that a power is fitted to: small ones tell of the projections


def fitted_power(by_tokens: Mapping[int, float]) -> float | None:
    """p in cost ∝ tokens^p, by least squares in logarithms over the largest grids."""
    points = sorted(by_tokens.items())[-LARGEST:]
    if len(points) < 2 or any(cost <= 0 for _, cost in points):
        return None
    xs, ys = [math.log(n) for n, _ in points], [math.log(cost) for _, cost in points]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return slope / sum((x - x_mean) ** 2 for x in xs)


def macs_and_weights(name: str, grid: TokenGrid) -> tuple[int, int]:
    """Multiply-adds and parameters of one layer, which is not made for that: meta tensors."""
    with torch.device("meta"):
        mixer = create_mixer(name, DIM, grid, HEADS)
        image = torch.zeros(1, DIM, *grid[:2])
    return _count_by_torch(_OnImage(mixer), image), sum(p.numel() for p in mixer.parameters())


class Growth:
    """What is known of one mixer, grid by grid."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds: dict[int, float] = {}
        self.activations: dict[int, float] = {}  # MiB

    def refused(self, weights: int, options: argparse.Namespace) -> str | None:
        """Why the next grid is left out."""
        limit = 1024 * options.limit_gib
        own = 2 * 4 * weights / 2**20  # and gradients
        if own > limit:
            return f"its weights and their gradients take {own / 1024:.1f} GiB"
        if self.seconds and (last := list(self.seconds.values())[-1]) > options.limit_s:
            return f"the grid before took {last:.0f} s"
        if len(self.activations) > 1:
            before, last = list(self.activations.values())[-2:]
            if own + (expected := last * last / before) > limit:
                return f"it would take about {(own + expected) / 1024:.1f} GiB"
        return None


def main() -> None:
    benchmark = Benchmark(__file__, __doc__, rounds=5)
    add = benchmark.parser.add_argument
    add("--limit-s", type=float, default=20.0, help="no larger grid after one pass of so long")
    add("--limit-gib", type=float, default=3.0, help="of weights, gradients and activations")
    options = benchmark.options()
    clock = "wall" if options.device.type == "cuda" else "cpu"
    grown = {name: Growth(name) for name in list_mixers()}
    macs: dict[str, dict[int, int]] = defaultdict(dict)
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    for side in (4, 6) if options.tiny else SIDES:
        grid = TokenGrid(side, side)
        passes, memory, weights = {}, {}, {}
        for name, growth in grown.items():
            macs[name][grid.tokens], weights[name] = macs_and_weights(name, grid)
            if (why := growth.refused(weights[name], options)) is not None:
                left_out.append({"candidate": name, "case": f"{grid.tokens} tokens", "why": why})
                continue
            passes[name] = one_pass(name, grid, options)
            growth.activations[grid.tokens] = peak_mib(passes[name], options.device)
            # What a layer holds at its peak: with its weights, which grow too.
            memory[name] = growth.activations[grid.tokens] + 4 * weights[name] / 2**20
        if not passes:
            break
        turns = interleave(passes, options.rounds, options.device)
        for name, own in turns.items():
            grown[name].seconds[grid.tokens] = median(getattr(turn, clock) for turn in own)
        case = f"{grid.tokens} tokens"
        peer = "attention" if "attention" in turns else next(iter(turns))
        rows += compare(
            case, turns, peer, tokens=dict.fromkeys(turns, grid.tokens),
            memory_mib=memory, parameters=weights, macs={n: macs[n][grid.tokens] for n in macs},
        )  # fmt: skip
    powers = {}
    for name, growth in grown.items():
        same = {tokens: macs[name][tokens] for tokens in growth.seconds}
        if any(same.values()):  # the others move memory: no power to compare with
            powers[name] = {"time": fitted_power(growth.seconds), "macs": fitted_power(same)}
    fitted_to = f"the {LARGEST} largest grids of each mixer"
    out = benchmark.write(options, rows, powers=powers, fitted_to=fitted_to, left_out=left_out)
    for one in left_out:
        print(f"{one['case']}, {one['candidate']}: left out, {one['why']}")
    if out is not None:
        out.with_suffix(".md").write_text(growth_table(out), encoding="utf-8")
        plot(rows, powers, out.with_suffix(".png"), clock, benchmark.hardware(options))


def one_pass(name: str, grid: TokenGrid, options: argparse.Namespace) -> Pass:
    torch.manual_seed(0)
    mixer = create_mixer(name, DIM, grid, HEADS).to(options.device).train()
    x = torch.randn(1, grid.tokens, DIM, device=options.device, requires_grad=True)
    parameters = dict(mixer.named_parameters())
    return Pass(lambda x: mixer(x, grid), x, parameters, options.precision)


def plot(
    rows: Sequence[Mapping[str, Any]],
    powers: Mapping[str, Any],
    path: Path,
    clock: str,
    hardware: str,
) -> None:
    """Time on the left, memory on the right, both axes logarithmic; mixers without products: no."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator

    panels = {
        "forward + backward, ms": lambda row: row[f"{clock}_ms"]["median"],
        "peak memory, MiB": lambda row: row["memory_mib"],
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    tokens = sorted({row["tokens"] for row in rows})
    colours = pyplot.get_cmap("tab10").colors
    for axis, (title, value) in zip(axes, panels.items(), strict=True):
        ends = []
        for colour, name in zip(colours, powers, strict=False):
            points = [(row["tokens"], value(row)) for row in rows if row["candidate"] == name]
            axis.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=2, markersize=5)
            power = powers[name]["time"]
            label = f"{name}  $N^{{{power:.1f}}}$" if "ms" in title and power else name
            ends.append((points[-1], label, colour))
        axis.set(xscale="log", yscale="log", xlabel="tokens N")
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_xticks(tokens, [f"{n}\n{math.isqrt(n)} x {math.isqrt(n)}" for n in tokens])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.set_xlim(tokens[0] / 1.3, tokens[-1] * 12)
        axis.grid(True, which="major", color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        _label(axis, ends)
    figure.suptitle(
        f"One mixer layer, {DIM} channels, {HEADS} heads, one image  ·  {hardware}",
        fontsize=9, color="0.35", x=0.01, ha="left",
    )  # fmt: skip
    figure.savefig(path, dpi=140, facecolor="white")
    pyplot.close(figure)


def _label(axis: Any, ends: Sequence[tuple[tuple[float, float], str, Any]]) -> None:
    """Each line's name behind its last point, or left of it where others go on.

    Names that would touch are moved apart.
    """
    low, high = (math.log10(limit) for limit in axis.get_ylim())
    apart, lowest = 0.055 * (high - low), -math.inf
    largest = max(x for (x, _), _, _ in ends)
    for (x, y), label, colour in sorted(ends, key=lambda end: end[0][1]):
        style = {"color": colour, "fontsize": 10, "va": "center"}
        if x < largest:
            axis.annotate(label, (x, y), xytext=(x / 1.2, y * 1.1), ha="right", **style)
            continue
        lowest = max(math.log10(y), lowest + apart)
        axis.annotate(label, (x, y), xytext=(x * 1.2, 10**lowest), **style)


if __name__ == "__main__":
    main()
