"""The registries of stems and backbones."""

from torch import nn

from mixers.registry import Registry

STEMS: Registry[nn.Module] = Registry("stem", "mixerbench.models", ("paper",))
BACKBONES: Registry[nn.Module] = Registry("backbone", "mixerbench.models", ("paper",))
register_stem = STEMS.register
register_backbone = BACKBONES.register
