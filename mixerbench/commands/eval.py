"""``mixerbench eval``: the accuracy of weights in a file."""

import argparse

from mixerbench.commands import Command
from mixerbench.commands._arguments import add_ema
from mixerbench.config.assignments import split_arguments
from mixerbench.errors import Refusal


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_ema(parser)
    parser.add_argument("--predictions", metavar="FILE", help="write one row per image (Parquet)")


def _run(options: argparse.Namespace) -> None:
    own, settings = split_arguments(options.settings, ["checkpoint"])
    if not own:
        raise Refusal("eval needs checkpoint=PLACE: a run's folder or a .safetensors file.")
    from mixerbench.commands._checkpoint import evaluate_place

    print(evaluate_place(own["checkpoint"], settings, options.ema, options.predictions))


COMMAND = Command(
    summary="accuracy of a checkpoint",
    description="Measure the accuracy of a checkpoint on the validation images.",
    help="""\
checkpoint=PLACE is a run's folder or a .safetensors file. The model and the protocol are
those that it was trained with, unless settings say otherwise. A plugin is run only if you name it.

examples:
  mixerbench eval checkpoint=runs/digits-1b2c3d4e/attention_micro-seed0-20261121-101500
  mixerbench eval checkpoint=model.safetensors evaluation.image_size=48
  mixerbench eval checkpoint=model.safetensors data.root=/data/imagenet run.device=cuda
  mixerbench eval checkpoint=model.safetensors 'plugins=[my_mixer.py]'
""",
    run=_run,
    add_flags=_add_flags,
    order=30,
)
