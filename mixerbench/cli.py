"""The command line: ``mixerbench <command> ...``. Nothing heavy is imported before it is needed."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from mixerbench.errors import UserError, as_user_errors, exit_code

if TYPE_CHECKING:
    from mixerbench.config.schema import Settings

HELP = """\
mixerbench: does your token mixer beat attention, fairly?

Usage: mixerbench COMMAND [SETTING=VALUE ...]

Commands
  train         train a model, or a sweep of them
  suite         train a whole benchmark, and go on with it after whatever has stopped it
  eval          accuracy of a checkpoint
  profile       parameters, multiply-adds, speed and memory of a model
  list          presets, mixers, sizes, stems, backbones, protocols, recipes
  import        a checkpoint that a paper's authors published
  reproduce     the papers' models beside what was published of them
  leaderboard   rank the runs, one table per protocol
  sync          upload what a tracking server has missed

Settings are of three groups
  model         free to vary: mixer, size, stem, backbone, or a preset of them
  protocol      identical in one leaderboard: data, recipe, evaluation
  run           without influence on the result: run.device, run.precision, tracking.uri, ...

Examples
  mixerbench train mixer=patch_ff size=base
  mixerbench train -m mixer=patch_ff,attention,local_attention run.seed=0,1,2
  mixerbench train preset=lit_s protocol=imagenet_lit protocol.data.root=/data/imagenet
  mixerbench leaderboard

'mixerbench COMMAND --help' shows more of each. MIXERBENCH_DEBUG=1 shows tracebacks.
"""


def main() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reports home by default
    sys.exit(exit_code(lambda: _dispatch(sys.argv[1:])))


def _dispatch(arguments: Sequence[str]) -> None:
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "train": _train,
        "suite": _suite,
        "eval": _eval,
        "profile": _profile,
        "list": _list,
        "import": _import,
        "reproduce": _reproduce,
        "leaderboard": _leaderboard,
        "sync": _sync,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
    elif arguments[0] == "--version":
        from mixerbench import __version__

        print(__version__)
    elif arguments[0] in commands:
        commands[arguments[0]](arguments[1:])
    else:
        from mixers.catalog import nearest

        raise UserError(f"unknown command {arguments[0]!r}. {nearest(arguments[0], commands)}")


class _Parser(argparse.ArgumentParser):
    """Options before, between and behind settings; its errors are ours."""

    def __init__(self, command: str, description: str, examples: str, settings: str = "*") -> None:
        super().__init__(
            prog=f"mixerbench {command}",
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "settings", nargs=settings, metavar="SETTING=VALUE", help=argparse.SUPPRESS
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See '{self.prog} --help'.")


def _train(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "train",
        "Train a model under a protocol, and log everything to MLflow.",
        """\
examples:
  mixerbench train mixer=patch_ff size=base
      on the embedded digits; size=micro takes minutes on a laptop
  mixerbench train mixer=patch_ff size=base protocol=imagenet_deit protocol.data.root=/data/imagenet
      the paper's run
  mixerbench train mixer=local_attention mixer.window=5 mixer.border=masked
      options of the mixer; 'mixerbench list mixers' shows them
  mixerbench train mixer=attention backbone.pool=token stem=conv
      a class token, a convolution stem
  mixerbench train preset=lit_s size=micro mixer=patch_ff
      a paper's model, with a part of it replaced; 'mixerbench list presets' shows them
  mixerbench train mixer=local_attention backbone=pyramid backbone.merging=patch
      another backbone
  mixerbench train -m mixer=patch_ff,attention,local_attention run.seed=0,1,2
      nine runs, several side by side; launcher.jobs=2 sets how many
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
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="train every combination of SETTING=A,B,C"
    )
    parser.add_argument(
        "--cfg", action="store_true", help="print the resolved settings, train nothing"
    )
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.config import compose

    if options.cfg:
        import dataclasses

        import yaml

        resolved = dataclasses.asdict(compose.compose(options.settings))
        print(yaml.safe_dump(resolved, sort_keys=False), end="")
        return
    from mixerbench.training.place import find_place

    if find_place() is not None:
        if options.multirun:
            raise UserError("a sweep starts its own processes: run it without torchrun or srun.")
        from mixerbench.launching.rank import train_as_rank

        train_as_rank(lambda: _ready(compose.compose(options.settings)))
        return
    if options.multirun:
        runs = compose.compose_sweep(options.settings)
    else:
        runs = [compose.compose(options.settings)]
    for one in runs:
        _ready(one)
    _check_store(runs[0])  # before the seconds that torch takes, and once for a sweep
    if runs[0].launcher.name == "slurm":
        from mixerbench.launching.slurm import SlurmJob

        for job in map(SlurmJob, runs):
            print(f"job {job.submit()}: {job.name}, log {job.log}")
        return
    if options.multirun:
        from mixerbench.launching.local import run_sweep

        run_sweep(runs)
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(runs[0].run.threads))
    print(_train_one(runs[0]))


def _suite(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "suite",
        "Train every run of a benchmark that is not finished, and print its leaderboard.",
        """\
actions:
  run    train what is not finished and resume what was begun; start it again after a kill
  show   what is finished, broken and waiting; trains nothing

suite=NAME is a file of configs/suite, suite=FILE.yaml one of your own: 'description:', and below
'runs:' settings as on the command line. A list is an axis, and every combination is a run; all
of them have one protocol. Further settings go beside those of the file, or instead of them.

examples:
  mixerbench suite run suite=seeds
  mixerbench suite run suite=seeds recipe.epochs=1 launcher.jobs=2
      another number of epochs is another protocol, hence another leaderboard
  mixerbench suite show suite=seeds
  mixerbench suite run suite=my_suite.yaml run.seed=0
""",
    )
    options = parser.parse_intermixed_args(arguments)
    actions = ("run", "show")
    action, *given = options.settings or [""]
    if action not in actions:
        from mixers.catalog import nearest

        what = f"has no action {action!r}" if action else "needs an action"
        raise UserError(f"suite {what}. {nearest(action, actions)}")
    places = [setting.partition("=")[2] for setting in given if setting.startswith("suite=")]
    if len(places) != 1:
        raise UserError(f"suite {action} needs one suite=NAME: see 'mixerbench list suites'.")
    from mixerbench.launching.suite import read_suite
    from mixerbench.training.place import find_place

    if find_place() is not None:
        raise UserError("a suite starts its own processes: run it without torchrun or srun.")
    suite = read_suite(places[0], [s for s in given if not s.startswith("suite=")])
    _ready(suite.any_run)
    from mixerbench.commands.suite import show_suite, train_suite

    if action == "show":
        show_suite(suite)
        return
    _check_store(suite.any_run)
    train_suite(suite)


def _ready(settings: "Settings") -> "Settings":
    from mixerbench.config.checks import check_data

    with as_user_errors():
        check_data(settings.protocol.data)
    return settings


def _check_store(settings: "Settings") -> None:
    tracking = settings.tracking
    if not tracking.offline:
        from mixerbench.tracking.store import check_reachable, resolve_uri

        check_reachable(resolve_uri(tracking.uri), tracking.timeout_seconds)


def _train_one(settings: "Settings") -> str:
    import tempfile
    from pathlib import Path

    from mixerbench.launching.job import Job
    from mixerbench.launching.local import train_job

    with tempfile.TemporaryDirectory() as place:
        return train_job(Job.create(Path(place), settings))


def _eval(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "eval",
        "Measure the accuracy of a checkpoint on the validation images.",
        """\
checkpoint=PLACE is a run's folder or a .safetensors file. The model and the protocol are
those that it was trained with, unless settings say otherwise.

examples:
  mixerbench eval checkpoint=runs/digits-1b2c3d4e/attention_micro-seed0-20261121-101500
  mixerbench eval checkpoint=model.safetensors evaluation.image_size=48
  mixerbench eval checkpoint=model.safetensors data.root=/data/imagenet run.device=cuda
""",
    )
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    parser.add_argument("--predictions", metavar="FILE", help="write one row per image (Parquet)")
    options = parser.parse_intermixed_args(arguments)
    place = next((s for s in options.settings if s.startswith("checkpoint=")), None)
    if place is None:
        raise UserError("eval needs checkpoint=PLACE: a run's folder or a .safetensors file.")
    given = [setting for setting in options.settings if setting is not place]
    from mixerbench.commands.eval import evaluate_place

    print(evaluate_place(place.partition("=")[2], given, options.ema, options.predictions))


def _profile(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "profile",
        "Count and time a model; nothing is trained and no data is needed.",
        """\
examples:
  mixerbench profile mixer=attention size=tiny protocol=imagenet_deit backbone.pool=token
  mixerbench profile mixer=patch_ff size=base protocol=imagenet_deit run.measure_batch_size=8
  mixerbench profile mixer=local_attention mixer.window=5 --json
  mixerbench profile preset=lit_s protocol=imagenet_deit
""",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.config.compose import compose

    settings = compose(options.settings)
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.run.threads))
    from mixerbench.commands.profile import profile

    print(profile(settings, options.json))


def _list(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "list",
        "List what can be named on the command line: presets, mixers, sizes, stems, backbones, "
        "channel mixers, mergings,\nprotocols, recipes, data, suites.",
        """\
examples:
  mixerbench list
  mixerbench list mixers
  mixerbench list mixers 'plugins=[my_mixer.py]'
""",
    )
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.commands.list import listing

    print(listing(options.settings))


def _import(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "import",
        "Turn a checkpoint, as its authors publish it, into one of mixerbench.",
        """\
preset=NAME says which model it is, checkpoint=FILE where it lies (.pth or .safetensors). Every
entry must find its place; no code in the file is run.

examples:
  mixerbench import preset=ff_base checkpoint=linear-base-checkpoint.pth
  mixerbench import preset=lit_s checkpoint=lit_s.pth out=weights/lit_s.safetensors
  mixerbench eval preset=ff_base checkpoint=ff_base.safetensors protocol=imagenet_deit \\
      data.root=/data/imagenet
""",
    )
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.commands.import_ import import_checkpoint

    print(import_checkpoint(options.settings, options.ema))


def _reproduce(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "reproduce",
        "Count parameters and multiply-adds of the papers' models and set what was published "
        "beside them.",
        """\
examples:
  mixerbench reproduce
  mixerbench reproduce lit_s sasa_r50
  mixerbench reproduce --format markdown
""",
    )
    parser.add_argument("--format", default="terminal", help="terminal, markdown or json")
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.commands.reproduce import reproduce

    print(reproduce(options.settings, options.format))


def _leaderboard(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "leaderboard",
        "Rank the finished runs, one table per protocol fingerprint: runs that were not trained "
        "and\nevaluated alike never stand in one table.",
        """\
FIELD=VALUE shows only some entries: mixer=patch_ff size=micro stem=conv protocol=digits

examples:
  mixerbench leaderboard
  mixerbench leaderboard protocol=digits --sort gmacs
  mixerbench leaderboard --format csv > board.csv
  mixerbench leaderboard --explain 1b2c3d4e 99aabbcc
""",
    )
    parser.add_argument("--format", default="terminal", help="terminal, csv, json or markdown")
    parser.add_argument("--sort", metavar="COLUMN", help="a column, best first: top1, gmacs, ...")
    parser.add_argument(
        "--explain",
        nargs=2,
        metavar=("A", "B"),
        help="the settings in which two protocols differ: fingerprints, runs' names or ids",
    )
    parser.add_argument(
        "--uri", help="the MLflow store (default: $MLFLOW_TRACKING_URI, else mlflow.db here)"
    )
    options = parser.parse_intermixed_args(arguments)
    import shutil

    from leaderboard import explain_text, leaderboard_text
    from mixerbench.tracking.store import resolve_uri

    uri = resolve_uri(options.uri)
    with as_user_errors():
        if options.explain:
            print(explain_text(uri, *options.explain))
            return
        terminal = sys.stdout.isatty()
        text = leaderboard_text(
            uri,
            format=options.format,
            filters=options.settings,
            sort=options.sort or "top1",
            width=shutil.get_terminal_size((120, 24)).columns,
            color=terminal,
        )
    print(text)


def _sync(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "sync",
        "Upload what is in the journals of runs and not yet in MLflow.",
        """\
examples:
  mixerbench sync runs/digits-1b2c3d4e/attention_micro-seed0-20261121-101500
  mixerbench sync runs/*/*
""",
        settings="+",
    )
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.commands.sync import sync

    for folder in options.settings:
        print(sync(folder))


if __name__ == "__main__":
    main()
