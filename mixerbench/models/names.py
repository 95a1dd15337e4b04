"""How the authors name what our models hold: patterns of state-dict names, one table per code.

Every pattern of a table is applied, in its order.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

Names = Mapping[str, str]

TIMM_VIT: Names = MappingProxyType(
    {
        r"^patch_embed\.": "stem.",
        r"^pos_embed$": "pos_embed.table",
        r"^(blocks\.\d+)\.attn\.": r"\1.mixer.",
        r"^(blocks\.\d+)\.mlp\.": r"\1.channel_mixer.",
    }
)
"""timm's VisionTransformer and facebookresearch/deit."""

FEED_FORWARD: Names = MappingProxyType(
    {
        r"^patch_embed\.": "stem.",
        r"^(blocks\.\d+)\.norm2\.": r"\1.mixer.norm.",
        r"^(blocks\.\d+)\.mlp2\.": r"\1.mixer.",
        r"^(blocks\.\d+)\.norm1\.": r"\1.norm2.",  # theirs count in the order of the forward pass
        r"^(blocks\.\d+)\.mlp1\.": r"\1.channel_mixer.",
    }
)
"""lukemelas/do-you-even-need-attention; its position table is an image, see ``official``."""

_LIT_PARTS: Names = MappingProxyType(
    {
        r"\.dconv\.conv_offset\.": ".offset.",
        r"\.dconv\.": ".conv.",
        r"\.norm_layer\.": ".norm.",
        r"\.attn\.relative_position_bias_table$": ".mixer.rel_pos_table",
        r"\.attn\.relative_position_index$": ".mixer.rel_pos_index",
        r"\.attn\.": ".mixer.",
        r"\.mlp\.": ".channel_mixer.",
    }
)

LIT_TI: Names = MappingProxyType(
    {
        r"^patch_embed1\.": "stem.",
        **{rf"^patch_embed{i}\.": f"stages.{i - 1}.merging." for i in (2, 3, 4)},
        **{rf"^pos_embed{i}$": f"stages.{i - 1}.pos_embed.table" for i in (1, 2, 3, 4)},
        **{rf"^block{i}\.": f"stages.{i - 1}.blocks." for i in (1, 2, 3, 4)},
        **_LIT_PARTS,
    }
)
"""MonashAI/LIT, code_for_lit_ti."""

LIT: Names = MappingProxyType(
    {
        r"^patch_embed\.": "stem.",
        **{rf"^layers\.{i}\.downsample\.": f"stages.{i + 1}.merging." for i in (0, 1, 2)},
        r"^layers\.": "stages.",
        **_LIT_PARTS,
    }
)
"""MonashAI/LIT, code_for_lit_s_m_b."""

RESNET: Names = MappingProxyType(
    {
        r"^conv1\.": "stem.layers.0.",
        r"^bn1\.": "stem.layers.1.",
        **{rf"^layer{i}\.": f"stages.{i - 1}." for i in (1, 2, 3, 4)},
        r"\.conv2\.": ".mixer.conv.",
        r"^fc\.": "head.",
    }
)
"""torchvision's ResNet with bottlenecks."""


def rename(name: str, names: Names) -> str:
    """The name that our models give to the entry ``name``."""
    for pattern, ours in names.items():
        name = re.sub(pattern, ours, name)
    return name


def accept_timm_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook of ``load_state_dict``: rename the entries of a timm ViT in place."""
    for key in list(state):
        ours = prefix + rename(key.removeprefix(prefix), TIMM_VIT)
        if ours != key:
            state[ours] = state.pop(key)
