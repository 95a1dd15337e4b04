"""``mixerbench import``: an official checkpoint becomes one of mixerbench."""

import argparse

from mixerbench.commands import Command
from mixerbench.commands._arguments import add_ema
from mixerbench.config.assignments import split_arguments
from mixerbench.errors import Refusal


def _run(options: argparse.Namespace) -> None:
    own, others = split_arguments(options.settings, ["preset", "checkpoint", "out"])
    if others:
        raise Refusal(f"import takes preset=NAME, checkpoint=FILE and out=FILE, not {others[0]!r}.")
    for key in ("preset", "checkpoint"):
        if key not in own:
            raise Refusal(f"import needs {key}=...: 'mixerbench import --help' shows how.")
    from mixerbench.commands._official import import_checkpoint

    print(import_checkpoint(own["preset"], own["checkpoint"], own.get("out"), options.ema))


COMMAND = Command(
    summary="a checkpoint that a paper's authors published",
    description="Turn a checkpoint, as its authors publish it, into one of mixerbench.",
    help="""\
preset=NAME says which model it is, checkpoint=FILE where it lies (.pth or .safetensors). Every
entry must find its place; no code in the file is run.

examples:
  mixerbench import preset=ff_base checkpoint=linear-base-checkpoint.pth
  mixerbench import preset=lit_s checkpoint=lit_s.pth out=weights/lit_s.safetensors
  mixerbench eval preset=ff_base checkpoint=ff_base.safetensors protocol=imagenet_deit \\
      data.root=/data/imagenet
""",
    run=_run,
    add_flags=add_ema,
    order=60,
)
