"""``mixerbench reproduce``: the papers' models, counted, beside what was published."""

import argparse

from mixerbench.commands import Command


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", default="terminal", help="terminal, markdown or json")


def _run(options: argparse.Namespace) -> None:
    from mixerbench.commands._papers import reproduce

    print(reproduce(options.settings, options.format))


COMMAND = Command(
    summary="the papers' models beside what was published of them",
    description="""\
Count parameters and multiply-adds of the papers' models and set what was published beside them.""",
    help="""\
examples:
  mixerbench reproduce
  mixerbench reproduce lit_s sasa_r50
  mixerbench reproduce --format markdown
""",
    run=_run,
    add_flags=_add_flags,
    order=80,
)
