"""``mixerbench profile``: the measures of a model that was not trained, whole and in parts."""

import argparse
import sys
from functools import partial

from mixerbench.commands import Command


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _run(options: argparse.Namespace) -> None:
    from mixerbench.config.compose import compose
    from mixerbench.launching.size_matching import Matcher
    from mixerbench.process import limit_threads

    to_stderr = partial(print, file=sys.stderr)
    settings = compose(options.settings, Matcher(to_stderr if options.json else print))
    limit_threads(settings.run.threads)
    from mixerbench.commands._cost_report import profile

    print(profile(settings, options.json))


COMMAND = Command(
    summary="what a model costs, and where its time and memory go",
    description="""\
Count and time a model; nothing is trained and no data is needed.
Shows where the time and the memory of a training step go, by part and by operator, and the share of
the device's measured peak.""",
    help="""\
examples:
  mixerbench profile mixer=attention size=tiny protocol=imagenet_deit backbone.pool=token
  mixerbench profile mixer=patch_ff size=base protocol=imagenet_deit run.measure_batch_size=8
  mixerbench profile mixer=local_attention mixer.window=5 --json
  mixerbench profile preset=lit_s protocol=imagenet_deit
  mixerbench profile mixer=patch_ff size=small protocol=imagenet_deit match=flops:4.6G
""",
    run=_run,
    add_flags=_add_flags,
    order=40,
)
