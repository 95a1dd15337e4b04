"""``mixerbench leaderboard``: the runs ranked; its actions are the other files here."""

import argparse
import sys

from mixerbench.commands import Command
from mixerbench.commands._arguments import add_uri, results_address


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", default="terminal", help="terminal, csv, json or markdown")
    parser.add_argument("--sort", metavar="COLUMN", help="a column, best first: top1, gmacs, ...")
    parser.add_argument(
        "--hardware",
        default="",
        help="whose speed, memory and energy to show: a part of its name (default: the one that "
        "most were measured on; no two are ever mixed)",
    )
    parser.add_argument(
        "--explain",
        nargs=2,
        metavar=("A", "B"),
        help="the settings in which two protocols differ: fingerprints, runs' names or ids",
    )
    parser.add_argument(
        "--refresh", action="store_true", help="read everything anew, not only what is new"
    )
    add_uri(parser, or_bundle=True)


def _run(options: argparse.Namespace) -> None:
    import shutil

    from leaderboard import explain_text, leaderboard_text

    address = results_address(options.uri)
    if options.explain:
        print(explain_text(address, *options.explain))
        return
    text = leaderboard_text(
        address,
        format=options.format,
        filters=options.settings,
        sort=options.sort or "top1",
        hardware=options.hardware,
        refresh=options.refresh,
        width=shutil.get_terminal_size((120, 24)).columns,
        color=sys.stdout.isatty(),
    )
    print(text)


COMMAND = Command(
    summary="rank the runs, one table per protocol; as pages, as bundles, beside MLflow",
    description="""\
Rank the finished runs, one table per protocol fingerprint: runs that were not trained and
evaluated alike never stand in one table.""",
    help="""\
FIELD=VALUE shows only some entries: mixer=patch_ff size=micro stem=conv protocol=digits,
and at equal cost, within 1 %: params=22M flops=4.6G (multiply-adds)

A rank is a range: an entry shares ranks with all that it does not differ from beyond chance.

actions, each with its own --help:
{actions}

examples:
  mixerbench leaderboard
  mixerbench leaderboard protocol=digits --sort gmacs
  mixerbench leaderboard --format csv > board.csv
  mixerbench leaderboard --uri leaderboard/published/digits_micro
  mixerbench leaderboard --explain 1b2c3d4e 99aabbcc
""",
    run=_run,
    add_flags=_add_flags,
    order=100,
)
