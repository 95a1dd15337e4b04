"""Every part that timm has as the same operator, ours against timm's, and whole models.

Peer: timm's module with the same weights, forward and backward in training mode. Outputs and
gradients are shown to be equal first. Stochastic depth and layer scale are timm's own classes,
and so is the LayerNorm over the channels of a map; they are timed where we use them.

    python benchmarks/operators.py [--rounds 9] [--only block]
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import timm
import torch
from harness import Benchmark, Pass, check_same, compare, interleave, peak_mib
from timm.layers import (
    Attention,
    Mlp,
    PatchEmbed,
    RelPosBias,
    create_conv2d,
    resample_abs_pos_embed,
)
from timm.models.mlp_mixer import MixerBlock
from timm.models.resnet import Bottleneck as TimmBottleneck
from timm.models.resnet import downsample_conv
from timm.models.swin_transformer import PatchMerging
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn

from mixerbench.config.schema import Regularization
from mixerbench.models import create_model
from mixerbench.models.blocks import BlockOptions, build_blocks, places_of
from mixerbench.models.names import RESNET, TIMM_VIT, Names, rename
from mixerbench.models.part_kinds import CHANNEL_MIXERS, MERGINGS, STEMS
from mixerbench.models.positions import PositionEmbedding
from mixerbench.models.resnet import Bottleneck
from mixers import MIXERS, TokenGrid, create_mixer
from mixers.core.plan import MixerChoice

BAR = 0.95  # a machine that others use cannot tell 1 from this


class Sizes(NamedTuple):
    dim: int
    heads: int
    side: int  # of the token grid
    batch: int
    image: int
    depth: int

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid(self.side, self.side)


FULL, TINY = Sizes(192, 3, 14, 8, 224, 12), Sizes(32, 2, 4, 2, 64, 1)


@dataclass
class Pair:
    """A part of ours and timm's of the same operator.

    Args:
        x: the input, without the batch.
        names: theirs -> ours, patterns of state-dict names.
        run, run_theirs: the forward passes, where they are not just calls.
        inner: has layers in front of it, and so hands a gradient to its input.
    """

    ours: nn.Module
    theirs: nn.Module
    x: tuple[int, ...]
    names: Names = field(default_factory=dict)
    run: Callable[[Tensor], Tensor] | None = None
    run_theirs: Callable[[Tensor], Tensor] | None = None
    inner: bool = True


def attention(s: Sizes) -> Pair:
    grid = s.grid._replace(prefix=1)
    ours = create_mixer("attention", s.dim, grid, s.heads)
    theirs = Attention(s.dim, s.heads, qkv_bias=True)
    return Pair(ours, theirs, (grid.tokens, s.dim), run=lambda x: ours(x, grid))


def relative_attention(s: Sizes) -> Pair:
    """Without prefix tokens: to these timm gives entries of their own, as BEiT has them."""
    ours = create_mixer("attention", s.dim, s.grid, s.heads, rel_pos_bias=True)
    bias = partial(RelPosBias, window_size=s.grid[:2])
    theirs = RelPosAttention(s.dim, s.heads, qkv_bias=True, rel_pos_cls=bias)
    names = {r"^rel_pos\.relative_position_bias_table$": "rel_pos_table"}
    return Pair(ours, theirs, (s.grid.tokens, s.dim), names, lambda x: ours(x, s.grid))


def convolution(s: Sizes) -> Pair:
    """On tokens that are a view of a map, as a residual network has them."""
    ours = create_mixer("convolution", s.dim, s.grid, 1)

    def run(image: Tensor) -> Tensor:
        tokens = ours(image.flatten(2).transpose(1, 2), s.grid)
        return tokens.transpose(1, 2).unflatten(2, s.grid[:2])

    theirs = create_conv2d(s.dim, s.dim, 3)
    return Pair(ours, theirs, (s.dim, *s.grid[:2]), {"^": "conv."}, run)


def depthwise_convolution(s: Sizes) -> Pair:
    """On the tokens of an isotropic model; timm's gets the same memory as a map."""
    ours = create_mixer("convolution", s.dim, s.grid, 1, kernel_size=7, depthwise=True)
    theirs = create_conv2d(s.dim, s.dim, 7, depthwise=True)

    def run_theirs(x: Tensor) -> Tensor:
        return theirs(x.transpose(1, 2).unflatten(2, s.grid[:2])).flatten(2).transpose(1, 2)

    return Pair(
        ours, theirs, (s.grid.tokens, s.dim), {"^": "conv."}, lambda x: ours(x, s.grid), run_theirs
    )


def mlp(s: Sizes) -> Pair:
    grid = s.grid._replace(prefix=1)
    ours = CHANNEL_MIXERS.create("mlp", s.dim, grid, 4.0, 0.0)
    theirs = Mlp(s.dim, 4 * s.dim)
    return Pair(ours, theirs, (grid.tokens, s.dim), run=lambda x: ours(x, grid))


def block(s: Sizes, drop_path: float = 0.0, layer_scale: float | None = None) -> Pair:
    grid = s.grid._replace(prefix=1)
    options = BlockOptions("mlp", 4.0, 1e-6, False, Regularization(0, "linear", 0, layer_scale))
    choices = [MixerChoice("attention")]
    (ours,) = build_blocks(choices, s.dim, grid, s.heads, [drop_path], *places_of([1]), options)
    theirs = TimmBlock(
        s.dim,
        s.heads,
        qkv_bias=True,
        init_values=layer_scale,
        drop_path=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    names = {r"^attn\.": "mixer.", r"^mlp\.": "channel_mixer."}
    return Pair(ours, theirs, (grid.tokens, s.dim), names, lambda x: ours(x, grid))


def mixer_block(s: Sizes) -> Pair:
    """MLP-Mixer's block: patch_ff with half the width as its hidden one."""
    options = BlockOptions("mlp", 4.0, 1e-6, False, Regularization(0, "linear", 0, None))
    choices = [MixerChoice("patch_ff", {"hidden_dim": s.dim // 2})]
    (ours,) = build_blocks(choices, s.dim, s.grid, s.heads, [0.0], *places_of([1]), options)
    theirs = MixerBlock(s.dim, s.grid.tokens)
    names = {r"^mlp_tokens\.": "mixer.", r"^mlp_channels\.": "channel_mixer."}
    return Pair(ours, theirs, (s.grid.tokens, s.dim), names, lambda x: ours(x, s.grid))


def patch_stem(s: Sizes) -> Pair:
    ours = STEMS.create("patch", 3, s.dim, patch_size=16)
    return _patches(ours, PatchEmbed(s.image, 16, 3, s.dim), s)


def patch_stem_with_norm(s: Sizes) -> Pair:
    """A pyramid's: patches of 4 pixels, LayerNorm."""
    ours = STEMS.create("patch", 3, s.dim // 2, patch_size=4, norm=True)
    return _patches(ours, PatchEmbed(s.image, 4, 3, s.dim // 2, norm_layer=nn.LayerNorm), s)


def _patches(ours: nn.Module, theirs: nn.Module, s: Sizes) -> Pair:
    def tokens(x: Tensor) -> Tensor:
        return ours(x).flatten(2).transpose(1, 2)

    return Pair(ours, theirs, (3, s.image, s.image), run=tokens, inner=False)


def convolution_stem(s: Sizes) -> Pair:
    """ResNet's."""
    ours = STEMS.create("conv", 3, 64, patch_size=4, kernel_size=7, max_pool=True, project=False)
    resnet = timm.create_model("resnet18")
    theirs = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act1, resnet.maxpool)
    return Pair(ours, theirs, (3, s.image, s.image), {"^": "layers."}, inner=False)


def position_table(s: Sizes) -> Pair:
    """Resized for a grid of more tokens, and added."""
    grid, larger = s.grid._replace(prefix=1), TokenGrid(s.side + 4, s.side + 4, 1)
    ours, theirs = PositionEmbedding(s.dim, grid), nn.Module()
    theirs.table = nn.Parameter(torch.zeros(1, grid.tokens, s.dim))
    nn.init.trunc_normal_(theirs.table)

    def run_theirs(x: Tensor) -> Tensor:
        return x + resample_abs_pos_embed(theirs.table, list(larger[:2]))

    return Pair(
        ours,
        theirs,
        (larger.tokens, s.dim),
        run=lambda x: x + ours(larger),
        run_theirs=run_theirs,
    )


def merging(s: Sizes) -> Pair:
    """Swin's, from tokens to tokens."""
    ours, theirs = MERGINGS.create("patch", s.dim, 2 * s.dim), PatchMerging(s.dim)

    def run(x: Tensor) -> Tensor:
        return ours(x.transpose(1, 2).unflatten(2, s.grid[:2])).flatten(2).transpose(1, 2)

    return Pair(
        ours,
        theirs,
        (s.grid.tokens, s.dim),
        run=run,
        run_theirs=lambda x: theirs(x.unflatten(1, s.grid[:2])).flatten(1, 2),
    )


def bottleneck(s: Sizes, stride: int = 1) -> Pair:
    width, side = (64, 4 * s.side) if stride == 1 else (128, 4 * s.side)
    grid = TokenGrid(side, side)
    mixer = MIXERS.build(MixerChoice("convolution"), width, grid, stride=stride)
    ours = Bottleneck(256, mixer, stride, 0.0, None)
    shortcut = downsample_conv(256, 4 * width, 1, stride) if stride == 2 else None
    theirs = TimmBottleneck(256, width, stride, shortcut)
    names = {r"^conv2\.": "mixer.conv."}
    return Pair(ours, theirs, (256, side, side), names, lambda x: ours(x, grid))


def deit_tiny(s: Sizes) -> Pair:
    size = {"dim": 192, "depth": s.depth, "num_heads": 3}
    ours = create_model("attention", size, image_size=s.image, pool="token")
    theirs = timm.create_model("deit_tiny_patch16_224", img_size=s.image, depth=s.depth)
    return Pair(ours, theirs, (3, s.image, s.image), TIMM_VIT, inner=False)


def resnet50(s: Sizes) -> Pair:
    ours = create_model(preset="resnet50", image_size=s.image)
    theirs = timm.create_model("resnet50", zero_init_last=False)
    return Pair(ours, theirs, (3, s.image, s.image), RESNET, inner=False)


PARTS: Mapping[str, tuple[Callable[[Sizes], Pair], float]] = {
    # share of the batch: large maps cost more
    "attention": (attention, 1),
    "attention, relative bias": (relative_attention, 1),
    "convolution 3 x 3, of a map": (convolution, 1),
    "convolution 7 x 7, depthwise": (depthwise_convolution, 1),
    "channel MLP": (mlp, 1),
    "block": (block, 1),
    "block, layer scale, drop path": (partial(block, drop_path=0.1, layer_scale=0.1), 1),
    "block of MLP-Mixer": (mixer_block, 1),
    "stem patch": (patch_stem, 1),
    "stem patch, norm": (patch_stem_with_norm, 1),
    "stem conv, ResNet's": (convolution_stem, 1),
    "position table, resized": (position_table, 1),
    "merging patch": (merging, 1),
    "bottleneck": (bottleneck, 0.25),
    "bottleneck, stride 2": (partial(bottleneck, stride=2), 0.25),
    "deit_tiny": (deit_tiny, 1),
    "resnet50": (resnet50, 0.25),
}


def main() -> None:
    benchmark = Benchmark(__file__, __doc__, rounds=9)
    benchmark.parser.add_argument("--only", default="", help="parts whose name holds this")
    options = benchmark.options()
    sizes = TINY if options.tiny else FULL
    rows = []
    for name, (build, share) in PARTS.items():
        if options.only not in name:
            continue
        torch.manual_seed(0)
        pair = build(sizes)
        # ResNet-50 trained on one pixel a channel has gradients of nothing but rounding.
        batch = max(round(share * sizes.batch), 2)
        for module in (pair.ours, pair.theirs):
            module.to(options.device).train()
        state = {rename(key, pair.names): one for key, one in pair.theirs.state_dict().items()}
        pair.ours.load_state_dict(state)
        x = torch.randn(batch, *pair.x, device=options.device, requires_grad=pair.inner)
        theirs = {rename(key, pair.names): one for key, one in pair.theirs.named_parameters()}
        passes = {
            "ours": Pass(
                pair.run or pair.ours, x, dict(pair.ours.named_parameters()), options.precision
            ),
            "timm": Pass(pair.run_theirs or pair.theirs, x, theirs, options.precision),
        }
        tolerance = 1e-4 if options.precision == "fp32" else 5e-2
        differences = check_same(name, passes, "timm", tolerance)
        memory = {side: peak_mib(one, options.device) for side, one in passes.items()}
        turns = interleave(passes, options.rounds, options.device)
        bar = {} if options.tiny else {"ours": BAR}
        figures = {"difference": differences, "memory_mib": memory, "bar": bar}
        rows += compare(f"{name}, batch {batch}", turns, "timm", **figures)
    benchmark.write(options, rows)


if __name__ == "__main__":
    main()
