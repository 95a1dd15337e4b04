"""The registries of the parts that models are made of, beside the mixers."""

from torch import nn

from mixerbench.models.backbone import Backbone
from mixerbench.models.parts import ChannelMixer
from mixers.core.registry import Registry

_PACKAGE = "mixerbench.models"

STEMS: Registry[nn.Module] = Registry("stem", _PACKAGE, ("paper",))
BACKBONES: Registry[Backbone] = Registry("backbone", _PACKAGE, ("paper", "stem_divisor", "sizes"))
CHANNEL_MIXERS: Registry[ChannelMixer] = Registry("channel_mixer", _PACKAGE, ("paper", "any_grid"))
MERGINGS: Registry[nn.Module] = Registry("merging", _PACKAGE, ("paper",))
register_stem = STEMS.register
register_backbone = BACKBONES.register
register_channel_mixer = CHANNEL_MIXERS.register
register_merging = MERGINGS.register
