"""mixerbench: does your token mixer beat attention, fairly?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixerbench.models.factory import create_model

__version__ = "0.1.0"
__all__ = ["create_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mixerbench' has no attribute {name!r}")
    from mixerbench.models.factory import create_model  # loads torch and timm

    return create_model
