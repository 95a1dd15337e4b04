"""The YAML files of protocols, recipes, data sets and suites."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
CONFIGS = next(
    path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()
)
"""The folder of YAML files: inside an installed package, else at the root of the checkout."""


def config_names(group: str) -> list[str]:
    """The names of the YAML files of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
