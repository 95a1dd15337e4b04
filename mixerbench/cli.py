"""The command line: ``mixerbench <command> ...``. Nothing heavy is imported before it is needed."""

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from mixerbench import streams
from mixerbench.errors import Done, Refusal, exit_code
from mixerbench.stopping import Stop

if TYPE_CHECKING:
    from mixerbench.config.schema import Settings

HELP = """\
mixerbench: does your token mixer beat attention, fairly?

Usage: mixerbench COMMAND [SETTING=VALUE ...]

Commands
  train         train a model, or a sweep of them
  suite         train a whole benchmark, and go on with it after whatever has stopped it
  eval          accuracy of a checkpoint
  profile       what a model costs, and where its time and memory go
  list          presets, mixers, sizes, stems, backbones, protocols, recipes
  import        a checkpoint that a paper's authors published
  pack          an image folder into a few large files that are read faster
  reproduce     the papers' models beside what was published of them
  measure       what the models of a leaderboard cost on this machine, side by side
  leaderboard   rank the runs, one table per protocol; as pages, as bundles, beside MLflow
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
    # PyTorch's import makes a million objects, which Python by default searches for cycles again
    # and again: a tenth of the time to the first step.
    gc.set_threshold(100_000, 50, 1000)
    streams.prepare()
    with Stop(at_once=True):
        code = exit_code(lambda: _dispatch(sys.argv[1:]))
    sys.exit(code)


def _dispatch(arguments: Sequence[str]) -> None:
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "train": _train,
        "suite": _suite,
        "eval": _eval,
        "profile": _profile,
        "list": _list,
        "import": _import,
        "pack": _pack,
        "reproduce": _reproduce,
        "measure": _measure,
        "leaderboard": _leaderboard,
        "sync": _sync,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
    elif arguments[0] == "--version":
        from mixerbench import __version__

        print(__version__)
    elif arguments[0] in commands:
        _check_text(arguments)
        commands[arguments[0]](arguments[1:])
    else:
        from mixers.core.names import nearest

        raise Refusal(f"unknown command {arguments[0]!r}. {nearest(arguments[0], commands)}")


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse names of files that no setting, store or page can be written with, and no place."""
    try:
        here = os.getcwd()
    except OSError:
        raise Refusal("the working folder is gone: change to one that is there.") from None
    for what, name in [("the working folder", here), *(("the argument", a) for a in arguments)]:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(name).decode(errors="backslashreplace")
            raise Refusal(
                f"{what} {shown} is no UTF-8, in which settings, stores and pages are written: "
                "give it another name."
            ) from None


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
        if settings:
            self.add_argument(
                "settings", nargs=settings, metavar="SETTING=VALUE", help=argparse.SUPPRESS
            )

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Done  # it is the end of help only

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message}. See '{self.prog} --help'.")


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
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="train every combination of SETTING=A,B,C"
    )
    parser.add_argument(
        "--cfg", action="store_true", help="print the resolved settings, train nothing"
    )
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.config import compose
    from mixerbench.launching.size_matching import Matcher

    if options.cfg:
        import dataclasses

        import yaml

        comment = Matcher(lambda line: print(f"# {line}"))  # what follows is YAML
        from mixerbench.tracking.passwords import masked

        resolved = masked(dataclasses.asdict(compose.compose(options.settings, comment)))
        print(yaml.safe_dump(resolved, sort_keys=False), end="")
        return
    from mixerbench.training.launch import find_rank

    match = Matcher(prepare=_ready)
    if find_rank() is not None:
        if options.multirun:
            raise Refusal("a sweep starts its own processes: run it without torchrun or srun.")
        from mixerbench.launching.rank import train_as_rank

        train_as_rank(lambda: _ready(compose.compose(options.settings, match)))
        return
    if options.multirun:
        runs = compose.compose_sweep(options.settings, match)
    else:
        runs = [compose.compose(options.settings, match)]
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
  mixerbench suite run suite=seeds match=params:500k
      every mixer at equal parameters
""",
    )
    options = parser.parse_intermixed_args(arguments)
    actions = ("run", "show")
    action, *given = options.settings or [""]
    if action not in actions:
        from mixers.core.names import nearest

        what = f"has no action {action!r}" if action else "needs an action"
        raise Refusal(f"suite {what}. {nearest(action, actions)}")
    places = [setting.partition("=")[2] for setting in given if setting.startswith("suite=")]
    if len(places) != 1:
        raise Refusal(f"suite {action} needs one suite=NAME: see 'mixerbench list suites'.")
    from mixerbench.launching.size_matching import Matcher
    from mixerbench.launching.suite import read_suite
    from mixerbench.training.launch import find_rank

    if find_rank() is not None:
        raise Refusal("a suite starts its own processes: run it without torchrun or srun.")
    others = [setting for setting in given if not setting.startswith("suite=")]
    suite = read_suite(places[0], others, Matcher(prepare=_ready))
    _ready(suite.any_run)
    from mixerbench.commands.suite import show_suite, train_suite

    if action == "show":
        show_suite(suite)
        return
    _check_store(suite.any_run)
    train_suite(suite)


def _ready(settings: "Settings") -> "Settings":
    from mixerbench.config.sources import check_data

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
those that it was trained with, unless settings say otherwise. A plugin is run only if you name it.

examples:
  mixerbench eval checkpoint=runs/digits-1b2c3d4e/attention_micro-seed0-20261121-101500
  mixerbench eval checkpoint=model.safetensors evaluation.image_size=48
  mixerbench eval checkpoint=model.safetensors data.root=/data/imagenet run.device=cuda
  mixerbench eval checkpoint=model.safetensors 'plugins=[my_mixer.py]'
""",
    )
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    parser.add_argument("--predictions", metavar="FILE", help="write one row per image (Parquet)")
    options = parser.parse_intermixed_args(arguments)
    place = next((s for s in options.settings if s.startswith("checkpoint=")), None)
    if place is None:
        raise Refusal("eval needs checkpoint=PLACE: a run's folder or a .safetensors file.")
    given = [setting for setting in options.settings if setting is not place]
    from mixerbench.commands.eval import evaluate_place

    print(evaluate_place(place.partition("=")[2], given, options.ema, options.predictions))


def _profile(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "profile",
        "Count and time a model; nothing is trained and no data is needed.\nShows where the time "
        "and the memory of a training step go, by part and by operator, and the share of the\n"
        "device's measured peak.",
        """\
examples:
  mixerbench profile mixer=attention size=tiny protocol=imagenet_deit backbone.pool=token
  mixerbench profile mixer=patch_ff size=base protocol=imagenet_deit run.measure_batch_size=8
  mixerbench profile mixer=local_attention mixer.window=5 --json
  mixerbench profile preset=lit_s protocol=imagenet_deit
  mixerbench profile mixer=patch_ff size=small protocol=imagenet_deit match=flops:4.6G
""",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.config.compose import compose
    from mixerbench.launching.size_matching import Matcher

    to_stderr = partial(print, file=sys.stderr)
    settings = compose(options.settings, Matcher(to_stderr if options.json else print))
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


def _pack(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "pack",
        "Pack an image folder into a few large files, with checksums, that are read faster.",
        """\
data=... and data.root=... are those of 'mixerbench train'. An interrupted packing goes on when the
same command is given again. Validation images always keep their files, byte for byte.

  out=FOLDER        a new one, or an unfinished one; it becomes the data.root= of training
  short_side=256    resize larger training images to it; null, the default, resizes none
  format=jpeg       what resized images become, or raw: all training images as bare pixels
  quality=90        of those JPEGs
  jobs=N            processes (default: one per core)
  shard_images=N    in one file (default: about 256 MiB of ImageNet)

examples:
  mixerbench pack data=imagenet data.root=/data/imagenet out=/fast/imagenet
      files as they are: the same results and the same leaderboard
  mixerbench pack data=imagenet data.root=/data/imagenet out=/fast/imagenet_256 short_side=256
      a third of the size; another leaderboard, which names what was done to the pixels
  mixerbench pack data=folder data.root=/data/flowers out=/fast/flowers short_side=256 format=raw
      nothing to decode; large
  mixerbench pack --verify out=/fast/imagenet
      reads every byte and names damaged files
""",
    )
    parser.add_argument("--verify", action="store_true", help="compare checksums, pack nothing")
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.commands.pack import pack_folder, verify_folder

    print((verify_folder if options.verify else pack_folder)(options.settings))


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


def _measure(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "measure",
        "Measure all models of one leaderboard on this machine, in one interleaved run, and record "
        "it.\nWhat was measured in one such run can be ranked; on other hardware it cannot.",
        """\
FIELD=VALUE leaves one board and some of its entries, as those of 'mixerbench leaderboard' do.
run.device, run.precision, run.threads, run.measure_batch_size and run.measure_seconds (of each
model, and as many again for the latency of one image) are the same for all models. A model of a
plugin is measured if plugins=[FILE.py] names the file that it was trained with.

examples:
  mixerbench measure protocol=digits
  mixerbench measure protocol=1b2c3d4e size=base run.device=cuda run.precision=bf16
  mixerbench measure protocol=imagenet_deit run.measure_batch_size=128 run.measure_seconds=20
""",
    )
    parser.add_argument(
        "--uri", help="the MLflow store (default: $MLFLOW_TRACKING_URI, else mlflow.db here)"
    )
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.config.compose import compose
    from mixerbench.config.overrides import find_plugins
    from mixerbench.tracking.measurements import SETTINGS
    from mixerbench.tracking.store import resolve_uri

    given = [setting for setting in options.settings if setting.startswith("run.")]
    plugins = [setting for setting in options.settings if setting.startswith("plugins=")]
    filters = [one for one in options.settings if one not in given and one not in plugins]
    run = compose(given).run
    for setting in given:
        if setting.partition("=")[0].removeprefix("run.") not in SETTINGS:
            raise Refusal(
                f"measure does not depend on {setting}: it takes run.{', run.'.join(SETTINGS)}."
            )
    os.environ.setdefault("OMP_NUM_THREADS", str(run.threads))
    from mixerbench.commands.measure import measure

    measure(filters, run, resolve_uri(options.uri), find_plugins(plugins))


def _leaderboard(arguments: Sequence[str]) -> None:
    actions: dict[str, Callable[[Sequence[str]], None]] = {
        "site": _leaderboard_site,
        "serve": _leaderboard_serve,
        "publish": _leaderboard_publish,
        "export": _leaderboard_export,
        "import": _leaderboard_import,
    }
    if arguments and arguments[0] in actions:
        actions[arguments[0]](arguments[1:])
        return
    parser = _Parser(
        "leaderboard",
        "Rank the finished runs, one table per protocol fingerprint: runs that were not trained "
        "and\nevaluated alike never stand in one table.",
        """\
FIELD=VALUE shows only some entries: mixer=patch_ff size=micro stem=conv protocol=digits,
and at equal cost, within 1 %: params=22M flops=4.6G (multiply-adds)

A rank is a range: an entry shares ranks with all that it does not differ from beyond chance.

actions, each with its own --help:
  site      write the leaderboard as a folder of pages that needs no server
  serve     MLflow with these pages beside it
  publish   store the pages in MLflow
  export    a bundle of results to give to others
  import    take somebody's bundle into the store

examples:
  mixerbench leaderboard
  mixerbench leaderboard protocol=digits --sort gmacs
  mixerbench leaderboard --format csv > board.csv
  mixerbench leaderboard --uri leaderboard/published/digits_micro
  mixerbench leaderboard --explain 1b2c3d4e 99aabbcc
""",
    )
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
    _add_uri(parser, "or a bundle's folder ")
    options = parser.parse_intermixed_args(arguments)
    import shutil

    from leaderboard import explain_text, leaderboard_text

    place = _place(options.uri)
    if options.explain:
        print(explain_text(place, *options.explain))
        return
    text = leaderboard_text(
        place,
        format=options.format,
        filters=options.settings,
        sort=options.sort or "top1",
        hardware=options.hardware,
        refresh=options.refresh,
        width=shutil.get_terminal_size((120, 24)).columns,
        color=sys.stdout.isatty(),
    )
    print(text)


def _leaderboard_site(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "leaderboard site",
        "Write the leaderboard as a folder of pages that needs neither server nor network.",
        """\
FIELD=VALUE writes only some entries, as in 'mixerbench leaderboard'.

examples:
  mixerbench leaderboard site --out site
  mixerbench leaderboard site protocol=digits --out site --uri leaderboard/published/digits_micro
  mixerbench leaderboard site --out site --mlflow-url http://mlflow.lab.example:5000
  mixerbench leaderboard site --out site 'plugins=[my_mixer.py]'
      with a whole page of your own mixer, whose code is run; without, what its runs recorded
""",
    )
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="a new one, or an older site"
    )
    parser.add_argument("--hardware", default="", help="whose speed, memory and energy to show")
    parser.add_argument("--mlflow-url", default="", help="MLflow's address, to link the runs")
    _add_uri(parser, "or a bundle's folder ")
    options = parser.parse_intermixed_args(arguments)
    from pathlib import Path

    from mixerbench.commands.site import site

    filters, plugins = _filters_and_plugins(options.settings)
    print(
        site(
            _place(options.uri),
            Path(options.out),
            filters=filters,
            hardware=options.hardware,
            mlflow_url=options.mlflow_url,
            plugins=plugins,
        )
    )


def _leaderboard_serve(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "leaderboard serve",
        "Start MLflow on this machine, with the leaderboard's pages at /mixerbench/ beside it.",
        """\
examples:
  mixerbench leaderboard serve
  mixerbench leaderboard serve --port 5050 --uri sqlite:////data/mlflow.db
""",
        settings="",
    )
    parser.add_argument("--host", default="127.0.0.1", help="another one asks for a password")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--refresh-seconds", type=float, default=30.0, metavar="SECONDS")
    _add_uri(parser)
    options = parser.parse_args(arguments)
    from mixerbench.commands.serve import serve

    serve(_place(options.uri), options.host, options.port, options.refresh_seconds)


def _leaderboard_publish(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "leaderboard publish",
        "Store the pages in MLflow, in a run called 'leaderboard' of each board's experiment.",
        """\
examples:
  mixerbench leaderboard publish
  mixerbench leaderboard publish protocol=digits
""",
    )
    _add_uri(parser)
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.commands.publish import publish

    filters, plugins = _filters_and_plugins(options.settings)
    print(publish(_place(options.uri), filters, plugins))


def _leaderboard_export(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "leaderboard export",
        "Write a bundle: results with their predictions, for others to check and to rank.",
        """\
examples:
  mixerbench leaderboard export protocol=digits --out my_results
""",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new one")
    _add_uri(parser)
    options = parser.parse_intermixed_args(arguments)
    from pathlib import Path

    from mixerbench.commands.bundle import export_bundle

    print(export_bundle(_place(options.uri), options.settings, Path(options.out)))


def _leaderboard_import(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "leaderboard import",
        "Check a bundle and take its runs into the store; what is there already stays.",
        """\
examples:
  mixerbench leaderboard import leaderboard/published/digits_micro
""",
        settings="+",
    )
    _add_uri(parser)
    options = parser.parse_intermixed_args(arguments)
    from pathlib import Path

    from mixerbench.commands.bundle import import_bundle_folder

    for folder in options.settings:
        print(import_bundle_folder(Path(folder), _place(options.uri)))


def _filters_and_plugins(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """FIELD=VALUE, and the files of ``plugins=[...]``, which alone are ever run for pages."""
    from mixerbench.config.overrides import find_plugins

    return [one for one in settings if not one.startswith("plugins=")], find_plugins(settings)


def _add_uri(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument(
        "--uri",
        help=f"the MLflow store {more}(default: $MLFLOW_TRACKING_URI, else mlflow.db here)",
    )


def _place(uri: str | None) -> str:
    """Where results are: a tracking URI, or the folder of a bundle as it was given."""
    from pathlib import Path

    from leaderboard.bundles.reader import is_bundle
    from mixerbench.tracking.store import resolve_uri

    return uri if uri and is_bundle(Path(uri)) else resolve_uri(uri)


def _sync(arguments: Sequence[str]) -> None:
    parser = _Parser(
        "sync",
        "Upload what is in the journals of runs and not yet in MLflow.",
        """\
examples:
  mixerbench sync runs/digits-1b2c3d4e/attention_micro-seed0-20261121-101500
  mixerbench sync runs/*/* --uri http://mlflow.lab.example:5000
""",
        settings="+",
    )
    _add_uri(parser)
    options = parser.parse_intermixed_args(arguments)
    from mixerbench.commands.sync import sync_all

    sync_all(options.settings, options.uri)


if __name__ == "__main__":
    main()
