"""What the tests of launching share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm import missing_programs


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """SLURM's programs are here; CI must have them."""
    if missing := missing_programs():
        reason = f"not installed: {', '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def train_alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a run in this process, without any launcher; returns its folder."""
    from mixerbench.config.compose import compose
    from mixerbench.training.run import run_training

    def train(*settings: str) -> Path:
        own = [f"run.root={tmp_path_factory.mktemp('alone')}", "run.progress=false"]
        return run_training(compose([*settings, *own])).folder

    return train
