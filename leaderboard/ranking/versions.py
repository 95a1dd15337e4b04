"""Of what software the runs of an entry were made, and where they differ."""

from collections.abc import Iterable, Mapping, Sequence

from leaderboard.reading.results import TrainedRun
from mixerbench.tracking.keys import Param, Tag

VERSIONS = ("mixerbench", "torch", "torchvision", "timm", "pillow", "numpy")
"""Packages on which a result depends: their operators, and how they decode and resize images."""
_CODE = {Tag.GIT_COMMIT: "commit", Tag.GIT_DIRTY: "uncommitted changes"}


def versions(runs: Iterable[TrainedRun]) -> dict[str, tuple[str, ...]]:
    """Package -> the versions with which these runs were made, as far as they say."""
    environments = [run.params.get(Param.ENVIRONMENT.removesuffix("."), {}) for run in runs]
    found = {}
    for package in VERSIONS:
        key = f"{Param.ENVIRONMENT}{package}"
        if values := {environment[key] for environment in environments if key in environment}:
            found[package] = tuple(sorted(values))
    return found


def mixed(runs: Sequence[TrainedRun]) -> dict[str, tuple[str, ...]]:
    """Packages and code in which the runs of one entry differ, with all their values."""
    found = {package: values for package, values in versions(runs).items() if len(values) > 1}
    for tag, name in _CODE.items():
        if len(values := {run.tags[tag] for run in runs if tag in run.tags}) > 1:
            found[name] = tuple(sorted(values))
    return found


def as_text(found: Mapping[str, Sequence[str]]) -> str | None:
    """``torch 2.14.0 / 2.15.0, timm 1.0.20``; None: nothing is known."""
    return ", ".join(f"{name} {' / '.join(values)}" for name, values in found.items()) or None
