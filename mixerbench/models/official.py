"""Official checkpoints: what the authors published, turned into our models' state dicts."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mixerbench.config.presets import official_code
from mixerbench.models.factory import create_model
from mixerbench.models.names import FEED_FORWARD, LIT, LIT_TI, RESNET, TIMM_VIT, Names, rename
from mixerbench.models.weights import check_numbers
from mixers import TokenGrid
from mixers.attention import Attention, relative_index
from mixers.core.errors import Refusal

_NAMES: Mapping[str, Names] = MappingProxyType(
    {
        "deit": TIMM_VIT,
        "feed_forward": FEED_FORWARD,
        "lit_ti": LIT_TI,
        "lit": LIT,
        "resnet": RESNET,
    }
)

_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
_EMA_WRAPPERS = ("model_ema", "state_dict_ema", "ema")
_WRAPPED = 4  # times at most: a mapping may hold itself
_COUNTER = "num_batches_tracked"
_SHOWN = 20  # names in a message, of each kind


def convert_official(
    preset: str, state_dict: Mapping[str, Any], *, ema: bool = False
) -> dict[str, Tensor]:
    """The state dict that ``create_model(preset=preset).load_state_dict`` takes.

    Args:
        state_dict: entries under the authors' names, in a wrapper (``{"model": ...}``) or not,
            with ``module.`` in front of each or not.
        ema: the moving average that lies beside the weights, where there is one.

    Returns:
        Our names and shapes, in the order of our model, dtypes as given.

    Raises:
        Refusal: no code was published for the preset; entries are missing, unexpected or
            of another shape, and which; or one holds no numbers.
    """
    names = _NAMES[official_code(preset)]
    with torch.device("meta"):
        model = create_model(preset=preset)
    expected = model.state_dict()
    found = dict(_renamed(_unwrap(state_dict, ema), names, model))
    for name, tensor in expected.items():
        if name.endswith(_COUNTER):  # integer, without influence: may be missing
            found.setdefault(name, (name, torch.zeros(tensor.shape, dtype=tensor.dtype)))
    _check(preset, _without_indices(model, found), expected)
    converted = {name: found[name][1] for name in expected}
    check_numbers(converted, expected)
    return converted


def _unwrap(content: Mapping[str, Any], ema: bool) -> dict[str, Tensor]:
    """The entries themselves, out of the wrappers that training scripts put around them."""
    wrappers = _EMA_WRAPPERS if ema else _WRAPPERS
    inner: Any = content
    if ema and not any(isinstance(content.get(name), Mapping) for name in wrappers):
        raise Refusal(
            f"the checkpoint holds no moving average ({', '.join(wrappers)}): leave --ema out."
        )
    for _ in range(_WRAPPED):
        wrapped = next((n for n in wrappers if isinstance(inner.get(n), Mapping)), None)
        if wrapped is None:
            break
        inner, wrappers = inner[wrapped], _WRAPPERS
    tensors = {str(name): one for name, one in inner.items() if isinstance(one, Tensor)}
    if not tensors:
        raise Refusal("the checkpoint holds no weights: no tensors under any known name.")
    if all(name.startswith("module.") for name in tensors):  # DistributedDataParallel's
        tensors = {name.removeprefix("module."): one for name, one in tensors.items()}
    return tensors


_Found = dict[str, tuple[str, Tensor]]
"""Our name -> the authors' name and the entry."""


def _renamed(
    official: Mapping[str, Tensor], names: Names, model: nn.Module
) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    rest = dict(official)
    if names is FEED_FORWARD:
        yield from _position_table(rest, model.pos_embed.grid)  # type: ignore[arg-type, union-attr]
    for name, tensor in rest.items():
        yield rename(name, names), (name, tensor)


def _position_table(
    entries: dict[str, Tensor], table: TokenGrid
) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Their table is an image (1, C, H, W) and a vector for the class token: ours is (1, N, C)."""
    place, token_place = "pos_encoding.pos_embed", "pos_encoding.cls_pos_embed"
    if place not in entries or token_place not in entries:
        return  # reported as missing and unexpected
    image, token = entries.pop(place), entries.pop(token_place)
    dim = token.shape[-1]
    if token.shape != (1, 1, dim):
        yield "pos_embed.table", (token_place, token)  # reported as of another shape
    elif image.shape != (1, dim, table.height, table.width):
        yield "pos_embed.table", (place, image)
    else:
        yield "pos_embed.table", (place, torch.cat([token, image.flatten(2).mT], dim=1))


def _without_indices(model: nn.Module, found: _Found) -> _Found:
    """``found`` without the relative position indices, which we compute, if they are the same."""
    indices = {
        f"{path}.rel_pos_index": relative_index(module.grid)
        for path, module in model.named_modules()
        if isinstance(module, Attention)
    }
    return {
        name: entry
        for name, entry in found.items()
        if name not in indices or not _equal(entry[1], indices[name])
    }


def _equal(entry: Tensor, index: Tensor) -> bool:
    if entry.is_meta:  # no values, as when only names and shapes are looked at
        return entry.shape == index.shape
    return torch.equal(entry.cpu(), index)


def _check(preset: str, found: _Found, expected: Mapping[str, Tensor]) -> None:
    wrong = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [official for name, (official, _) in found.items() if name not in expected],
        "of another shape": [
            f"{found[name][0]} {tuple(found[name][1].shape)} for {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name][1].shape != tensor.shape
        ],
    }
    parts = [f"{len(names)} {what}: {_listed(names)}" for what, names in wrong.items() if names]
    if parts:
        raise Refusal(f"the checkpoint is not of preset {preset}. {'; '.join(parts)}.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
