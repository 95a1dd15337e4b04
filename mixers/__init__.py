"""Token mixers: what mixerbench compares.

One file per family, one decorator per mixer. This package knows torch and nothing
of the rest of the project. Importing it is cheap: torch is loaded by the first name
that needs it, so that command lines can list what is registered without waiting.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixers.core.contract import (
        Place,
        Stride,
        TokenGrid,
        TokenMixer,
        as_image,
        as_tokens,
    )
    from mixers.core.registry import MIXERS, create_mixer, list_mixers, load_plugin, register_mixer

_HOME = {
    "Place": "mixers.core.contract",
    "Stride": "mixers.core.contract",
    "TokenGrid": "mixers.core.contract",
    "TokenMixer": "mixers.core.contract",
    "as_image": "mixers.core.contract",
    "as_tokens": "mixers.core.contract",
    "MIXERS": "mixers.core.registry",
    "create_mixer": "mixers.core.registry",
    "list_mixers": "mixers.core.registry",
    "load_plugin": "mixers.core.registry",
    "register_mixer": "mixers.core.registry",
}
__all__ = [
    "MIXERS",
    "Place",
    "Stride",
    "TokenGrid",
    "TokenMixer",
    "as_image",
    "as_tokens",
    "create_mixer",
    "list_mixers",
    "load_plugin",
    "register_mixer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mixers' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
