"""``mixerbench leaderboard site``: the boards as pages, with what is known here of their mixers."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixerbench.commands import Command
from mixerbench.commands._arguments import add_hardware, add_uri, results_address, split_plugins

if TYPE_CHECKING:
    from leaderboard.site import Site


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="a new one, or an older site"
    )
    add_hardware(parser)
    parser.add_argument("--mlflow-url", default="", help="MLflow's address, to link the runs")
    add_uri(parser, or_bundle=True)


def _run(options: argparse.Namespace) -> None:
    filters, plugins = split_plugins(options.settings)
    print(
        site(
            results_address(options.uri),
            Path(options.out),
            filters=filters,
            hardware=options.hardware,
            mlflow_url=options.mlflow_url,
            plugins=plugins,
        )
    )


def site(
    address: str,
    out: Path,
    *,
    filters: Sequence[str] = (),
    hardware: str = "",
    mlflow_url: str = "",
    plugins: Sequence[str] = (),
) -> str:
    """Write the pages as `write` does; returns what to print of them."""
    written = write(
        *(address, out),
        filters=filters,
        hardware=hardware,
        mlflow_url=mlflow_url,
        plugins=plugins,
    )
    return (
        f"{written.index}: {written.boards} board{'s' if written.boards != 1 else ''}, "
        f"{written.entries} entries, {written.bytes / 1e6:.1f} MB. It opens from the disk."
    )


def write(
    address: str,
    out: Path,
    *,
    filters: Sequence[str] = (),
    hardware: str = "",
    mlflow_url: str = "",
    plugins: Sequence[str] = (),
) -> "Site":
    """Write the boards as pages into the folder ``out``.

    Args:
        address: an MLflow tracking URI, or a bundle's folder.
        mlflow_url: as in `write_site`; of a server its own address, unless told otherwise.
        plugins: Python files whose mixers' pages are whole; they are run.

    Raises:
        Refusal: nothing to read there, an unknown filter, or ``out`` holds something else.
    """
    from leaderboard import boards, open_source
    from leaderboard.site import write_site
    from mixerbench.commands.leaderboard._mixer_pages import families_of

    source = open_source(address)
    reading = source.read()
    shown = boards(
        *(reading.runs, reading.measurements), filters=filters, hardware=hardware, source=source
    )
    if not mlflow_url and address.startswith(("http://", "https://")):
        mlflow_url = source.name
    return write_site(
        source,
        shown,
        out,
        skipped=reading.skipped,
        families=families_of(shown, plugins),
        mlflow_url=mlflow_url,
    )


COMMAND = Command(
    summary="write the leaderboard as a folder of pages that needs no server",
    description="""\
Write the leaderboard as a folder of pages that needs neither server nor network.""",
    help="""\
FIELD=VALUE writes only some entries, as in 'mixerbench leaderboard'.

examples:
  mixerbench leaderboard site --out site
  mixerbench leaderboard site protocol=digits --out site --uri leaderboard/published/digits_micro
  mixerbench leaderboard site --out site --mlflow-url http://mlflow.lab.example:5000
  mixerbench leaderboard site --out site 'plugins=[my_mixer.py]'
      with a whole page of your own mixer, whose code is run; without, what its runs recorded
""",
    run=_run,
    add_flags=_add_flags,
    order=20,
)
