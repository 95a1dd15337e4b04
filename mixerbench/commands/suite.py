"""``mixerbench suite``: a whole benchmark, from its file to the leaderboard."""

import argparse

from mixerbench.commands import Command
from mixerbench.commands._start import check_store, with_data
from mixerbench.config.assignments import split_arguments
from mixerbench.errors import Refusal

_ACTIONS = ("run", "show")


def _run(options: argparse.Namespace) -> None:
    action, *given = options.settings or [""]
    if action not in _ACTIONS:
        from mixers.core.names import nearest

        problem = f"has no action {action!r}" if action else "needs an action"
        raise Refusal(f"suite {problem}. {nearest(action, _ACTIONS)}")
    own, others = split_arguments(given, ["suite"])
    if not own:
        raise Refusal(f"suite {action} needs one suite=NAME: see 'mixerbench list suites'.")
    from mixerbench.launching.size_matching import Matcher
    from mixerbench.launching.suite import read_suite
    from mixerbench.training.launch import find_rank

    if find_rank() is not None:
        raise Refusal("a suite starts its own processes: run it without torchrun or srun.")
    suite = read_suite(own["suite"], others, Matcher(prepare=with_data))
    with_data(suite.any_run)
    from mixerbench.commands._suite_report import show_suite, train_suite

    if action == "show":
        show_suite(suite)
        return
    check_store(suite.any_run)
    train_suite(suite)


COMMAND = Command(
    summary="train a whole benchmark, and go on with it after whatever has stopped it",
    description="Train every run of a benchmark that is not finished, and print its leaderboard.",
    help="""\
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
    run=_run,
    order=20,
)
