"""What of a run others may see: nothing that names files of somebody's machine."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leaderboard.reading.results import TrainedRun
from leaderboard.repeat import command_of
from mixerbench.config.assignments import key_of
from mixerbench.config.schema import MACHINE_PATHS
from mixerbench.tracking.keys import Param, Tag

_PATHS_IN_COMMANDS = (
    *MACHINE_PATHS,
    *(path.removeprefix(Param.PROTOCOL) for path in MACHINE_PATHS),  # data.root stands for it
    *("tracking", "launcher"),
)
_A_PATH = re.compile(r"""(^|[\s=,:'"\[{])(~|\.{0,2})/""")
_PARAMS_LEFT_OUT = (f"{Param.ENVIRONMENT}platform",)  # with a kernel's name, which may be a site's
_TAGS_LEFT_OUT = (Tag.RUN_DIR, Tag.CONFIG_DRIFT, Tag.IMPORTED)


def without_machine_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they would be with the defaults where one machine's files are named."""
    plugins = [Path(plugin).name for plugin in settings["plugins"]]
    new: dict[str, Any] = json.loads(json.dumps(settings))
    for path, default in MACHINE_PATHS.items():
        *groups, field = path.split(".")
        group = new
        for name in groups:
            group = group[name]
        group[field] = default
    return new | {
        "tracking": {},
        "launcher": {},
        "plugins": plugins,
        "overrides": public_arguments(settings["overrides"], plugins),
    }


def defaults_at_machine_paths(params: Mapping[str, str]) -> dict[str, str]:
    public = {key: value for key, value in params.items() if key not in _PARAMS_LEFT_OUT}
    return {key: str(MACHINE_PATHS.get(key, value)) for key, value in public.items()}


def public_tags(run: TrainedRun, plugins: Sequence[str]) -> dict[str, str]:
    # By its uid a run is known in whatever store it comes to.
    tags = {Tag.UID: run.run_id, **run.tags}
    tags = {key: value for key, value in tags.items() if key != Tag.COMMAND}
    if command := command_of(run, plugins):
        tags[Tag.COMMAND] = command
    return {key: value for key, value in tags.items() if key not in _TAGS_LEFT_OUT}


def public_arguments(arguments: Iterable[str], plugins: Sequence[str]) -> list[str]:
    """Those that name no file of a machine; plugins by their names."""
    public = []
    for argument in arguments:
        key = key_of(argument).lstrip("+~")
        if key == "plugins":
            public.append(f"plugins=[{','.join(plugins)}]")
        elif not _A_PATH.search(argument) and not any(
            key == path or key.startswith(f"{path}.") for path in _PATHS_IN_COMMANDS
        ):
            public.append(argument)
    return public
