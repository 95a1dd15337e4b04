"""``mixerbench leaderboard publish``: the pages as artifacts, where people browse in MLflow."""

import argparse

from mixerbench.commands import Command
from mixerbench.commands._arguments import add_uri, results_address, split_plugins


def _run(options: argparse.Namespace) -> None:
    from mixerbench.commands.leaderboard._publishing import publish

    filters, plugins = split_plugins(options.settings)
    print(publish(results_address(options.uri), filters, plugins))


COMMAND = Command(
    summary="store the pages in MLflow",
    description="""\
Store the pages in MLflow, in a run called 'leaderboard' of each board's experiment.""",
    help="""\
examples:
  mixerbench leaderboard publish
  mixerbench leaderboard publish protocol=digits
""",
    run=_run,
    add_flags=add_uri,
    order=40,
)
