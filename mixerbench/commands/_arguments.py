"""Flags and settings that several commands take, each declared once."""

import argparse
from collections.abc import Sequence

from mixerbench.config.assignments import split_arguments


def add_uri(parser: argparse.ArgumentParser, *, or_bundle: bool = False) -> None:
    """``--uri``: the store of results; with ``or_bundle`` also a bundle's folder."""
    more = "or a bundle's folder " if or_bundle else ""
    parser.add_argument(
        "--uri",
        help=f"the MLflow store {more}(default: $MLFLOW_TRACKING_URI, else mlflow.db here)",
    )


def add_ema(parser: argparse.ArgumentParser) -> None:
    """``--ema``: which weights of a checkpoint."""
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")


def add_hardware(parser: argparse.ArgumentParser) -> None:
    """``--hardware``: whose costs pages show."""
    parser.add_argument("--hardware", default="", help="whose speed, memory and energy to show")


def split_plugins(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings but ``plugins=[...]``, and the files that it names: only these are ever run.

    Raises:
        Refusal: no such file.
    """
    from mixerbench.config.overrides import find_plugins

    _, others = split_arguments(settings, ["plugins"])
    return others, find_plugins(settings)


def results_address(uri: str | None) -> str:
    """Where results are: a tracking URI, or the folder of a bundle as it was given."""
    from pathlib import Path

    from leaderboard.bundles.reader import is_bundle
    from mixerbench.tracking.store import resolve_uri

    return uri if uri and is_bundle(Path(uri)) else resolve_uri(uri)
