"""A user's own mixer: one short file, or one installed package, and it is everywhere.

Registration is global in a process, so one child process does it all and reports.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixers import MIXERS, load_plugin
from mixers.core.catalog import mixer_catalog

PLUGIN = '''
from torch import nn
from mixers import TokenMixer, register_mixer

@register_mixer("{name}")
class Scaled(TokenMixer):
    """Every token times a learned number."""
    any_grid, mixes_prefix, paper = True, False, "none"
    def __init__(self, dim, grid, num_heads, *, start: float = 0.5):
        super().__init__(dim, grid, num_heads)
        self.scale = nn.Linear(dim, dim, bias=False)
        nn.init.constant_(self.scale.weight, start)
    def forward(self, x, grid):
        return self.scale(x)
'''

SCRIPT = """
import json, sys
report = {}
from mixers import MIXERS, TokenGrid, create_mixer, list_mixers, load_plugin
report["built_in"] = list_mixers()
report["modules_of_mixers"] = sorted({name.split(".")[0] for name in sys.modules})
load_plugin("early.py")
report["early"] = list_mixers()
mixer = create_mixer("mine_early", 4, TokenGrid(2, 3), start=2.0)
report["option"] = mixer.scale.weight[0, 0].item()
report["module"] = type(mixer).__module__

import timm, torch
from mixerbench.models import create_model
load_plugin("late.py")
load_plugin("late.py")
for name in ("mine_early", "mine_late", "mine_installed"):
    model = create_model({"name": name, "start": 0.25}, "micro", image_size=(32, 48), num_classes=3)
    images = torch.randn(2, 3, 32, 48)
    model(images).sum().backward()
    grads = all(parameter.grad is not None for parameter in model.parameters())
    by_timm = timm.create_model(f"mixerbench_{name}_micro", img_size=(32, 48), num_classes=3)
    report[name] = {
        "class": type(model.blocks[0].mixer).__name__,
        "trains": grads,
        "by_timm": list(by_timm(images).shape),
        "listed": timm.list_models(f"mixerbench_{name}_*"),
    }
print(json.dumps(report))
"""


pytestmark = pytest.mark.xdist_group("plugin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    for name in ("early", "late"):
        (folder / f"{name}.py").write_text(PLUGIN.format(name=f"mine_{name}"))
    # An installed package: a module and the metadata that pip would write beside it.
    (folder / "their_package.py").write_text(PLUGIN.format(name="mine_installed"))
    metadata = folder / "their_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[mixerbench.mixers]\ntheirs = their_package\n")
    return folder


@pytest.fixture(scope="module")
def report(folder) -> dict:
    paths = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_a_mixer_of_ones_own_needs_at_most_15_lines():
    assert len(PLUGIN.strip().splitlines()) <= 15


def test_a_loaded_plugin_is_listed_and_takes_its_options(report):
    assert set(report["early"]) - set(report["built_in"]) == {"mine_early"}
    assert report["option"] == 2.0


def test_a_mixer_of_an_installed_package_is_listed_by_itself(report):
    assert "mine_installed" in report["built_in"]


@pytest.mark.parametrize("name", ["mine_early", "mine_late", "mine_installed"])
def test_it_is_in_every_model_whenever_it_came(name, report):
    sizes = ["base", "huge", "large", "micro", "small", "tiny"]
    assert report[name] == {
        "class": "Scaled",
        "trains": True,
        "by_timm": [2, 3],
        "listed": [f"mixerbench_{name}_{size}" for size in sizes],
    }


def test_the_catalogue_reads_the_same_file(folder):
    entry = mixer_catalog([folder / "early.py"])["mine_early"]
    assert entry.summary == "Every token times a learned number."
    assert [(o.name, o.annotation, o.default) for o in entry.options] == [("start", "float", 0.5)]


@pytest.mark.parametrize(
    "foreign", ["mixerbench", "leaderboard", "hydra", "omegaconf", "mlflow", "fvcore", "timm"]
)
def test_mixers_import_nothing_of_the_bench(foreign, report):
    assert "torch" in report["modules_of_mixers"]
    assert foreign not in report["modules_of_mixers"]


def test_a_plugins_classes_unpickle_in_another_process(report, folder, clean_registry):
    """pickle finds a class by its module's name, so that name must not differ by process."""
    load_plugin(folder / "early.py")
    assert MIXERS.get("mine_early").__module__ == report["module"]
