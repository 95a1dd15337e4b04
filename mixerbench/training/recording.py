"""The journal of a run while it lasts: shown on the terminal, and uploaded to the store."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixerbench.config.schema import Settings
from mixerbench.errors import (
    NO_ROOM,
    Preempted,
    TrainingStopped,
    first_line,
    how_told,
    told_to_stop,
)
from mixerbench.tracking.journal import FILE_NAME, Journal
from mixerbench.tracking.passwords import without_password
from mixerbench.tracking.upload import BackgroundUpload, sync_command
from mixerbench.training.progress import ProgressView
from mixerbench.training.system import SystemMetrics


@contextmanager
def recording(settings: Settings, folder: Path) -> Iterator[Journal]:
    """The journal of a run, shown on the terminal and uploaded meanwhile; says how it ended."""
    tracking = settings.tracking
    with _disk_full(folder):
        journal = Journal(folder / FILE_NAME)
        upload = None if tracking.offline else BackgroundUpload(folder, tracking)
        system = SystemMetrics(journal, tracking.system_metrics_every_seconds)
        status = "FAILED"
        try:
            with ProgressView(settings.run.progress) as view:
                journal.listen(lambda record: view.show(settings.label, record))
                yield journal
            status = "FINISHED"
        except Preempted:
            status = "KILLED"
            raise
        except KeyboardInterrupt as stop:
            status = "KILLED"
            message = f"{how_told(stop)}. Continue with run.resume={folder}"
            raise told_to_stop(stop, message) from None
        finally:
            system.close()
            try:
                journal.end(status)  # raises if FINISHED could not be written, else never
            finally:
                journal.close()
                if upload is not None:
                    _close(upload, settings, folder)


def upload_rest(settings: Settings, folder: Path) -> None:
    """What the store of a finished run has missed."""
    if not settings.tracking.offline:
        _close(BackgroundUpload(folder, settings.tracking), settings, folder)


def _close(upload: BackgroundUpload, settings: Settings, folder: Path) -> None:
    """Send the rest; what does not arrive in time, or before a signal, is said."""
    try:
        done = upload.close(settings.tracking.flush_seconds)
    except KeyboardInterrupt:
        done = False
    if not done:
        print(_not_uploaded(folder, upload.error, settings.tracking.uri), file=sys.stderr)


@contextmanager
def _disk_full(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise TrainingStopped(
            f"cannot write to {folder} ({error.strerror or error}). What was written before is "
            f"whole; make room and continue with run.resume={folder}"
        ) from None


def _not_uploaded(folder: Path, error: Exception | None, uri: str | None) -> str:
    reason = f" ({without_password(first_line(error))})" if error else ""
    return (
        f"MLflow did not take everything in time{reason}; nothing is lost: "
        f"'{sync_command(folder, uri)}' uploads the rest."
    )
