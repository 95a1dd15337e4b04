"""The bottleneck residual network, whose spatial convolution is a slot for any mixer.

Axis letters: B batch, N tokens, C channels, H x W the grid.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any, ClassVar, cast

from timm.layers import LayerScale2d
from torch import Tensor, nn
from torch.nn import functional as F

from mixerbench.config.schema import Regularization
from mixerbench.config.sizes import Size, token_grid
from mixerbench.models.backbone import Backbone
from mixerbench.models.blocks import drop_path_layer, drop_path_rates, places_of
from mixerbench.models.part_kinds import register_backbone
from mixers import MIXERS, TokenGrid, TokenMixer
from mixers.core.contract import as_image, as_tokens, for_batch_norm
from mixers.core.plan import Plan, assign

EXPANSION = 4  # a stage puts out this many times its bottleneck's width


@register_backbone("resnet")
class ResNet(Backbone):
    """Four groups of bottlenecks, average pooling, linear classifier (ResNet, SASA).

    With mixer ``convolution`` it is torchvision's ResNet (stride in the spatial
    convolution), with ``local_attention`` SASA's, where 2 x 2 average pooling follows the
    attention of a bottleneck that halves the grid.

    Args:
        stem: from images to a (B, C, H, W) map, by its ``patch_size``.
        grid: (H, W) of the first group.
        size: bottleneck widths, depths and heads by group.
        plan: mixer choices, spread over the groups.
        num_classes: 0 leaves the classifier out.
        regularization: dropout is on the last tokens, before they are pooled.
    """

    paper = "Deep Residual Learning for Image Recognition, arXiv:1512.03385"
    stem_divisor = 4
    sizes: ClassVar = {  # widths of bottlenecks, depths (ResNet, table 1) and heads (SASA) by group
        "micro": ((16, 32, 64, 128), (1, 1, 1, 1), (8, 8, 8, 8)),  # of no paper
        "r26": ((64, 128, 256, 512), (1, 2, 4, 1), (8, 8, 8, 8)),
        "r38": ((64, 128, 256, 512), (2, 3, 5, 2), (8, 8, 8, 8)),
        "r50": ((64, 128, 256, 512), (3, 4, 6, 3), (8, 8, 8, 8)),
    }

    def __init__(
        self,
        stem: nn.Module,
        grid: TokenGrid,
        size: Size,
        plan: Plan,
        num_classes: int,
        regularization: Regularization,
    ) -> None:
        super().__init__(EXPANSION * size.dims[-1], num_classes)
        choices = assign(plan, size.depths)
        rates = iter(drop_path_rates(regularization, sum(size.depths)))
        self.patch_size = int(stem.patch_size)  # type: ignore[arg-type]
        self.stem = stem
        self.stages = nn.ModuleList()
        channels = size.dims[0]
        for i, places in enumerate(places_of(size.depths)):
            dim, heads = size.dims[i], size.num_heads[i]
            blocks = nn.ModuleList()
            for choice, place in zip(choices[i], places, strict=True):
                stride = 2 if i > 0 and place.block_in_stage == 0 else 1
                mixer = MIXERS.build(choice, dim, grid, heads, place, stride)
                blocks.append(
                    Bottleneck(channels, mixer, stride, next(rates), regularization.layer_scale)
                )
                channels = EXPANSION * dim
                grid = _strided(grid, stride)
            self.stages.append(blocks)
        self.drop = nn.Dropout(regularization.dropout)
        self.finish()

    def init_weights(self) -> None:
        """As the other backbones; convolutions as He et al. (fan-out, ReLU)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        super().init_weights()

    def forward_features(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        grid = TokenGrid(*token_grid((height, width), self.patch_size))
        x = self.stem(images)  # (B, C, H, W)
        for blocks in self.stages:
            for block in cast("Iterable[Bottleneck]", blocks):
                x = self.run([block], x, grid)
                grid = _strided(grid, block.stride)
        return self.drop(as_tokens(x))

    def blocks_in_order(self) -> Iterable[nn.Module]:
        return chain.from_iterable(cast("Iterable[nn.ModuleList]", self.stages))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters by depth, for timm's layer-wise learning rates."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": blocks}


class Bottleneck(nn.Module):
    """1 x 1 convolution, mixer, 1 x 1 convolution, each with BatchNorm; residual; ReLU.

    Args:
        in_dim: channels that come in; EXPANSION x the mixer's width go out.
        stride: 2 halves the grid after the mixer, rounding up.
    """

    def __init__(
        self,
        in_dim: int,
        mixer: TokenMixer,
        stride: int,
        drop_path: float,
        layer_scale: float | None,
    ) -> None:
        super().__init__()
        dim, out_dim = mixer.dim, EXPANSION * mixer.dim
        self.stride = stride
        self.conv1 = nn.Conv2d(in_dim, dim, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.mixer = mixer if mixer.adds_sub_layer else None
        if self.mixer is not None:
            self.bn2 = nn.BatchNorm2d(dim)
        self.conv3 = nn.Conv2d(dim, out_dim, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_dim)
        self.downsample = None
        if stride != 1 or in_dim != out_dim:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_dim, out_dim, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_dim),
            )
        self.ls = nn.Identity() if layer_scale is None else LayerScale2d(out_dim, layer_scale)
        self.drop_path = drop_path_layer(drop_path)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """(B, in_dim, H, W) on ``grid`` -> (B, out_dim, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        # Written in place where the backward pass does not need what was there.
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        strided = 1
        if self.mixer is not None:
            strided = self.mixer.stride
            mixed = self.mixer(as_tokens(x), grid)
            x = for_batch_norm(as_image(mixed, _strided(grid, strided)))
        if self.stride != strided:  # rounds up, as a strided convolution does
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        if self.mixer is not None:
            x = F.relu(self.bn2(x), inplace=True)
        x = self.bn3(self.conv3(x))
        return F.relu(self.drop_path(self.ls(x)).add_(shortcut), inplace=True)


def _strided(grid: TokenGrid, stride: int) -> TokenGrid:
    return TokenGrid(-(-grid.height // stride), -(-grid.width // stride))
