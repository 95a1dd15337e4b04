"""``mixerbench sync``: upload later what a tracking server has missed."""

from pathlib import Path

from mixerbench.errors import UserError, first_line
from mixerbench.tracking.store import check_reachable, resolve_uri
from mixerbench.tracking.upload import RUN_FILE, Upload
from mixerbench.training.folder import read_settings


def sync(place: str) -> str:
    """Upload the rest of one run's journal; returns what was done, as a sentence.

    Raises:
        UserError: there is no run, or the store refuses it.
    """
    folder = Path(place)
    if not (folder / RUN_FILE).is_file():
        raise UserError(f"{folder} is no run's folder: give one below run.root.")
    tracking = read_settings(folder).tracking
    upload = Upload(folder, tracking)
    if upload.is_complete():
        return f"{folder}: everything was uploaded already"
    check_reachable(resolve_uri(upload.uri), tracking.timeout_seconds)
    try:
        upload.advance()
    except Exception as error:  # whatever MLflow raises
        reason = first_line(error)
        raise UserError(f"{folder}: the store refused the upload: {reason}") from None
    return f"{folder}: uploaded to {upload.uri}, run {upload.run_id}"
