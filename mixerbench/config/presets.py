"""The papers' models as data: what ``create_model`` takes, and what was published. No torch here.

A preset is a model and nothing else: the recipe that it was trained with is a protocol.
Patches are the protocol's (16 pixels on ImageNet) where a preset gives no size of its own.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mixerbench.errors import Refusal
from mixers.core.names import nearest

PARTS = ("backbone", "size", "stem", "mixer")
"""What a model consists of, in settings and in presets."""

MACS = "multiply-adds"
TWICE = "2 x multiply-adds"  # SASA, footnote of section 4.1


@dataclass(frozen=True)
class Preset:
    """One model of a paper.

    ``parameters`` (millions), ``flops`` (1e9, by ``convention``) and ``top1`` (ImageNet-1k,
    224 px, %) are texts with as many digits as were published; empty where nothing was.
    """

    model: Mapping[str, Any]
    code: str  # whose names convert_official reads: deit, feed_forward, lit_ti, lit, resnet; ""
    paper: str
    parameters: str
    flops: str = ""
    top1: str = ""
    convention: str = MACS
    with_classifier: bool = True  # is the classifier in the published parameters?
    note: str = ""


def _part(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, **options}


# --- Do You Even Need Attention? --------------------------------------------------------------

_FF = "Do You Even Need Attention?, arXiv:2105.02723"


def _feed_forward(size: str, parameters: str, top1: str, **stem: int) -> Preset:
    model = {
        "backbone": _part(
            "vit", pool="token", channels_first=True, pos_table=[14, 14], pos_resize="bilinear"
        ),
        "size": size,
        "stem": _part("patch", **stem),
        "mixer": _part("patch_ff", norm="tokens"),
    }
    return Preset(model, "feed_forward", _FF, parameters, top1=top1)


_ATTENTION_ONLY = Preset(
    {
        "backbone": _part("vit", pool="token", channel_mixer="feature_attention"),
        "size": "tiny",
        "stem": _part("patch"),
        "mixer": _part("attention"),
    },
    "",
    _FF,
    "4.0",
    note="top-1 28.2 at epoch 100 of 300",
)

# --- DeiT -------------------------------------------------------------------------------------

_DEIT = "Training data-efficient image transformers, arXiv:2012.12877"


def _deit(size: str, parameters: str, flops: str, top1: str, *, distilled: bool = False) -> Preset:
    model = {
        "backbone": _part("vit", pool="token", distillation_token=distilled),
        "size": size,
        "stem": _part("patch"),
        "mixer": _part("attention"),
    }
    return Preset(model, "deit", _DEIT, parameters, flops, top1)


# --- LIT --------------------------------------------------------------------------------------

_LIT = "Less is More: Pay Less Attention in Vision Transformers, arXiv:2105.14217"
_LIT_STEM = _part("patch", patch_size=4, norm=True)

_LIT_TI = Preset(
    {
        "backbone": _part("pyramid", pool="token", mlp_ratios=[8.0, 8.0, 4.0, 4.0], pos_embed=True),
        "size": "tiny",
        "stem": _LIT_STEM,
        "mixer": _part("plan", plan=["none", "none", "attention", "attention"]),
    },
    "lit_ti",
    _LIT,
    "19",
    "3.6",
    "81.1",
    with_classifier=False,
)


def _lit(size: str, parameters: str, flops: str, top1: str) -> Preset:
    attention = _part("attention", rel_pos_bias=True)
    model = {
        "backbone": _part("pyramid", norm_eps=1e-5),
        "size": size,
        "stem": _LIT_STEM,
        "mixer": _part("plan", plan=["none", "none", attention, attention]),
    }
    return Preset(model, "lit", _LIT, parameters, flops, top1, with_classifier=False)


# --- SASA -------------------------------------------------------------------------------------

_SASA = "Stand-Alone Self-Attention in Vision Models, arXiv:1906.05909"
_RESNET_STEM = _part("conv", patch_size=4, kernel_size=7, max_pool=True, project=False)
_ATTENTION_STEM = _part("attention", patch_size=4)
_CONVOLUTION = _part("convolution")
_LOCAL = _part("local_attention", window=7, border="zero", out_proj=False)


def _sasa(
    size: str,
    convolutions: str,
    parameters: str,
    flops: str,
    top1: str = "",
    *,
    stem: Mapping[str, Any] = _RESNET_STEM,
    note: str = "",
) -> Preset:
    """``convolutions``: the groups that have them ("12": the first two); the others attend.

    "held out": table 3 of the paper gives top-1 of a part of the training set.
    """
    plan = [_CONVOLUTION if group in convolutions else _LOCAL for group in "1234"]
    model = {
        "backbone": _part("resnet"),
        "size": size,
        "stem": stem,
        "mixer": plan[0] if plan == plan[:1] * 4 else _part("plan", plan=plan),
    }
    code = "resnet" if convolutions == "1234" else ""
    return Preset(model, code, _SASA, parameters, flops, top1, TWICE, note=note)


_FULL = "appendix A.1 has no q·r in the stem; counted with it these FLOPs are 4.70, 5.94, 7.18"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "ff_tiny": _feed_forward("tiny", "7.7", "61.4"),
        "ff_base": _feed_forward("base", "62", "74.9"),
        "ff_large": _feed_forward("large", "206", "71.4", patch_size=32),
        "attention_only_tiny": _ATTENTION_ONLY,
        "deit_tiny": _deit("tiny", "5.7", "1.3", "72.2"),
        "deit_small": _deit("small", "22.1", "4.6", "79.9"),
        "deit_base": _deit("base", "86.6", "17.6", "81.8"),
        "deit_tiny_distilled": _deit("tiny", "6", "", "74.5", distilled=True),
        "deit_small_distilled": _deit("small", "22", "", "81.2", distilled=True),
        "deit_base_distilled": _deit("base", "87", "", "83.4", distilled=True),
        "lit_ti": _LIT_TI,
        "lit_s": _lit("small", "27", "4.1", "81.5"),
        "lit_m": _lit("medium", "48", "8.6", "83.0"),
        "lit_b": _lit("base", "86", "15.0", "83.4"),
        "resnet26": _sasa("r26", "1234", "13.7", "4.7", "74.5"),
        "resnet38": _sasa("r38", "1234", "19.6", "6.5", "76.2"),
        "resnet50": _sasa("r50", "1234", "25.6", "8.2", "76.9"),
        "sasa_r26": _sasa("r26", "", "10.3", "4.5", "75.8"),
        "sasa_r38": _sasa("r38", "", "14.1", "5.7", "77.1"),
        "sasa_r50": _sasa("r50", "", "18.0", "7.0", "77.4"),
        "sasa_r26_full": _sasa("r26", "", "10.3", "4.7", "74.8", stem=_ATTENTION_STEM, note=_FULL),
        "sasa_r38_full": _sasa("r38", "", "14.1", "6.0", "76.9", stem=_ATTENTION_STEM, note=_FULL),
        "sasa_r50_full": _sasa("r50", "", "18.0", "7.2", "77.6", stem=_ATTENTION_STEM, note=_FULL),
        "sasa_r50_conv1": _sasa("r50", "1", "18.1", "7.3", "80.7 (held out)"),
        "sasa_r50_conv12": _sasa("r50", "12", "18.5", "7.5", "80.7 (held out)"),
        "sasa_r50_conv123": _sasa("r50", "123", "20.8", "8.0", "80.2 (held out)"),
        "sasa_r50_conv234": _sasa("r50", "234", "25.5", "7.9", "79.7 (held out)"),
        "sasa_r50_conv34": _sasa("r50", "34", "25.0", "7.8", "79.6 (held out)"),
        "sasa_r50_conv4": _sasa("r50", "4", "22.7", "7.2", "79.9 (held out)"),
    }
)


def find_preset(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        Refusal: there is none; the message names the nearest.
    """
    if name not in PRESETS:
        raise Refusal(f"unknown preset {name!r}. {nearest(name, PRESETS)}")
    return PRESETS[name]


def official_code(name: str) -> str:
    """Whose names the official checkpoints of preset ``name`` have.

    Raises:
        Refusal: there is no such preset, or its authors published no code for it.
    """
    code = find_preset(name).code
    if not code:
        known = ", ".join(name for name, preset in PRESETS.items() if preset.code)
        raise Refusal(
            f"preset {name!r} has no published code whose checkpoints could be imported. "
            f"Those that have: {known}."
        )
    return code


def with_changes(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a preset's model, some of them chosen anew.

    A part of the same name keeps the preset's options, so that ``stem="conv"`` is SASA's
    convolution stem in ``sasa_r50``; options given beside the name replace the preset's.
    Another stem keeps the size of the patches, where the preset gives one.

    Args:
        given: part -> name, mapping with a name, or list of mixers; None leaves it as it is.

    Raises:
        Refusal: there is no such preset.
    """
    parts = copy.deepcopy(dict(find_preset(preset).model))
    for part, choice in given.items():
        if choice is None:
            continue
        theirs = parts[part]
        if isinstance(theirs, Mapping) and isinstance(choice, (str, Mapping)):
            changes = _part(choice) if isinstance(choice, str) else choice
            if changes.get("name") == theirs["name"]:
                choice = {**theirs, **changes}
            elif part == "stem":
                kept = {key: value for key, value in theirs.items() if key == "patch_size"}
                choice = {**kept, **changes}
        parts[part] = choice
    return parts
