"""Source code from outside: its digest is part of the model, since it decides the result.

A digest covers one file. If a plugin imports other files, changes in those are not noticed.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixerbench.config.schema import Settings
from mixerbench.errors import Refusal
from mixers.core.catalog import is_built_in, mixer_catalog, plugin_path, source_digest
from mixers.core.plan import choices_in, read_plan
from mixers.core.spec import Spec


def source_digests(plugins: Sequence[str], mixer: Any, catalog: Mapping[str, Spec]) -> list[str]:
    """The digests of all plugins, used or not, and of the plan's mixers from installed packages.

    Args:
        mixer: the plan, as settings have it.
        catalog: of mixers, those of the plugins included.

    Raises:
        Refusal: a plugin is no Python file.
    """
    files = [*map(plugin_path, plugins), *_packages(plugins, mixer, catalog).values()]
    return sorted({source_digest(path.read_bytes()) for path in files})


def load_plugins(settings: Settings) -> None:
    """Run the plugins, if they have not changed since the settings were made.

    Raises:
        Refusal: one has changed since, or is no Python file.
    """
    from mixers.core.registry import MIXERS, load_plugin

    digests = settings.model.get("plugins")  # older runs did not record them
    for plugin in settings.plugins:
        load_plugin(plugin, digests)
    if digests is None:
        return
    catalog = mixer_catalog(settings.plugins)
    for name, path in _packages(settings.plugins, settings.model["mixer"], catalog).items():
        MIXERS.get(name)  # imports its file
        if source_digest(path.read_bytes()) not in digests:
            raise Refusal(
                f"mixer {name!r} is of an installed package, and its file {path} has changed since "
                "the settings were made: install the package as it was, or give the command again."
            )


def kept_names(plugins: Sequence[str]) -> dict[str, str]:
    """Plugin -> the name of its copy in the folder of a run: its own, with a number if taken."""
    names: dict[str, str] = {}
    for plugin in plugins:
        names.setdefault(plugin, next(n for n in _names(Path(plugin)) if n not in names.values()))
    return names


def _names(path: Path) -> Iterator[str]:
    yield path.name
    number = 2
    while True:
        yield f"{path.stem}-{number}{path.suffix}"
        number += 1


def _packages(plugins: Sequence[str], mixer: Any, catalog: Mapping[str, Spec]) -> dict[str, Path]:
    """Mixer -> file, for the mixers of the plan that come from an installed package."""
    own = set(map(plugin_path, plugins))
    entries = [
        catalog[choice.name] for choice in choices_in(read_plan(mixer)) if choice.name in catalog
    ]
    return {
        entry.name: entry.path
        for entry in entries
        if not is_built_in(entry.path) and entry.path not in own
    }
