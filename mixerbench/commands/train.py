"""``mixerbench train``: train a model under a protocol, or a sweep of models."""

import argparse
from typing import TYPE_CHECKING

from mixerbench.commands import Command
from mixerbench.commands._start import check_store, with_data
from mixerbench.errors import Refusal

if TYPE_CHECKING:
    from mixerbench.config.schema import Settings


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="train every combination of SETTING=A,B,C"
    )
    parser.add_argument(
        "--cfg", action="store_true", help="print the resolved settings, train nothing"
    )


def _run(options: argparse.Namespace) -> None:
    from mixerbench.config import compose
    from mixerbench.launching.size_matching import Matcher

    if options.cfg:
        comment = Matcher(lambda line: print(f"# {line}"))  # what follows is YAML
        _print_settings(compose.compose(options.settings, comment))
        return
    from mixerbench.training.launch import find_rank

    match = Matcher(prepare=with_data)
    if find_rank() is not None:
        if options.multirun:
            raise Refusal("a sweep starts its own processes: run it without torchrun or srun.")
        from mixerbench.launching.rank import train_as_rank

        train_as_rank(lambda: with_data(compose.compose(options.settings, match)))
        return
    if options.multirun:
        runs = compose.compose_sweep(options.settings, match)
    else:
        runs = [compose.compose(options.settings, match)]
    for settings in runs:
        with_data(settings)
    check_store(runs[0])  # before the seconds that torch takes, and once for a sweep
    if runs[0].launcher.name == "slurm":
        from mixerbench.launching.slurm import SlurmJob

        for job in map(SlurmJob, runs):
            print(f"job {job.submit()}: {job.name}, log {job.log}")
    elif options.multirun:
        from mixerbench.launching.local import run_sweep

        run_sweep(runs)
    else:
        print(_train_one(runs[0]))


def _print_settings(settings: "Settings") -> None:
    import dataclasses

    import yaml

    from mixerbench.tracking.passwords import masked

    print(yaml.safe_dump(masked(dataclasses.asdict(settings)), sort_keys=False), end="")


def _train_one(settings: "Settings") -> str:
    import tempfile
    from pathlib import Path

    from mixerbench.launching.job import Job
    from mixerbench.launching.local import train_job
    from mixerbench.process import limit_threads

    limit_threads(settings.run.threads)
    with tempfile.TemporaryDirectory() as folder:
        return train_job(Job.create(Path(folder), settings))


COMMAND = Command(
    summary="train a model, or a sweep of them",
    description="Train a model under a protocol, and log everything to MLflow.",
    help="""\
examples:
  mixerbench train mixer=patch_ff size=base
      on the embedded digits; size=micro takes minutes on a laptop
  mixerbench train mixer=patch_ff size=base protocol=imagenet_deit protocol.data.root=/data/imagenet
      the paper's run
  mixerbench train mixer=local_attention mixer.window=5 mixer.border=masked
      options of the mixer; 'mixerbench list mixers' shows them
  mixerbench train mixer=attention backbone.pool=token stem=conv
      a class token, a convolution stem
  mixerbench train preset=lit_s size=micro mixer=patch_ff protocol.image_size=32
      a paper's model, with a part of it replaced; 'mixerbench list presets' shows them
  mixerbench train mixer=local_attention backbone=pyramid backbone.merging=patch
      another backbone
  mixerbench train -m mixer=patch_ff,attention,local_attention run.seed=0,1,2
      nine runs, several side by side; launcher.jobs=2 sets how many
  mixerbench train -m mixer=patch_ff,attention size=tiny match=params:5.7M
      each mixer as wide, if need be as deep, as costs 5.7 million parameters within 1 %, starting
      from the named size; match=flops:1.3G: so many multiply-adds (the papers' GFLOPs), one image
  mixerbench train mixer=attention run.resume=auto
      go on with the newest unfinished run of the same settings
  mixerbench train size=base protocol=imagenet_deit data.root=/data/imagenet run.devices=8
      on eight GPUs, with the numbers of one; launcher=slurm submits the same as a job
  mixerbench train mixer=mine 'plugins=[my_mixer.py]'
      your own mixer, registered in your own file
  mixerbench train mixer=attention recipe.epochs=100 run.device=cuda run.precision=bf16
      another number of epochs is another protocol, hence another leaderboard; bf16 is not

recipe.x stands for protocol.recipe.x, data.x for protocol.data.x.
""",
    run=_run,
    add_flags=_add_flags,
    order=10,
)
