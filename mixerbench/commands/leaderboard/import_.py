"""``mixerbench leaderboard import``: somebody's bundle becomes runs of a store."""

import argparse

from mixerbench.commands import Command
from mixerbench.commands._arguments import add_uri, results_address


def _run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from mixerbench.commands.leaderboard._bundle import import_bundle_folder

    for folder in options.settings:
        print(import_bundle_folder(Path(folder), results_address(options.uri)))


COMMAND = Command(
    summary="take somebody's bundle into the store",
    description="Check a bundle and take its runs into the store; what is there already stays.",
    help="""\
examples:
  mixerbench leaderboard import leaderboard/published/digits_micro
""",
    run=_run,
    add_flags=add_uri,
    settings="+",
    order=60,
)
