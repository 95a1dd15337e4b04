"""The leaderboard as a folder of pages that needs no server and no network.

``templates/`` is what the pages say, ``assets/`` how they look, ``scripts/`` how they react,
``vendor/`` the libraries that draw tables and plots, `data` what these are given.
"""

import hashlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboard import render
from leaderboard.mixer_description import MixerDescription
from leaderboard.ranking.board import Board
from leaderboard.ranking.columns import COLUMNS, Column
from leaderboard.ranking.entries import Entry
from leaderboard.reading.results import TrainedRun
from leaderboard.reading.source import Source
from leaderboard.repeat import command_of
from leaderboard.site import data
from leaderboard.site.families import COLORS, legend, looks
from leaderboard.text import plain
from mixerbench.tracking.figures import FIGURES, HEADLINE
from mixerbench.tracking.keys import Artifact, Hardest, Tag
from mixers.core.errors import Refusal

if TYPE_CHECKING:
    from jinja2 import Environment


HERE = Path(__file__).parent
MARK = ".mixerbench-site"  # in a folder that may be written anew
ASSETS = (
    *("vendor/dataTables.dataTables.min.css", "vendor/buttons.dataTables.min.css"),
    *("assets/site.css", "assets/theme.js"),
    *("vendor/dataTables.min.js", "vendor/dataTables.buttons.min.js"),
    *("vendor/plotly-cartesian.min.js", "vendor/LICENSE.plotly.txt"),
    "vendor/LICENSE.datatables.txt",
)
SCRIPTS = (
    *("plots", "tables", "address", "comparisons", "curves", "answers"),
    *("against", "pareto", "consistency", "board", "compare", "entry", "mixer", "newer", "start"),
)
"""Files of ``scripts/``, which share one scope: joined they are ``site.js``."""
_SCRIPT_HEAD = """\
// What the pages do. Tables are DataTables', plots are Plotly's; this file brings them the data of
// window.mixerbench (board-*.js) or of the page's own #content, and keeps the view in the address.
// Names come from runs, where anybody may have written anything: they are set as text only.
"use strict";
(() => {
"""


@dataclass(frozen=True)
class Site:
    folder: Path
    boards: int
    entries: int
    bytes: int

    @property
    def index(self) -> Path:
        return self.folder / "index.html"


def write_site(
    source: Source,
    boards: Sequence[Board],
    out: Path,
    *,
    skipped: Mapping[str, int] = render.NO_SKIPPED,
    families: Mapping[str, MixerDescription] = {},
    mlflow_url: str = "",
) -> Site:
    """Write the pages of these boards into the folder ``out``, all of them or none.

    Args:
        families: what is known of the mixers, by name.
        mlflow_url: where MLflow's pages are, to link each run: an address, or ".." from these
            pages; empty: no links.

    Raises:
        Refusal: ``out`` is a folder of something else.
    """
    if out.exists() and not (out / MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refusal(f"{out} holds something else than a site: give a new or an empty folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        new = Path(temporary) / "site"
        new.mkdir(mode=0o755)
        (new / MARK).touch()
        for asset in ASSETS:
            shutil.copy(HERE / asset, new / Path(asset).name)
        (new / "site.js").write_text(_site_script(), encoding="utf-8", newline="\n")
        _Writer(source, boards, new, skipped, families, mlflow_url).write()
        if out.exists():
            out.rename(Path(temporary) / "old")
        new.rename(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Site(out, len(boards), sum(len(board.entries) for board in boards), size)


def _site_script() -> str:
    """All `SCRIPTS` as one classic script: pages opened from the disk load no modules."""
    parts = [(HERE / "scripts" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return _SCRIPT_HEAD + "\n".join(parts) + "})();\n"


def single_page(page: Path) -> str:
    """A page of a site with all that it loads inside: one file, for viewers that show only one."""

    def load(name: str) -> str:
        return (page.parent / name).read_text(encoding="utf-8")

    def style(match: re.Match[str]) -> str:
        return f"<style>{load(match[1])}</style>"

    def script(match: re.Match[str]) -> str:
        # "</script" inside of a script would end it; in JavaScript's strings \\/ is /.
        content = load(match[1]).replace("</script", r"<\/script")
        return f"<script nonce={nonce}>{content}</script>"

    html = page.read_text(encoding="utf-8")
    nonce = secrets.token_hex(16)
    html = html.replace("script-src 'self' file:;", f"script-src 'nonce-{nonce}';")
    html = re.sub(r'<link rel="stylesheet" href="([\w.-]+)">', style, html)
    html = re.sub(r'(<a\b[^>]*?) href="[\w.-]+(#[^"]*)?"', r"\1", html)  # to what is not there
    return re.sub(r'<script src="([\w.-]+)"></script>', script, html)


class _Writer:
    """One site that is being written."""

    def __init__(
        self,
        source: Source,
        boards: Sequence[Board],
        folder: Path,
        skipped: Mapping[str, int],
        families: Mapping[str, MixerDescription],
        mlflow_url: str,
    ) -> None:
        self.source, self.boards, self.folder = source, boards, folder
        self.skipped, self.families, self.mlflow_url = skipped, families, mlflow_url.rstrip("/")
        self.environment = _environment()
        self.board_pages = {board.fingerprint: board_page(board)
                            for board in boards}  # fmt: skip
        used = {entry.mixer for board in boards for entry in board.everyone}
        self.mixer_pages = {
            name: f"mixer-{_slug(name)}.html" for name in sorted(families) if name in used
        }

    def write(self) -> None:
        for board in self.boards:
            self._write_board(board)
        for name in self.mixer_pages:
            self._write_mixer(self.families[name])
        self._page("index.html", "index.html", title="Leaderboards")
        # 200 entries have 19,900 comparisons: several megabytes of JSON.
        content = render.json(self.boards, self.skipped, most_compared=data.FEW)
        self._text("leaderboard.json", content)
        self._text("leaderboard.md", render.markdown(self.boards, self.skipped))

    def _write_board(self, board: Board) -> None:
        details = {
            entry.key: data.read_details(self.source, board, entry) for entry in board.entries
        }
        slug = _slug(board.fingerprint)
        hrefs = {entry.key: f"entry-{slug}-{_slug(entry.key)}.html" for entry in board.entries}
        look = looks(board, self.families)
        content = data.script(data.board_data(board, details, hrefs, look))
        self._text(f"board-{slug}.js", f"window.mixerbench = {content};\n")
        self._text(f"board-{slug}.csv", render.csv([board]))
        compare_page = f"compare-{slug}.html"
        common: dict[str, Any] = {
            "board": board,
            "data_file": f"board-{slug}.js",
            "csv_file": f"board-{slug}.csv",
            "compare_page": compare_page,
            "hrefs": hrefs,
            "looks": look,
            "legend": legend(look),
            "class_names": data.class_names(details),
        }
        columns = [column for column in board.columns if column.in_tables]
        self._page(
            self.board_pages[board.fingerprint],
            "board.html",
            title=data.name(board.protocol),
            columns=columns,
            counted=[figure for figure in FIGURES if figure.is_cost and not figure.per_machine],
            **common,
        )
        self._page(
            compare_page,
            "compare.html",
            title=f"Compare · {data.name(board.protocol)}",
            **common,
        )
        for entry in board.entries:
            self._page(
                hrefs[entry.key],
                "entry.html",
                title=data.name(entry.label),
                entry=entry,
                columns=[c for c in COLUMNS if entry.value(c) is not None and c.in_tables],
                details=details[entry.key],
                content=data.entry_data(entry, details[entry.key], few=data.has_few(board)),
                locks={run.run_id: self._lock(run) for run in entry.runs},
                settings=self._settings(entry.runs[-1]),
                **common,
            )

    def _write_mixer(self, family: MixerDescription) -> None:
        entries = [
            (board, entry)
            for board in self.boards
            for entry in board.entries
            if entry.mixer == family.name
        ]
        page = self.mixer_pages[family.name]
        parts = [
            {
                "name": part.name,
                "macs": sorted(part.macs.items()),
                "formulaMacs": sorted(part.formula_macs.items()),
                "reach": part.reach,
            }
            for part in family.parts
        ]
        self._page(
            page,
            "mixer.html",
            title=family.name,
            family=family,
            entries=entries,
            content={"parts": parts},
        )

    def _lock(self, run: TrainedRun) -> str:
        """The file that lists the packages of a run; many runs share one."""
        path = self.source.artifact(run, Artifact.ENVIRONMENT)
        if path is None:
            return ""
        return self._shared("lock", path.read_text(encoding="utf-8", errors="replace"))

    def _settings(self, run: TrainedRun) -> dict[str, str]:
        """The files of the settings that most entries have in common, by group."""
        files = {}
        for group in ("run", "environment"):
            settings = run.params.get(group, {})
            lines = [f"{plain(k)}: {plain(v)}\n" for k, v in sorted(settings.items())]
            if lines:
                files[group] = self._shared(group, "".join(lines))
        return files

    def _shared(self, kind: str, content: str) -> str:
        """The name of a text file that is written once, however many pages link it."""
        name = f"{kind}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.txt"
        self._text(name, content)
        return name

    def _page(self, file: str, template: str, **values: Any) -> None:
        text = self.environment.get_template(template).render(
            boards=self.boards,
            board_pages=self.board_pages,
            mixer_pages=self.mixer_pages,
            families=self.families,
            colors=COLORS,
            skipped=self.skipped,
            source=self.source.name,
            run_link=self._run_link,
            command_of=command_of,
            HEADLINE=HEADLINE,
            Hardest=Hardest,
            Tag=Tag,
            **values,
        )
        self._text(file, text)

    def _text(self, file: str, text: str) -> None:
        (self.folder / file).write_text(text, encoding="utf-8", newline="\n")

    def _run_link(self, run: TrainedRun) -> str:
        """The run's page in MLflow, or nothing."""
        if self.mlflow_url != ".." and not re.match(r"https?://", self.mlflow_url):
            return ""
        ids = (run.experiment_id, run.run_id)
        if not all(re.fullmatch(r"\w+", part) for part in ids):
            return ""
        return f"{self.mlflow_url}/#/experiments/{ids[0]}/runs/{ids[1]}"


def board_page(board: Board) -> str:
    """The name of its page."""
    return f"board-{_slug(board.fingerprint)}.html"


def _slug(text: str) -> str:
    """A file name: of a fingerprint itself, of anything else what is harmless of it, and a hash."""
    if re.fullmatch(r"[0-9a-z_]{1,40}", text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^0-9a-z]+', '-', text.casefold())[:24].strip('-')}-{digest}"


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "script": lambda content: Markup(data.script(content)),
        "name": data.name,
        "plain": plain,
        "day": _day,
    }
    environment.globals |= {"cell": render.cell, "sort_key": sort_key}
    return environment


def sort_key(entry: Entry, column: Column) -> str:
    """What a table sorts by; missing numbers last."""
    if column.name == "ranks":
        low, high = entry.rank_range
        return f"{low}.{high:05d}"
    value = entry.value(column)
    if column.format == "s":
        return plain(str(value or ""))
    return "" if value is None else repr(value)


def _day(milliseconds: int) -> str:
    from datetime import UTC, datetime

    try:
        day = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):  # beyond the year 9999, or before 1
        return "at no known time"
    return day.strftime("%Y-%m-%d %H:%M UTC")
