"""``mixerbench list``: what can be named on the command line."""

import argparse

from mixerbench.commands import Command


def _run(options: argparse.Namespace) -> None:
    from mixerbench.commands._listing import listing

    print(listing(options.settings))


COMMAND = Command(
    summary="presets, mixers, sizes, stems, backbones, protocols, recipes",
    description="""\
List what can be named on the command line: presets, mixers, sizes, stems, backbones,
channel mixers, mergings, protocols, recipes, data, suites.""",
    help="""\
examples:
  mixerbench list
  mixerbench list mixers
  mixerbench list mixers 'plugins=[my_mixer.py]'
""",
    run=_run,
    order=50,
)
