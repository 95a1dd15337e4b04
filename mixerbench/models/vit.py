"""The isotropic backbone: one resolution and one width from the first block to the last."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mixerbench.config.schema import Regularization
from mixerbench.config.sizes import Size, token_grid
from mixerbench.models.backbone import Backbone
from mixerbench.models.blocks import BlockOptions, build_blocks, drop_path_rates, places_of
from mixerbench.models.names import accept_timm_names
from mixerbench.models.part_kinds import register_backbone
from mixerbench.models.positions import PositionEmbedding
from mixers import MIXERS, TokenGrid
from mixers.core.contract import as_tokens
from mixers.core.plan import Plan, assign, check_prefix


@register_backbone("vit")
class ViT(Backbone):
    """Stem, position embedding, blocks, norm, pooling, linear classifier (ViT, DeiT).

    With mixer attention, pool ``token`` and a size of DeiT it is DeiT: timm's
    ``deit_*_patch16_224`` weights load under their own names.

    Args:
        stem: from images to a (B, C, H, W) map, by its ``patch_size``.
        grid: (H, W) tokens that it is built for; the position embedding is resampled for others.
        size: width, depth, heads.
        plan: mixer choices, spread over the depth.
        num_classes: 0 leaves the classifier out.
        regularization: dropout after the position embedding and inside the channel mixers.
        pool: ``avg`` over the grid, or ``token``: the classifier reads a class token.
        distillation_token: a second prefix token with a classifier of its own (DeiT, section 4).
        channel_mixer: a name of ``CHANNEL_MIXERS``.
        mlp_ratio: hidden width of the MLPs as a multiple of C.
        channels_first: each block mixes channels before tokens (arXiv:2105.02723).
        norm_eps: of every LayerNorm; ViT's and DeiT's by default, PyTorch's is 1e-5.
        pos_table: rows and columns of the position embedding; None: those of ``grid``.
        pos_resize: how it is resized for another grid, ``bicubic`` or ``bilinear``.
    """

    paper = "An Image is Worth 16x16 Words, arXiv:2010.11929"
    stem_divisor = 1
    sizes: ClassVar = {  # width, depth, heads
        "micro": (64, 4, 4),  # seconds on a CPU; of no paper
        "tiny": (192, 12, 3),  # DeiT, arXiv:2012.12877, table 1
        "small": (384, 12, 6),  # DeiT
        "base": (768, 12, 12),  # ViT, arXiv:2010.11929, table 1, and DeiT
        "large": (1024, 24, 16),  # ViT
        "huge": (1280, 32, 16),  # ViT; its patches are 14 pixels a side
    }
    slots = ("channel_mixer",)

    def __init__(
        self,
        stem: nn.Module,
        grid: TokenGrid,
        size: Size,
        plan: Plan,
        num_classes: int,
        regularization: Regularization,
        *,
        pool: Literal["avg", "token"] = "avg",
        distillation_token: bool = False,
        channel_mixer: str = "mlp",
        mlp_ratio: float = 4.0,
        channels_first: bool = False,
        norm_eps: float = 1e-6,
        pos_table: tuple[int, int] | None = None,
        pos_resize: Literal["bicubic", "bilinear"] = "bicubic",
    ) -> None:
        (dim,), (depth,), (num_heads,) = size.dims, size.depths, size.num_heads
        super().__init__(dim, num_classes, pool=pool, distillation_token=distillation_token)
        check_prefix(assign(plan, size.depths)[0], MIXERS.facts, pool)
        self.grid = grid._replace(prefix=self.num_prefix_tokens)
        self.patch_size = int(stem.patch_size)  # type: ignore[arg-type]
        self.stem = stem
        self.pos_embed = PositionEmbedding(dim, self.grid, table=pos_table, resize=pos_resize)
        self.pos_drop = nn.Dropout(regularization.dropout)
        self.blocks = build_blocks(
            assign(plan, size.depths)[0],
            dim,
            self.grid,
            num_heads,
            drop_path_rates(regularization, depth),
            places_of(size.depths)[0],
            BlockOptions(channel_mixer, mlp_ratio, norm_eps, channels_first, regularization),
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.register_load_state_dict_pre_hook(accept_timm_names)
        self.finish()

    def forward_features(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        grid = TokenGrid(*token_grid((height, width), self.patch_size), self.num_prefix_tokens)
        x = self.with_prefix(as_tokens(self.stem(images)))
        x = self.pos_drop(x + self.pos_embed(grid))
        return self.norm(self.run(self.blocks, x, grid))

    def blocks_in_order(self) -> Iterable[nn.Module]:
        return self.blocks

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters by depth, for timm's layer-wise learning rates."""
        return {
            "stem": r"^cls_token|dist_token|pos_embed|stem",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }
