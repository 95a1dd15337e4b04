"""The figures of all benchmarks as tables in benchmarks/README.md: ``python benchmarks/table.py``.

With ``--check`` nothing is written, and it fails where the README is out of date.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- begin: python benchmarks/table.py -->", "<!-- end -->"
_HEADINGS = {
    "memory_mib": "memory, MiB",
    "difference": "largest difference",
    "bar": "to hold",
    "megabytes": "MB",
    "images_per_second": "images a second",
    "overhead_ms": "ms beyond its peer",
}
_KNOWN = {"case", "candidate", "peer", "cpu_ms", "wall_ms", "cpu_ratio", "wall_ratio"}


def all_tables(results: Path = HERE / "results") -> str:
    """A section for each file of ``results``."""
    return "\n".join(section(path) for path in sorted(results.glob("*.json")))


def section(path: Path) -> str:
    """Heading, what was measured on what, and the figures."""
    result = json.loads(path.read_text(encoding="utf-8"))
    plot = path.with_suffix(".png")
    versions = ", ".join(f"{name} {one}" for name, one in result["versions"].items())
    lines = [
        f"### {path.stem}",
        "",
        result["what"],
        "",
        f"`{result['command']}`, {result['rounds']} rounds. {result['hardware']}; "
        f"{versions or 'versions not recorded'}; "
        f"commit {result['commit'].replace('-dirty', ' with changes')}.",
        *([f"\n{result['note']}"] if "note" in result else []),
        "",
        *([f"![{result['what']}](results/{plot.name})\n"] if plot.exists() else []),
        growth_table(path) if "powers" in result else rows_table(result),
    ]
    return "\n".join(lines)


def rows_table(result: Mapping[str, Any]) -> str:
    """A line a candidate: time, ratio to the peer with quartiles, and what else was measured."""
    rows = result["rows"]
    more = list(dict.fromkeys(key for row in rows for key in row if key not in _KNOWN))
    head = ["case", "candidate", "ms", "times faster than its peer", *more]
    body = []
    for row in rows:
        clock = result["clock"] if f"{result['clock']}_ms" in row else "wall"
        time, ratio = row.get(f"{clock}_ms"), row.get(f"{clock}_ratio")
        cells = [row["case"], row["candidate"], _number(time["median"]) if time else ""]
        cells.append(_ratio(ratio) if ratio else "")
        cells += [_cell(key, row.get(key)) for key in more]
        body.append(cells)
    return _markdown([_HEADINGS.get(name, name) for name in head], body, left=2)


def growth_table(path: Path) -> str:
    """A line a mixer: milliseconds and MiB at each number of tokens, and the powers."""
    result = json.loads(path.read_text(encoding="utf-8"))
    rows, powers = result["rows"], result["powers"]
    tokens = sorted({row["tokens"] for row in rows})
    cells = {(row["candidate"], row["tokens"]): row for row in rows}
    names = sorted({row["candidate"] for row in rows})
    time, clock = [], f"{result['clock']}_ms"
    memory, parameters = [], []
    for name in names:
        own = [cells.get((name, n)) for n in tokens]
        power = powers.get(name, {})
        time.append(
            [name, *(_number(row[clock]["median"]) if row else "-" for row in own)]
            + [f"{power[kind]:.2f}" if power.get(kind) else "" for kind in ("time", "macs")]
        )
        memory.append([name, *(_number(row["memory_mib"]) if row else "-" for row in own)])
        counts = list(dict.fromkeys(row["parameters"] for row in own if row))
        parameters.append(f"{name} {', '.join(f'{n / 1e6:.2f}' for n in counts)}")
    head = [f"N = {n}" for n in tokens]
    missing = [f"{one['candidate']} at {one['case']}: {one['why']}." for one in result["left_out"]]
    return "\n".join(
        [
            "Milliseconds of forward and backward by the number of tokens; power p of the time, "
            f"and of the multiply-adds, in N^p over {result['fitted_to']}:",
            "",
            _markdown(["mixer", *head, "p, time", "p, MACs"], time, left=1),
            "Peak MiB, weights included:",
            "",
            _markdown(["mixer", *head], memory, left=1),
            "Millions of parameters, by grid where they grow with it: "
            + "; ".join(parameters)
            + ".\n",
            *(["Left out: " + " ".join(missing), ""] if missing else []),
        ]
    )


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, rule, *body])


def _ratio(ratio: Mapping[str, float]) -> str:
    median = f"**{ratio['median']:.2f}**"
    if "lower_quartile" not in ratio:
        return median
    return f"{median} ({ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f})"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "bar":
        return f"≥ {value:g}"
    if key == "difference":
        return "equal bit by bit" if value == 0 else f"{value:.0e}"
    if isinstance(value, Mapping):
        low, high = _number(value["lower_quartile"]), _number(value["upper_quartile"])
        return f"{_number(value['median'])} ({low} to {high})"
    return _number(value) if isinstance(value, (int, float)) else str(value)


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where it is out of date")
    check = parser.parse_args().check
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = f"{before}{BEGIN}\n\n{all_tables()}\n{END}{after}"
    if new == text:
        return
    if check:
        sys.exit(f"{readme} is out of date: python benchmarks/table.py writes it.")
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
