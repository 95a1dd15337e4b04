"""Imports point one way: cli -> training -> {objectives, models, recipe, data, ...} -> mixers."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mixers", "mixerbench", "leaderboard")
OWN = PACKAGES  # what counts as the project's own

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def _imports(module: str) -> Iterator[tuple[str, ast.stmt]]:
    """Every name that the module imports, wherever in it, absolute."""
    path = SOURCES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            for alias in node.names:
                yield f"{base}.{alias.name}", node


def _within(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def _modules(*parents: str) -> list[str]:
    found = [module for module in SOURCES if _within(module, parents)]
    assert found, f"no module below {parents}: was it renamed?"
    return found


def _offenders(modules: list[str], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{module}:{node.lineno} imports {name}"
        for module in modules
        for name, node in _imports(module)
        if _within(name, forbidden)
    ]


def test_mixers_know_nothing_of_the_project() -> None:
    assert _offenders(_modules("mixers"), ("mixerbench", "leaderboard")) == []


def test_mixers_know_torch_timm_layers_and_the_standard_library_only() -> None:
    tools = ("hydra", "omegaconf", "mlflow", "rich", "yaml", "torchvision", "pandas", "numpy")
    assert _offenders(_modules("mixers"), tools) == []
    of_timm = [n for m in _modules("mixers") for n, _ in _imports(m) if _within(n, ("timm",))]
    assert all(_within(name, ("timm.layers",)) for name in of_timm)


def test_models_know_mixers_and_plain_data_of_config_only() -> None:
    plain = ("sizes", "presets", "schema", "cost_target", "plugins")
    allowed = (
        *("mixers", "mixerbench.models", "mixerbench.draws"),
        *(f"mixerbench.config.{name}" for name in plain),
    )
    for module in _modules("mixerbench.models"):
        for name, node in _imports(module):
            if _within(name, OWN):
                assert _within(name, allowed), f"{module}:{node.lineno} imports {name}"
    assert _offenders(_modules("mixerbench.models"), ("hydra", "omegaconf", "mlflow")) == []


@pytest.mark.parametrize(
    "part", ["objectives", "recipe", "data", "measure", "tracking", "models", "config"]
)
def test_parts_know_neither_the_training_nor_the_command_line(part: str) -> None:
    forbidden = ("mixerbench.training", "mixerbench.cli", "mixerbench.commands", "leaderboard")
    assert _offenders(_modules(f"mixerbench.{part}"), forbidden) == []


@pytest.mark.parametrize("part", ["recipe", "data", "measure", "models", "config"])
def test_only_tracking_and_training_know_mlflow_and_the_tracking(part: str) -> None:
    forbidden = ("mlflow", "mixerbench.tracking")
    assert _offenders(_modules(f"mixerbench.{part}"), forbidden) == []


def test_mlflow_is_imported_in_tracking_and_in_the_leaderboard_only() -> None:
    rest = [m for m in SOURCES if not _within(m, ("mixerbench.tracking", "leaderboard"))]
    assert _offenders(rest, ("mlflow",)) == []


def test_the_leaderboard_knows_the_names_of_logged_keys_and_plain_data_of_config() -> None:
    # The hash of recorded settings, the name of a plan, and what counts as equal cost, must not
    # be copies.
    plain = (
        *("mixerbench.config.schema", "mixerbench.config.cost_target", "mixerbench.config.sources"),
        *("mixers.core.plan", "mixers.core.errors"),
        "mixerbench.config.assignments",
        "mixerbench.config.repeat",  # a page's command must compose to what was trained
    )
    names = (f"mixerbench.tracking.{name}" for name in ("keys", "figures", "passwords"))
    allowed = (*names, *plain)
    for module in _modules("leaderboard"):
        for name, node in _imports(module):
            if _within(name, ("mixerbench", "mixers")):
                assert _within(name, allowed), f"{module}:{node.lineno} imports {name}"


def test_nothing_imports_the_command_line() -> None:
    rest = [module for module in SOURCES if module not in ("mixerbench.cli", "mixerbench.__main__")]
    assert _offenders(rest, ("mixerbench.cli",)) == []


def test_hydra_is_imported_only_where_settings_are_composed() -> None:
    # Reading overrides, composing them and explaining a refusal use Hydra's own parser. All other
    # files work with plain dataclasses, so that another way of composing would not touch them.
    importing = {m for m in SOURCES if _offenders([m], ("hydra", "hydra_plugins"))}
    files = ("overrides", "compose", "explain")
    assert importing == {f"mixerbench.config.{name}" for name in files}


def test_keys_and_errors_import_nothing_of_the_project() -> None:
    free = ("mixerbench.tracking.keys", "mixerbench.config.assignments", "mixers.core.errors")
    assert _offenders(_modules(*free), OWN) == []
    figures = {name for name, _ in _imports("mixerbench.tracking.figures") if _within(name, OWN)}
    assert figures == {"mixerbench.tracking.keys.Metric"}
    errors = {name for name, _ in _imports("mixerbench.errors") if _within(name, OWN)}
    assert all(_within(name, ("mixers.core.errors",)) for name in errors)


LIGHT = ("mixerbench.cli", "mixerbench.commands._listing", "mixerbench.commands._suite_report",
         "mixerbench.config", "mixerbench.tracking", "mixerbench.errors",
         "mixerbench.training.folder", "mixerbench.launching.local",
         "mixerbench.launching.child", "mixerbench.launching.job",
         "mixerbench.launching.size_matching",
         "mixerbench.launching.suite", "mixerbench.launching.table",
         "mixerbench.training.launch", "mixerbench.objectives.objective",
         "mixers.core.catalog", "mixers.core.plan", "leaderboard")  # fmt: skip
"""What a command line, a refusal and the parent of a sweep load."""


def test_what_refuses_a_typo_imports_nothing_heavy_at_its_top() -> None:
    heavy = ("torch", "torchvision", "timm", "mlflow", "fvcore", "pandas", "pyarrow", "sklearn")
    for module in _modules(*LIGHT):
        for node in ast.parse(SOURCES[module].read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                assert not any(_within(name, heavy) for name in names), f"{module}:{node.lineno}"


def test_a_command_imports_only_how_commands_are_declared_at_its_top() -> None:
    light = ("mixerbench.commands", "mixerbench.errors", "mixerbench.config.assignments")
    for module in _modules("mixerbench.commands"):
        if "._" not in module:
            for node in ast.parse(SOURCES[module].read_text(encoding="utf-8")).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                for name in names:
                    known = name.partition(".")[0] in sys.stdlib_module_names
                    assert known or _within(name, light), f"{module}:{node.lineno} imports {name}"


def _package_of(module: str) -> str:
    rooms = module.startswith(("mixerbench.", "leaderboard."))
    return ".".join(module.split(".")[:2]) if rooms else module


def test_packages_do_not_import_each_other_in_circles() -> None:
    arrows: dict[str, set[str]] = {}
    for module in SOURCES:
        for name, _ in _imports(module):
            target = next((m for m in (name, name.rpartition(".")[0]) if m in SOURCES), None)
            if target and _package_of(target) != _package_of(module):
                arrows.setdefault(_package_of(module), set()).add(_package_of(target))
    for package in ("mixerbench.recipe", "mixerbench.data", "mixerbench.measure",
                    "mixerbench.models", "mixerbench.tracking", "mixerbench.config",
                    "mixerbench.objectives", "leaderboard.claims", "leaderboard.reading",
                    "leaderboard.bundles", "leaderboard.ranking", "leaderboard.site"):  # fmt: skip
        seen: set[str] = set()
        waiting = [package]
        while waiting:
            for target in arrows.get(waiting.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        assert package not in seen, f"{package} imports itself through {sorted(seen)}"


def test_modules_do_not_import_each_other_in_circles() -> None:
    """Wherever in them: an import inside of a function ties two modules together as well."""
    arrows: dict[str, set[str]] = {}
    for module in SOURCES:
        targets = {
            next((m for m in (name, name.rpartition(".")[0]) if m in SOURCES), module)
            for name, _ in _imports(module)
        }
        arrows[module] = {t for t in targets - {module} if SOURCES[t].name != "__init__.py"}
    while ends := {module for module, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {module: targets for module, targets in arrows.items() if module not in ends}
    circles = {module: sorted(targets & arrows.keys()) for module, targets in arrows.items()}
    assert circles == {}
