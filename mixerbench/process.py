"""What holds for a whole process: environment variables and settings of Python, each with why."""

import gc
import os


def prepare() -> None:
    """What every process of the command line begins with."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reports home by default
    # PyTorch's import makes a million objects, which Python by default searches for cycles again
    # and again: a tenth of the time to the first step.
    gc.set_threshold(100_000, 50, 1000)


def limit_threads(threads: int) -> None:
    """``run.threads`` for this process, unless its user has set OMP_NUM_THREADS.

    OpenMP reads the variable once, when torch is loaded: this must come before.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def thread_variables(threads: int) -> dict[str, str]:
    """The environment variables that give a child process so many threads."""
    return {"OMP_NUM_THREADS": str(threads)}


def allow_large_images() -> None:
    """Set Pillow's limit to 2**29 pixels, for all that this process opens or crops.

    The limit protects servers against malicious files; these files are the user's own. A high one
    still detects damaged headers: a warning above it, an error above 2**30 pixels (3 GiB as RGB).
    Pillow checks the crops of transforms by it too, hence no limit for one file alone.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = 2**29
