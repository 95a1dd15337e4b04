"""Where a result comes from: code, versions, machine, command."""

import platform
import shlex
import subprocess
from importlib.metadata import distributions, version
from pathlib import Path

import mixerbench
from mixerbench.config.schema import Settings
from mixerbench.tracking.keys import Tag

_LIBRARIES = ("torch", "torchvision", "timm", "fvcore", "hydra-core", "mlflow", "pillow", "numpy")


def environment() -> dict[str, str]:
    """Versions of what a result can depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "mixerbench": mixerbench.__version__,
        **{name: version(name) for name in _LIBRARIES},
    }


def installed_packages() -> str:
    """Every installed distribution, one ``name==version`` a line."""
    lines = {f"{d.metadata['Name']}=={d.version}" for d in distributions() if d.metadata["Name"]}
    return "\n".join(sorted(lines, key=str.lower)) + "\n"


def command(settings: Settings) -> str:
    """What trains this one run again."""
    return shlex.join(["mixerbench", "train", *settings.overrides])


def git_state() -> tuple[str, bool] | None:
    """(commit, are there uncommitted changes) of mixerbench's checkout; None if installed."""
    here = Path(mixerbench.__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit, bool(_git(here, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None


def git_tags() -> dict[str, str]:
    """`git_state` as it is logged; empty if installed."""
    state = git_state()
    if state is None:
        return {}
    return {Tag.GIT_COMMIT: state[0], Tag.GIT_DIRTY: str(state[1]).lower()}


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
