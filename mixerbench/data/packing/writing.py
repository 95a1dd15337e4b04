"""Packing an image folder: resumable, in many processes."""

from pathlib import Path

from filelock import FileLock, Timeout

from mixerbench.data.images import Splits
from mixerbench.data.packing.format import SPLITS
from mixerbench.data.packing.job import LOCK_FILE, Packed, PackingJob
from mixerbench.data.packing.processes import Progress, one_line_if_stopped, write_all
from mixerbench.data.packing.settings import Packing
from mixerbench.errors import Refusal

_LOCK_SECONDS = 3  # until the processes of a packing that was killed have noticed


def pack(
    splits: Splits,
    root: Path,
    out: Path,
    packing: Packing,
    exif_orientation: bool,
    jobs: int,
    progress: Progress = lambda done, total: None,
) -> Packed:
    """Write the shards that are missing in ``out``; their bytes do not depend on ``jobs``.

    Args:
        splits: the images in the folder ``root``.
        jobs: number of processes.
        progress: called with images, including those in shards that were written before.

    Raises:
        Refusal: ``out`` holds something else, or another process writes to it.
        TrainingStopped: it was interrupted, or a disk is full or failing. Finished shards stay,
            and the same call writes the missing ones.
    """
    job = PackingJob(splits, root, out, packing, exif_orientation)
    for split in SPLITS:
        if (root / split).resolve() in (out.resolve(), *out.resolve().parents):
            raise Refusal(f"out={out} lies among the images: give a folder outside of {root}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK_FILE).acquire(timeout=_LOCK_SECONDS)
    except Timeout:
        raise Refusal(f"{out} is being packed by another process: wait for it.") from None
    except OSError as error:
        raise Refusal(f"out={out} cannot be written to: {error.strerror}.") from None
    with lock:
        job.check_folder()
        with one_line_if_stopped(job):
            return _pack(job, jobs, progress)


def _pack(job: PackingJob, jobs: int, progress: Progress) -> Packed:
    _remove_parts(job)
    job.find_written()
    missing = [shard for shard in job.shards if shard.file not in job.written]
    if missing or not job.is_finished():
        job.begin()
        if missing:
            write_all(job, missing, jobs, progress)
        _remove_parts(job)
        job.finish()
    return job.summary(len(missing))


def _remove_parts(job: PackingJob) -> None:
    """Delete what killed processes have left; those that they had started may outlive them."""
    for part in job.out.glob("*.part"):
        part.unlink(missing_ok=True)
