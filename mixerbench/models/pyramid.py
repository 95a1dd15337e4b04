"""The pyramid: stages of blocks, each on half the grid of the one before and wider.

Axis letters: B batch, N tokens (prefix first), C channels, H x W the token grid.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from mixerbench.config.schema import Regularization
from mixerbench.config.sizes import Size, halved_grid, token_grid
from mixerbench.models.backbone import Backbone
from mixerbench.models.blocks import BlockOptions, build_blocks, drop_path_rates, places_of
from mixerbench.models.part_kinds import MERGINGS, register_backbone
from mixerbench.models.positions import PositionEmbedding
from mixers import MIXERS, TokenGrid
from mixers.core.contract import as_image, as_tokens
from mixers.core.errors import Refusal
from mixers.core.plan import Plan, assign, check_prefix


@register_backbone("pyramid")
class Pyramid(Backbone):
    """Four stages with 2 x 2 merging between them (PVT, Swin, LIT).

    Args:
        stem: from images to a (B, C, H, W) map, by its ``patch_size``.
        grid: (H, W) tokens of the first stage.
        size: widths, depths and heads by stage.
        plan: mixer choices, spread over the stages.
        num_classes: 0 leaves the classifier out.
        regularization: dropout where position embeddings are added and in channel mixers.
        pool: ``avg`` over the grid, or ``token``: a class token, which joins at the last stage.
        merging: a name of ``MERGINGS``.
        channel_mixer: a name of ``CHANNEL_MIXERS``.
        mlp_ratios: hidden width of the MLPs as a multiple of C, by stage.
        pos_embed: a learned position embedding at the start of each stage.
        norm_eps: of the LayerNorms of the blocks and the last one.
    """

    paper = "Pyramid Vision Transformer, arXiv:2102.12122"
    stem_divisor = 4
    sizes: ClassVar = {  # widths, depths and heads by stage; LIT, arXiv:2105.14217: Ti, S, M and B
        "micro": ((16, 32, 64, 128), (1, 1, 2, 1), (1, 2, 4, 8)),  # of no paper
        "tiny": ((64, 128, 320, 512), (3, 4, 6, 3), (1, 2, 5, 8)),
        "small": ((96, 192, 384, 768), (2, 2, 6, 2), (3, 6, 12, 24)),
        "medium": ((96, 192, 384, 768), (2, 2, 18, 2), (3, 6, 12, 24)),
        "base": ((128, 256, 512, 1024), (2, 2, 18, 2), (4, 8, 16, 32)),
    }
    slots = ("channel_mixer", "merging")
    even_grids = True

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
        merging: str = "deformable",
        channel_mixer: str = "mlp",
        mlp_ratios: tuple[float, ...] = (4.0, 4.0, 4.0, 4.0),
        pos_embed: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(size.dims[-1], num_classes, pool=pool)
        stages = len(size.dims)
        if len(mlp_ratios) != stages:
            raise Refusal(
                f"backbone pyramid: {stages} stages need as many mlp_ratios, not {len(mlp_ratios)}."
            )
        choices = assign(plan, size.depths)
        check_prefix(choices[-1], MIXERS.facts, pool)
        rates = iter(drop_path_rates(regularization, sum(size.depths)))
        self.patch_size = int(stem.patch_size)  # type: ignore[arg-type]
        self.stem = stem
        self.stages = nn.ModuleList()
        for i in range(stages):
            if i > 0:
                grid = _halved(grid, i + 1)
            if i == stages - 1:
                grid = grid._replace(prefix=self.num_prefix_tokens)
            self.stages.append(
                Stage(
                    MERGINGS.create(merging, size.dims[i - 1], size.dims[i]) if i > 0 else None,
                    PositionEmbedding(size.dims[i], grid) if pos_embed else None,
                    build_blocks(
                        choices[i],
                        size.dims[i],
                        grid,
                        size.num_heads[i],
                        [next(rates) for _ in range(size.depths[i])],
                        places_of(size.depths)[i],
                        BlockOptions(channel_mixer, mlp_ratios[i], norm_eps, False, regularization),
                    ),
                    # where positions are added, and once where none are
                    regularization.dropout if pos_embed or i == 0 else 0.0,
                )
            )
        self.norm = nn.LayerNorm(size.dims[-1], eps=norm_eps)
        self.finish()

    def forward_features(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        grid = TokenGrid(*token_grid((height, width), self.patch_size))
        x = self.stem(images)  # (B, C, H, W)
        for number, stage in enumerate(cast("Iterable[Stage]", self.stages), start=1):
            if stage.merging is not None:
                grid = _halved(grid, number)
                x = stage.merging(x)
            x = as_tokens(x)
            if number == len(self.stages):
                grid = grid._replace(prefix=self.num_prefix_tokens)
                x = self.with_prefix(x)
            if stage.pos_embed is not None:
                x = x + stage.pos_embed(grid)
            x = self.run(stage.blocks, stage.drop(x), grid)
            if number < len(self.stages):
                x = as_image(x, grid)
        return self.norm(x)

    def blocks_in_order(self) -> Iterable[nn.Module]:
        return chain.from_iterable(stage.blocks for stage in cast("Iterable[Stage]", self.stages))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters by depth, for timm's layer-wise learning rates."""
        last = (r"^norm|cls_token", (99999,))
        if coarse:
            return {"stem": r"^stem", "blocks": [(r"^stages\.(\d+)", None), last]}
        blocks = (r"^stages\.(\d+)\.blocks\.(\d+)", None)
        beginning = (r"^stages\.(\d+)", (0,))  # merging and positions, before its blocks
        return {"stem": r"^stem", "blocks": [blocks, beginning, last]}


class Stage(nn.Module):
    """The parts of a stage, run by the pyramid."""

    def __init__(
        self,
        merging: nn.Module | None,
        pos_embed: PositionEmbedding | None,
        blocks: nn.ModuleList,
        dropout: float,
    ) -> None:
        super().__init__()
        self.merging = merging
        self.pos_embed = pos_embed
        self.drop = nn.Dropout(dropout)
        self.blocks = blocks


def _halved(grid: TokenGrid, stage: int) -> TokenGrid:
    return TokenGrid(*halved_grid(grid.height, grid.width, stage))
