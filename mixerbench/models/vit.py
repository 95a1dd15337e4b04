"""The isotropic backbone: one resolution and one width from the first block to the last.

Axis letters: B batch, N tokens (prefix first), C channels, H x W the token grid.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixerbench.config.sizes import ViTSize, token_grid
from mixerbench.models.blocks import LAYER_NORM_EPS, Block
from mixerbench.models.registry import register_backbone
from mixers import MIXERS, TokenGrid, TokenMixer
from mixers.plan import MixerChoice, check_prefix, spread

POOLS = ("avg", "token")


@register_backbone("vit")
class ViT(nn.Module):
    """Stem, position embedding, blocks, norm, pooling, linear classifier (ViT, DeiT).

    With mixer attention, pool ``token`` and a size of DeiT it is DeiT: timm's
    ``deit_*_patch16_224`` weights load under their own names.

    Args:
        stem: from images to a (B, C, H, W) map, by its ``patch_size``.
        grid: (H, W) tokens that it is built for; the position embedding is resampled for others.
        size: width, depth, heads.
        plan: mixer choices, spread over the depth.
        num_classes: 0 leaves the classifier out.
        drop_path: rate of stochastic depth at the last block.
        drop_path_schedule: ``linear`` from 0 at the first block (DeiT), or ``constant`` (DeiT III).
        dropout: after the position embedding and inside the MLPs.
        layer_scale: initial value of LayerScale, None for none.
        pool: ``avg`` over the grid, or ``token``: the classifier reads a class token.
        distillation_token: a second prefix token with a classifier of its own (DeiT, section 4).
        mlp_ratio: hidden width of the MLPs as a multiple of C.
    """

    paper = "An Image is Worth 16x16 Words, arXiv:2010.11929"

    def __init__(
        self,
        stem: nn.Module,
        grid: TokenGrid,
        size: ViTSize,
        plan: Sequence[MixerChoice],
        num_classes: int,
        drop_path: float,
        drop_path_schedule: str,
        dropout: float,
        layer_scale: float | None,
        *,
        pool: str = "avg",
        distillation_token: bool = False,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"backbone vit: pool is 'avg' or 'token', not {pool!r}.")
        if distillation_token and pool != "token":
            raise ValueError(
                "backbone vit: a distillation token needs a class token beside it: set pool=token."
            )
        check_prefix(plan, MIXERS.facts, pool)
        rates = {
            "linear": [drop_path * i / max(size.depth - 1, 1) for i in range(size.depth)],
            "constant": [drop_path] * size.depth,
        }
        if drop_path_schedule not in rates:
            raise ValueError(
                f"drop_path_schedule is 'linear' or 'constant', not {drop_path_schedule!r}."
            )
        dim = size.dim
        self.pool = pool
        self.patch_size = int(stem.patch_size)  # type: ignore[arg-type]
        self.num_prefix_tokens = (pool == "token") + distillation_token
        self.grid = grid._replace(prefix=self.num_prefix_tokens)
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.num_classes = num_classes
        self.grad_checkpointing = False
        self.distilled_training = False

        self.stem = stem
        self.cls_token = _token(dim) if pool == "token" else None
        self.dist_token = _token(dim) if distillation_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid.tokens, dim))
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                MIXERS.create(choice.name, dim, self.grid, size.num_heads, **choice.options),
                mlp_ratio=mlp_ratio,
                drop_path=rate,
                dropout=dropout,
                layer_scale=layer_scale,
            )
            for choice, rate in zip(
                spread(plan, size.depth), rates[drop_path_schedule], strict=True
            )
        )
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.head = _classifier(dim, num_classes)
        self.head_dist = _classifier(dim, num_classes) if distillation_token else None
        self.register_load_state_dict_pre_hook(_accept_timm_names)
        self.init_weights()

    def init_weights(self) -> None:
        """DeiT's initialisation: truncated normal 0.02 for linear layers and embeddings.

        Convolutions and norms keep PyTorch's, mixers' tables their own. A mixer that wants
        its linear layers otherwise overrides its ``init_weights()``, which has the last word.
        """
        for parameter in (self.cls_token, self.dist_token, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, TokenMixer):
                module.init_weights()

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> normalised tokens (B, N, C), prefix tokens first.

        Raises:
            ValueError: the patches do not tile the images, or a mixer does not take their grid.
        """
        height, width = images.shape[-2:]
        grid = TokenGrid(*token_grid((height, width), self.patch_size), self.num_prefix_tokens)
        features = self.stem(images)  # (B, C, H, W)
        x = features.flatten(2).transpose(1, 2)
        prefix = [token for token in (self.cls_token, self.dist_token) if token is not None]
        if prefix:
            x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)
        x = self.pos_drop(x + self._pos_embed(grid))
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x = block(x, grid)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens -> logits (B, classes), or pooled features (B, C) with ``pre_logits``.

        With a distillation token: in training with ``distilled_training`` the logits of
        both classifiers, else their mean.
        """
        if self.pool == "avg":
            pooled = x.mean(dim=1)
            return pooled if pre_logits else self.head(pooled)
        if self.head_dist is None:
            return x[:, 0] if pre_logits else self.head(x[:, 0])
        if pre_logits:
            return (x[:, 0] + x[:, 1]) / 2
        logits, distilled = self.head(x[:, 0]), self.head_dist(x[:, 1])
        if self.distilled_training and self.training:
            return logits, distilled
        return (logits + distilled) / 2

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Raises:
            ValueError: another pooling, which would change the tokens themselves.
        """
        if global_pool is not None and global_pool != self.pool:
            raise ValueError(
                f"this model pools by {self.pool!r}: build another one for pool={global_pool!r}."
            )
        self.num_classes = num_classes
        place = self.pos_embed
        self.head = _classifier(self.embed_dim, num_classes).to(place.device, place.dtype)
        if self.head_dist is not None:
            self.head_dist = _classifier(self.embed_dim, num_classes).to(place.device, place.dtype)

    def no_weight_decay(self) -> set[str]:
        """Parameters that DeiT does not decay, and those that the mixers declare."""
        names = {"pos_embed", "cls_token", "dist_token"}
        for path, module in self.named_modules():
            if isinstance(module, TokenMixer):
                names |= {f"{path}.{name}" for name in module.no_weight_decay}
        return names

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory: blocks are run again in the backward pass."""
        self.grad_checkpointing = enable

    def set_distilled_training(self, enable: bool = True) -> None:
        self.distilled_training = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters by depth, for timm's layer-wise learning rates."""
        return {
            "stem": r"^cls_token|dist_token|pos_embed|stem",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def _pos_embed(self, grid: TokenGrid) -> Tensor:
        if grid == self.grid:
            return self.pos_embed
        return resample_abs_pos_embed(
            self.pos_embed,
            new_size=[grid.height, grid.width],
            old_size=[self.grid.height, self.grid.width],
            num_prefix_tokens=grid.prefix,
        )


def _token(dim: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(1, 1, dim))


def _classifier(dim: int, num_classes: int) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


_TIMM_NAMES: Mapping[str, str] = {
    r"^patch_embed\.proj\.": "stem.proj.",
    r"^(blocks\.\d+)\.attn\.": r"\1.mixer.",
}


def _accept_timm_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the entries of a timm ViT in place, so that official weights load."""
    for key in list(state):
        name = key.removeprefix(prefix)
        for pattern, ours in _TIMM_NAMES.items():
            name = re.sub(pattern, ours, name)
        if prefix + name != key:
            state[prefix + name] = state.pop(key)
