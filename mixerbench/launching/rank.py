"""One of the processes of a run, as the elastic agent starts it: ``... rank JOB``."""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, record

from mixerbench.config.schema import Settings
from mixerbench.errors import first_line
from mixerbench.launching.job import Job, end_with_parent
from mixerbench.training.group import join
from mixerbench.training.run import run_training

_FILE = "TORCHELASTIC_ERROR_FILE"
_CAUSE_FIRST_SECONDS = 2.0


class _WholeErrorFile(ErrorHandler):
    """Writes its file under another name first: half of a file would stop the agent."""

    def record_exception(self, e: BaseException) -> None:
        path = os.environ.get(_FILE)
        if path is None:
            return
        os.environ[_FILE] = f"{path}.part"
        super().record_exception(e)
        os.environ[_FILE] = path
        os.replace(f"{path}.part", path)


@partial(record, error_handler=_WholeErrorFile())
def main() -> None:
    end_with_parent()
    job = Job(Path(sys.argv[1]))
    if job.has_outcome():
        return  # what refused or stopped the run would do so again: only a death is worth a restart
    settings = job.settings()
    with join() as group:
        job.note_outcome(
            lambda: run_training(settings, group, on_folder=job.note_folder).summary(settings),
            group.is_first,
        )


def train_as_rank(compose: Callable[[], Settings]) -> None:
    """Train as one of the processes that torchrun or srun has started.

    The first one composes the settings, and the others are told.
    """
    with join() as group:
        settings = group.first(compose)
        finished = run_training(settings, group)
        if group.is_first:
            print(finished.summary(settings))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        if os.environ.get("MIXERBENCH_DEBUG") == "1":
            raise
        reason = first_line(error)
        if "gloo" in reason or "NCCL" in reason:
            reason = "another process of the run is gone"
            # The agent should see the cause before this consequence: a killed process that is
            # still being torn down has closed its connections already.
            time.sleep(_CAUSE_FIRST_SECONDS)
        sys.exit(f"mixerbench: process {os.environ['RANK']} ends: {reason}.")
