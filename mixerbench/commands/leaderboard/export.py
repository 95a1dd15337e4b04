"""``mixerbench leaderboard export``: results as a folder for others."""

import argparse

from mixerbench.commands import Command
from mixerbench.commands._arguments import add_uri, results_address


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new one")
    add_uri(parser)


def _run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from mixerbench.commands.leaderboard._bundle import export_bundle

    print(export_bundle(results_address(options.uri), options.settings, Path(options.out)))


COMMAND = Command(
    summary="a bundle of results to give to others",
    description="Write a bundle: results with their predictions, for others to check and to rank.",
    help="""\
examples:
  mixerbench leaderboard export protocol=digits --out my_results
""",
    run=_run,
    add_flags=_add_flags,
    order=50,
)
