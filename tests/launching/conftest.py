"""What the tests of launching share."""

import os

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
