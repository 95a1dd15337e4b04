"""``mixerbench measure``: what the models of a leaderboard cost on this machine, side by side."""

import argparse

from mixerbench.commands import Command
from mixerbench.commands._arguments import add_uri, split_plugins
from mixerbench.config.assignments import key_of
from mixerbench.errors import Refusal


def _run(options: argparse.Namespace) -> None:
    from mixerbench.config.compose import compose
    from mixerbench.process import limit_threads
    from mixerbench.tracking.measurements import SETTINGS
    from mixerbench.tracking.store import resolve_uri

    settings, plugins = split_plugins(options.settings)
    given = [setting for setting in settings if setting.startswith("run.")]
    filters = [setting for setting in settings if setting not in given]
    run = compose(given).run
    for setting in given:
        if key_of(setting).removeprefix("run.") not in SETTINGS:
            raise Refusal(
                f"measure does not depend on {setting}: it takes run.{', run.'.join(SETTINGS)}."
            )
    limit_threads(run.threads)
    from mixerbench.commands._measuring import measure

    measure(filters, run, resolve_uri(options.uri), plugins)


COMMAND = Command(
    summary="what the models of a leaderboard cost on this machine, side by side",
    description="""\
Measure all models of one leaderboard on this machine, in one interleaved run, and record it.
What was measured in one such run can be ranked; on other hardware it cannot.""",
    help="""\
FIELD=VALUE leaves one board and some of its entries, as those of 'mixerbench leaderboard' do.
run.device, run.precision, run.threads, run.measure_batch_size and run.measure_seconds (of each
model, and as many again for the latency of one image) are the same for all models. A model of a
plugin is measured if plugins=[FILE.py] names the file that it was trained with.

examples:
  mixerbench measure protocol=digits
  mixerbench measure protocol=1b2c3d4e size=base run.device=cuda run.precision=bf16
  mixerbench measure protocol=imagenet_deit run.measure_batch_size=128 run.measure_seconds=20
""",
    run=_run,
    add_flags=add_uri,
    order=90,
)
