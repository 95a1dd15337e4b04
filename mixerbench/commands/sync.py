"""``mixerbench sync``: upload later what a tracking server has missed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mixerbench.commands import Command
from mixerbench.commands._arguments import add_uri
from mixerbench.errors import Refusal, first_line


def _run(options: argparse.Namespace) -> None:
    sync_all(options.settings, options.uri)


def sync_all(places: Sequence[str], uri: str | None = None) -> None:
    """Upload the rest of every run's journal, and print what was done; one cannot stop others.

    Raises:
        Refusal: as ``sync``; of several, how many, after the others.
    """
    if len(places) == 1:
        print(sync(places[0], uri))
        return
    failed = 0
    for place in places:
        try:
            print(sync(place, uri))
        except Refusal as error:
            failed += 1
            print(f"mixerbench: {error}", file=sys.stderr)
    if failed:
        raise Refusal(f"{failed} of {len(places)} folders could not be uploaded, as said above.")


def sync(place: str, uri: str | None = None) -> str:
    """Upload the rest of one run's journal; returns what was done, as a sentence.

    Args:
        uri: where to, the user's word; what the folder says of it is a stranger's, perhaps.

    Raises:
        Refusal: there is no run, it was meant for another store, or the store refuses it.
    """
    from mixerbench.config.schema import Tracking
    from mixerbench.tracking.passwords import without_password
    from mixerbench.tracking.store import check_reachable, resolve_uri
    from mixerbench.tracking.upload import RUN_FILE, Upload, sync_command

    folder = Path(place)
    if not (folder / RUN_FILE).is_file():
        raise Refusal(f"{folder} is no run's folder: give one below run.root.")
    recorded, timeout_seconds = _recorded(folder)
    address = resolve_uri(uri)
    if uri is None and recorded not in (None, without_password(address)):
        raise Refusal(
            f"{folder} was to go to {recorded}, and you would send it to "
            f"{without_password(address)}: choose, with '{sync_command(folder, recorded)}' or "
            "another --uri."
        )
    try:
        upload = Upload(folder, Tracking(uri=address, timeout_seconds=timeout_seconds))
    except (ValueError, OSError) as error:
        raise Refusal(first_line(error)) from None
    if upload.is_complete():
        return f"{folder}: everything was uploaded already"
    check_reachable(address, timeout_seconds)
    try:
        upload.advance()
    except Exception as error:  # whatever MLflow raises
        reason = without_password(first_line(error))
        raise Refusal(f"{folder}: the store refused the upload: {reason}") from None
    return f"{folder}: uploaded to {without_password(address)}, run {upload.run_id}"


def _recorded(folder: Path) -> tuple[str | None, float]:
    """Where the run was meant to go or has gone, without a password, and how long to wait."""
    from mixerbench.config.schema import Tracking
    from mixerbench.tracking.passwords import without_password
    from mixerbench.tracking.store import resolve_uri
    from mixerbench.tracking.upload import read_cursor
    from mixerbench.training.folder import read_settings

    tracking = Tracking()
    try:
        tracking = read_settings(folder).tracking
    except Exception as error:  # of a damaged file: the journal is what counts
        reason = first_line(error)
        print(f"mixerbench: {folder} has no readable settings ({reason})", file=sys.stderr)
    seconds = tracking.timeout_seconds
    if type(seconds) not in (int, float) or not 0 < seconds <= 3600:
        seconds = Tracking().timeout_seconds
    cursor = read_cursor(folder)
    if cursor is not None:
        return cursor["uri"], seconds
    uri = tracking.uri if isinstance(tracking.uri, str) else None
    return uri and without_password(resolve_uri(uri)), seconds


COMMAND = Command(
    summary="upload what a tracking server has missed",
    description="Upload what is in the journals of runs and not yet in MLflow.",
    help="""\
examples:
  mixerbench sync runs/digits-1b2c3d4e/attention_micro-seed0-20261121-101500
  mixerbench sync runs/*/* --uri http://mlflow.lab.example:5000
""",
    run=_run,
    add_flags=add_uri,
    settings="+",
    order=110,
)
