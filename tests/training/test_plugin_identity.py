"""Another source of a plugin is another model: in its entry, its folder, its resume, its eval."""

import hashlib
import json
import os
import py_compile
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mixerbench.commands._checkpoint import evaluate_place
from mixerbench.config.compose import compose
from mixerbench.config.schema import Settings, fingerprint
from mixerbench.errors import Refusal
from mixerbench.tracking.journal import FILE_NAME, read
from mixerbench.tracking.keys import Tag
from mixerbench.training.run import run_training
from mixers import MIXERS

PLUGIN = """
from mixers import TokenMixer, register_mixer

@register_mixer("scaled")
class Scaled(TokenMixer):
    any_grid, mixes_prefix, paper = True, True, "none"

    def forward(self, x, grid):
        return 0.5 * (x + x.mean(dim=1, keepdim=True))
"""
EDITED = PLUGIN.replace("0.5", "0.7")  # of the same length, and perhaps of the same second
INSTALLED = PLUGIN.replace("scaled", "installed_scaled")


def digest_of(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


@pytest.fixture(autouse=True)
def each_test_begins_without_plugins(forget_plugins: Callable[[], None]) -> None:
    forget_plugins()


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


def model_of(*overrides: str) -> dict[str, Any]:
    return compose(["size=micro", *overrides]).model


# --- what is in the fingerprint ---------------------------------------------------------------


def test_every_plugin_is_part_of_the_model_whether_it_is_used_or_not(plugin: Path) -> None:
    used = model_of("mixer=scaled", f"plugins=[{plugin}]")
    assert used["plugins"] == [digest_of(PLUGIN)]
    beside = model_of("mixer=identity", f"plugins=[{plugin}]")
    assert fingerprint(beside) != fingerprint(model_of("mixer=identity"))
    assert "plugins" not in model_of("mixer=identity")
    plugin.write_text(EDITED)
    edited = model_of("mixer=scaled", f"plugins=[{plugin}]")
    assert edited["plugins"] == [digest_of(EDITED)]
    assert fingerprint(edited) != fingerprint(used)


def test_neither_the_place_nor_the_order_of_plugins_is_part_of_it(plugin: Path) -> None:
    other = plugin.with_name("other.py")
    other.write_text(PLUGIN.replace("scaled", "other"))
    moved = plugin.parent / "elsewhere/renamed.py"
    moved.parent.mkdir()
    shutil.copy(plugin, moved)
    one = model_of("mixer=scaled", f"plugins=[{plugin},{other}]")
    assert one == model_of("mixer=scaled", f"plugins=[{other},{moved}]")
    assert one["plugins"] == sorted(one["plugins"])
    assert len(one["plugins"]) == 2


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_registry: None) -> Any:
    """An installed package with a mixer: its module."""
    from mixers.core import catalog

    site = tmp_path / "site"
    metadata = site / "their_mixers-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-mixers\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[mixerbench.mixers]\nx = their_mixers_of_a_test\n")
    (site / "their_mixers_of_a_test.py").write_text(INSTALLED)
    monkeypatch.syspath_prepend(site)
    catalog.installed_files.cache_clear()
    yield site / "their_mixers_of_a_test.py"
    monkeypatch.undo()
    catalog.installed_files.cache_clear()


def test_a_mixer_of_an_installed_package_is_part_of_the_models_that_use_it(
    package: Path, tiny: Callable[..., Settings]
) -> None:
    plan = "mixer.plan=[identity,installed_scaled]"
    assert model_of("mixer=installed_scaled")["plugins"] == [digest_of(INSTALLED)]
    assert model_of("mixer=plan", plan)["plugins"] == [digest_of(INSTALLED)]
    assert "plugins" not in model_of("mixer=identity")
    settings = tiny("mixer=installed_scaled", "recipe.epochs=1")
    package.write_text(INSTALLED + "\n")  # an upgrade
    with pytest.raises(Refusal, match="installed package") as refusal:
        run_training(settings)
    assert str(package) in str(refusal.value)
    run_training(tiny("mixer=installed_scaled", "recipe.epochs=1"))


# --- what is run ------------------------------------------------------------------------------


def test_a_plugin_that_changed_since_the_settings_were_made_is_not_run(
    tmp_path: Path, plugin: Path, tiny: Callable[..., Settings]
) -> None:
    settings = tiny("mixer=scaled", f"plugins=[{plugin}]")
    plugin.write_text("raise SystemExit('this must not run')")
    with pytest.raises(Refusal, match="has changed since the settings were made") as refusal:
        run_training(settings)
    assert str(plugin) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_the_source_that_was_read_is_what_runs(
    plugin: Path, forget_plugins: Callable[[], None], trained: Callable[..., Any]
) -> None:
    """Python's own cache knows a file by its size and second, and would run the old code."""
    py_compile.compile(str(plugin))
    before = plugin.stat()
    plugin.write_text(EDITED)
    os.utime(plugin, (before.st_atime, before.st_mtime))
    run = trained("mixer=scaled", f"plugins=[{plugin}]", "recipe.epochs=1")
    x = torch.ones(1, 4, 16)
    assert run.finished.result.model.blocks[0].mixer(x, None)[0, 0, 0].item() == pytest.approx(1.4)
    assert (run.folder / "plugins/mine.py").read_text() == EDITED


def test_two_plugins_of_one_name_are_both_kept(plugin: Path, trained: Callable[..., Any]) -> None:
    namesake = plugin.parent / "other/mine.py"
    namesake.parent.mkdir()
    namesake.write_text(PLUGIN.replace("scaled", "other"))
    run = trained("mixer=scaled", f"plugins=[{plugin},{namesake}]", "recipe.epochs=1")
    kept = {path.name: path.read_text() for path in (run.folder / "plugins").iterdir()}
    assert kept == {"mine.py": PLUGIN, "mine-2.py": namesake.read_text()}
    artifacts = [r["path"] for r in run.records() if r["kind"] == "artifact"]
    assert {"plugins/mine.py", "plugins/mine-2.py"} <= set(artifacts)


# --- edited on the way ------------------------------------------------------------------------


def _tags(folder: Path) -> dict[str, str]:
    records = [r["values"] for r, _ in read(folder / FILE_NAME) if r["kind"] == "tags"]
    return {key: value for values in records for key, value in values.items()}


def test_a_plugin_that_is_edited_between_two_seeds_makes_two_entries(
    plugin: Path, forget_plugins: Callable[[], None], trained: Callable[..., Any]
) -> None:
    settings = ["mixer=scaled", f"plugins=[{plugin}]", "recipe.epochs=1"]
    one, same = trained(*settings), trained(*settings, "run.seed=1")
    plugin.write_text(EDITED)
    forget_plugins()
    edited = trained(*settings, "run.seed=2")
    first, second, third = (_tags(run.folder)[Tag.MODEL_FINGERPRINT] for run in (one, same, edited))
    assert first == second != third
    for run, source in ((one, PLUGIN), (edited, EDITED)):
        params = next(r["values"] for r in run.records() if r["kind"] == "params")
        assert params["model.plugins"] == str([digest_of(source)])
        saved = yaml.safe_load((run.folder / "config.yaml").read_text())
        assert saved["model"]["plugins"] == [digest_of(source)]


def test_a_run_is_not_continued_with_other_source(
    plugin: Path,
    forget_plugins: Callable[[], None],
    trained: Callable[..., Any],
    stopped: Callable[..., Path],
    tiny: Callable[..., Settings],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = ["mixer=scaled", f"plugins=[{plugin}]"]
    folder = stopped("train/loss", 6, *settings)
    plugin.write_text(EDITED)
    forget_plugins()

    with pytest.raises(Refusal, match="other source of its plugins") as refusal:
        run_training(tiny(*settings, f"run.resume={folder}"))
    message = str(refusal.value)
    assert str(folder / "plugins") in message
    assert len(message.splitlines()) == 1
    assert (folder / "plugins/mine.py").read_text() == PLUGIN

    capsys.readouterr()
    new = trained(*settings, "run.resume=auto")
    said = capsys.readouterr().err
    assert new.folder != folder
    (line,) = [line for line in said.splitlines() if "plugins" in line]
    assert str(folder) in line
    assert "a new run begins" in line
    assert (new.folder / "plugins/mine.py").read_text() == EDITED

    # The copy that the run keeps is its source again.
    forget_plugins()
    again = tiny("mixer=scaled", f"plugins=[{folder / 'plugins/mine.py'}]", f"run.resume={folder}")
    assert run_training(again).folder == folder
    assert json.loads((folder / "run.json").read_text())["model_fingerprint"] == fingerprint(
        again.model
    )


def test_a_process_that_has_loaded_it_does_not_run_it_as_another(
    plugin: Path, trained: Callable[..., Any], tiny: Callable[..., Settings]
) -> None:
    settings = ["mixer=scaled", f"plugins=[{plugin}]", "recipe.epochs=1"]
    trained(*settings)
    plugin.write_text(EDITED)
    with pytest.raises(Refusal, match="has changed since it was loaded"):
        run_training(tiny(*settings))
    assert MIXERS.get("scaled") is not None


def test_an_evaluation_says_that_it_is_of_other_source(
    plugin: Path, forget_plugins: Callable[[], None], trained: Callable[..., Any]
) -> None:
    run = trained("mixer=scaled", f"plugins=[{plugin}]", "recipe.epochs=1")
    given = [f"plugins=[{plugin}]"]
    same = evaluate_place(str(run.folder), given, ema=False, predictions=None)
    assert same.endswith("24 images")
    plugin.write_text(EDITED)
    forget_plugins()
    other = evaluate_place(str(run.folder), given, ema=False, predictions=None)
    assert other.endswith(", with other source of its plugins than it was trained with")


def test_a_package_that_ends_the_process_is_named_in_one_line(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixers import MIXERS

    monkeypatch.delitem(sys.modules, package.stem, raising=False)
    package.write_text(f"{INSTALLED}\nraise SystemExit(0)\n")
    with pytest.raises(ValueError, match="of package 'their-mixers', raised SystemExit: 0") as said:
        MIXERS.names()
    assert f"{package}:" in str(said.value)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("their_mixers_that_is_gone", "is not there"),
        ("their_gone.mixers", "cannot be found (ModuleNotFoundError: No module named"),
        ("their_ending.mixers", "cannot be found (SystemExit: 0)"),
    ],
)
def test_a_package_that_offers_no_module_is_named_in_one_line(
    module: str, said: str, package: Path, refused: Callable[..., str]
) -> None:
    from mixers.core import catalog

    ending = package.parent / "their_ending"
    ending.mkdir()
    (ending / "__init__.py").write_text("raise SystemExit(0)\n")
    points = package.parent / "their_mixers-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"[mixerbench.mixers]\nx = {module}\n")
    catalog.installed_files.cache_clear()
    message = refused("list", "mixers")
    assert f"entry point 'x', module {module} of package 'their-mixers'," in message
    assert said in message
    assert "uninstall it" in message
