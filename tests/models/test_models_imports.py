"""Models are usable by themselves: no experiment machinery comes with them."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import mixerbench.models
from mixers import list_mixers
assert list_mixers()
mixerbench.models.create_model("attention", "micro", image_size=32)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


pytestmark = pytest.mark.xdist_group("imports")


@pytest.fixture(scope="module")
def modules() -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize(
    "foreign", ["hydra", "omegaconf", "mlflow", "fvcore", "leaderboard", "pandas", "pytest"]
)
def test_models_import_no_experiment_machinery(foreign, modules):
    assert {"torch", "timm", "mixers", "mixerbench"} <= set(modules)
    assert foreign not in modules
