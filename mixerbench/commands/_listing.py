"""The work of ``mixerbench list``, read from source and from ``configs/``; no torch."""

import shutil
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixerbench.commands._arguments import split_plugins
from mixerbench.config.files import CONFIGS, config_names
from mixerbench.config.parts import part_catalog
from mixerbench.config.presets import PRESETS
from mixerbench.config.sizes import size_settings
from mixerbench.errors import Refusal
from mixers.core.names import nearest
from mixers.core.plan import SCHEDULES, plan_name
from mixers.core.spec import MISSING, Option

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


def listing(arguments: Sequence[str]) -> str:
    """The tables that ``arguments`` name, all of them if they name none.

    Raises:
        Refusal: no such table, or a plugin that cannot be read.
    """
    names, plugins = split_plugins(arguments)
    for name in names:
        if name not in _TABLES:
            raise Refusal(f"there is no list of {name!r}. {nearest(name, _TABLES)}")
    # What reads a pipe wants whole lines, and below 110 characters nothing is left for papers.
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    console = Console(highlight=False, width=max(columns, 110))
    with console.capture() as capture:
        for name in names or _TABLES:
            header, rows = _TABLES[name](plugins)
            table = Table(title=name, title_justify="left", box=None, pad_edge=False)
            for column, cells in zip(header, zip(*rows, strict=True), strict=True):
                lines = [line for cell in (column, *cells) for line in cell.splitlines()]
                whole = column not in ("paper", "what it is")  # these wrap, the others do not
                table.add_column(column, min_width=max(map(len, lines)) if whole else None)
            for row in rows:
                table.add_row(*map(Text, row))
            console.print(table)
            console.print()
    return capture.get().rstrip()


def _mixers(plugins: Sequence[str]) -> Rows:
    rows = []
    for name, entry in part_catalog("mixer", plugins).items():
        any_grid = "any" if entry.facts.get("any_grid") else "as built"
        token = "yes" if entry.facts.get("mixes_prefix") else "no"
        kind, cost = entry.facts.get("family", "other"), entry.facts.get("complexity", "")
        options = _options("mixer", entry.options)
        rows.append((name, kind, cost, options, any_grid, token, entry.paper))
    for name, schedule in SCHEDULES.items():
        plan = f"mixer.plan=[{','.join(schedule.plan)}]"
        rows.append((name, "plan", "", plan, "any", "yes", schedule.paper))
    header = ("mixer", "family", "cost", "options", "grid", "class token", "paper")
    return header, sorted(rows)


def _parts(kind: str, setting: str | None = None) -> Callable[[Sequence[str]], Rows]:
    """Rows of a kind; ``setting`` names it on the command line if the kind itself does not."""

    def rows(plugins: Sequence[str]) -> Rows:
        found = part_catalog(kind, plugins).values()
        if setting is not None:
            return (setting, "what it is", "paper"), [(e.name, e.summary, e.paper) for e in found]
        return (kind, "options", "paper"), [
            (entry.name, _options(kind, entry.options), entry.paper) for entry in found
        ]

    return rows


def _sizes(plugins: Sequence[str]) -> Rows:
    return ("size", "backbone", "width", "depth", "heads"), [
        (name, backbone, *map(_numbers, size_settings(row).values()))
        for backbone, spec in part_catalog("backbone", plugins).items()
        for name, row in spec.facts["sizes"].items()
    ]


def _numbers(value: int | list[int]) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


def _presets(plugins: Sequence[str]) -> Rows:
    rows: list[tuple[str, ...]] = []
    for name, preset in PRESETS.items():
        model = preset.model
        names = [model[part]["name"] for part in ("backbone", "stem")]
        mixer = plan_name(model["mixer"])
        rows.append((name, names[0], model["size"], names[1], mixer, preset.top1, preset.paper))
    return ("preset", "backbone", "size", "stem", "mixer", "published top-1", "paper"), rows


def _files(group: str) -> Callable[[Sequence[str]], Rows]:
    def rows(plugins: Sequence[str]) -> Rows:
        found: list[tuple[str, ...]] = []
        for name in config_names(group):
            first = (CONFIGS / group / f"{name}.yaml").read_text().splitlines()[0]
            found.append((name, first.lstrip("# ")))
        return (group, "what it is"), found

    return rows


def _options(kind: str, options: Sequence[Option]) -> str:
    return "\n".join(
        f"{kind}.{option.name}={shown(option.default)}"
        + (f" ({', '.join(map(shown, option.choices))})" if option.choices else "")
        for option in options
    )


def shown(default: object) -> str:
    """As the command line takes it."""
    if default is MISSING:
        return "(the protocol's)"
    if isinstance(default, bool):
        return str(default).lower()
    return "null" if default is None else str(default)


_TABLES: dict[str, Callable[[Sequence[str]], Rows]] = {
    "presets": _presets,
    "mixers": _mixers,
    "sizes": _sizes,
    "stems": _parts("stem"),
    "backbones": _parts("backbone"),
    "channel_mixers": _parts("channel_mixer", "backbone.channel_mixer"),
    "mergings": _parts("merging", "backbone.merging"),
    "protocols": _files("protocol"),
    "recipes": _files("recipe"),
    "data": _files("data"),
    "suites": _files("suite"),
}
