"""Where a result comes from: code, versions, machine, command."""

import os
import platform
import shlex
import subprocess
from importlib.metadata import distributions, version
from pathlib import Path

import mixerbench
from mixerbench.config.schema import Settings
from mixerbench.tracking.keys import Tag
from mixerbench.tracking.passwords import without_password

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
    """The command that trains this run again, without passwords."""
    return shlex.join(["mixerbench", "train", *map(without_password, settings.overrides)])


_FOLDERS = ("mixerbench", "mixers", "leaderboard", "configs")  # of the checkout
_CODE = [f"{folder}/*.{kind}" for folder in _FOLDERS for kind in ("py", "yaml")]


def git_state() -> tuple[str, bool] | None:
    """(commit, is there anything beside it) of mixerbench's checkout; None if installed.

    A file of code that git does not know counts: a new mixer is in no commit. Elsewhere, such as
    in ``runs/``, it does not.
    """
    package = Path(mixerbench.__file__).resolve().parent
    try:
        # Fails where git knows nothing of the file: the package is installed, and a repository
        # around it belongs to another project.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        root = Path(_git(package, "rev-parse", "--show-toplevel"))
        if root != package.parent:  # a copy inside of another project
            return None
        commit = _git(package, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
        unknown = _git(root, "ls-files", "--others", "--", *_CODE)  # ignored ones run as well
        return commit, bool(changed or unknown)
    except (OSError, subprocess.CalledProcessError):
        return None


def git_tags() -> dict[str, str]:
    """`git_state` as it is logged; empty if installed."""
    state = git_state()
    if state is None:
        return {}
    return {Tag.GIT_COMMIT: state[0], Tag.GIT_DIRTY: str(state[1]).lower()}


def _git(folder: Path, *arguments: str) -> str:
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=own,  # git's hooks, such as a commit's, point all of git to their repository
    ).stdout.strip()
