"""``mixerbench leaderboard serve``: MLflow on a store, with the leaderboard's pages beside it."""

import argparse

from mixerbench.commands import Command
from mixerbench.commands._arguments import add_uri, results_address


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="another one asks for a password")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--refresh-seconds", type=float, default=30.0, metavar="SECONDS")
    add_uri(parser)


def _run(options: argparse.Namespace) -> None:
    from mixerbench.commands.leaderboard._serving import serve

    serve(results_address(options.uri), options.host, options.port, options.refresh_seconds)


COMMAND = Command(
    summary="MLflow with these pages beside it",
    description="""\
Start MLflow on this machine, with the leaderboard's pages at /mixerbench/ beside it.""",
    help="""\
examples:
  mixerbench leaderboard serve
  mixerbench leaderboard serve --port 5050 --uri sqlite:////data/mlflow.db
""",
    run=_run,
    add_flags=_add_flags,
    settings="",
    order=30,
)
