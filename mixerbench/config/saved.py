"""Settings that are read from a file, perhaps a stranger's: they are data and start nothing."""

import re
from collections.abc import Mapping
from typing import Any, Final

from mixerbench.config.presets import PARTS
from mixerbench.errors import Refusal

_NAME: Final = re.compile(r"[\w-]{1,100}")  # of a setting, or of a part that is chosen
_DEPTH: Final = 10  # ours have five levels
_LARGEST: Final = 100_000  # of a model's numbers; the widest of the papers' has 4,096


def check_saved(saved: Any) -> None:
    """Refuse a file's content that is no settings, or would be more than data when composed.

    ``${oc.env:HOME}`` in a value would be looked up, and a name could hold another setting.

    Raises:
        Refusal: what is wrong with them.
    """
    if not isinstance(saved, Mapping):
        raise Refusal("no mapping of settings")
    model, protocol, plugins = (saved.get(key) for key in ("model", "protocol", "plugins"))
    if not isinstance(model, Mapping) or not isinstance(protocol, Mapping):
        raise Refusal("no mappings 'model' and 'protocol' in it")
    for part in PARTS:
        if not isinstance(model.get(part), (str, Mapping)):
            raise Refusal(f"'model' has no {part!r}")
    if not isinstance(saved.get("label", ""), str):
        raise Refusal("'label' is no text")
    plugins = [] if plugins is None else plugins
    if not isinstance(plugins, list) or not all(isinstance(file, str) for file in plugins):
        raise Refusal("'plugins' is no list of files")
    for part, content in {**{part: model[part] for part in PARTS}, "protocol": protocol}.items():
        name = content if isinstance(content, str) else content.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Refusal(f"{part} has no plain name")
        _check_plain(part, content, _DEPTH)


def _check_plain(path: str, value: Any, depth: int) -> None:
    if depth == 0:
        raise Refusal(f"{path} is nested too deeply")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or not _NAME.fullmatch(key):
                raise Refusal(f"{path} has a setting {str(key)[:50]!r}, which is no name")
            _check_plain(f"{path}.{key}", inner, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(path, inner, depth - 1)
    elif isinstance(value, int) and path.partition(".")[0] in PARTS and abs(value) > _LARGEST:
        raise Refusal(f"{path} is larger than any model's")  # and would take forever to refuse
    elif isinstance(value, str) and "${" in value:
        raise Refusal(f"{path} is {value[:50]!r}, and ${{...}} is looked up nowhere")
