"""The residual block that every mixer and channel mixer sits in."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from mixerbench.config.schema import Regularization
from mixerbench.models.part_kinds import CHANNEL_MIXERS
from mixerbench.models.parts import ChannelMixer
from mixers import MIXERS, Place, TokenGrid, TokenMixer
from mixers.core.errors import Refusal
from mixers.core.plan import MixerChoice


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a stage have in common."""

    channel_mixer: str
    mlp_ratio: float
    norm_eps: float
    channels_first: bool
    regularization: Regularization


class Block(nn.Module):
    """Pre-norm token mixer, then pre-norm channel mixer, each with a residual.

    A mixer with ``adds_sub_layer`` false is left out, its norm and residual too.

    Args:
        drop_path: probability of dropping a residual branch of a sample.
        options: ``channels_first`` runs the channel mixer before the token mixer.
    """

    def __init__(
        self,
        mixer: TokenMixer,
        channel_mixer: ChannelMixer,
        drop_path: float,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        dim, layer_scale = mixer.dim, options.regularization.layer_scale
        self.channels_first = options.channels_first
        self.mixer = mixer if mixer.adds_sub_layer else None
        if self.mixer is not None:
            self.norm1 = _pre_norm(dim, options.norm_eps, mixer.pre_norm)
            self.ls1 = _layer_scale(dim, layer_scale)
            self.drop_path1 = drop_path_layer(drop_path)
        self.channel_mixer = channel_mixer if channel_mixer.adds_sub_layer else None
        if self.channel_mixer is not None:
            self.norm2 = _pre_norm(dim, options.norm_eps, channel_mixer.pre_norm)
            self.ls2 = _layer_scale(dim, layer_scale)
            self.drop_path2 = drop_path_layer(drop_path)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        if self.channels_first:
            return self._mix_tokens(self._mix_channels(x, grid), grid)
        return self._mix_channels(self._mix_tokens(x, grid), grid)

    def _mix_tokens(self, x: Tensor, grid: TokenGrid) -> Tensor:
        if self.mixer is None:
            return x
        return x + self.drop_path1(self.ls1(self.mixer(self.norm1(x), grid)))

    def _mix_channels(self, x: Tensor, grid: TokenGrid) -> Tensor:
        if self.channel_mixer is None:
            return x
        return x + self.drop_path2(self.ls2(self.channel_mixer(self.norm2(x), grid)))


def build_blocks(
    choices: Iterable[MixerChoice],
    dim: int,
    grid: TokenGrid,
    num_heads: int,
    rates: Iterable[float],
    places: Iterable[Place],
    options: BlockOptions,
) -> nn.ModuleList:
    """One block per choice, rate of stochastic depth and place.

    Raises:
        Refusal: an unknown mixer or option, or parts that do not fit each other.
    """
    dropout = options.regularization.dropout
    return nn.ModuleList(
        Block(
            MIXERS.build(choice, dim, grid, num_heads, place),
            CHANNEL_MIXERS.create(options.channel_mixer, dim, grid, options.mlp_ratio, dropout),
            rate,
            options,
        )
        for choice, rate, place in zip(choices, rates, places, strict=True)
    )


def places_of(depths: Sequence[int]) -> list[list[Place]]:
    """The places of all blocks, stage by stage."""
    before = [sum(depths[:stage]) for stage in range(len(depths))]
    return [
        [Place(before[stage] + i, sum(depths), i, stage) for i in range(depth)]
        for stage, depth in enumerate(depths)
    ]


def drop_path_rates(regularization: Regularization, depth: int) -> list[float]:
    """The rate of stochastic depth of each of ``depth`` blocks.

    Raises:
        Refusal: an unknown schedule, or a rate that is no probability.
    """
    rate = regularization.drop_path
    if not 0.0 <= rate <= 1.0:
        raise Refusal(f"drop_path={rate}: give a number from 0 to 1.")
    rates = {
        "linear": [rate * i / max(depth - 1, 1) for i in range(depth)],  # from 0, DeiT
        "constant": [rate] * depth,  # DeiT III
    }
    if regularization.drop_path_schedule not in rates:
        raise Refusal(
            "drop_path_schedule is 'linear' or 'constant', not "
            f"{regularization.drop_path_schedule!r}."
        )
    return rates[regularization.drop_path_schedule]


def drop_path_layer(probability: float) -> nn.Module:
    return DropPath(probability) if probability > 0.0 else nn.Identity()


def _pre_norm(dim: int, eps: float, wanted: bool) -> nn.Module:
    return nn.LayerNorm(dim, eps=eps) if wanted else nn.Identity()


def _layer_scale(dim: int, initial: float | None) -> nn.Module:
    return nn.Identity() if initial is None else LayerScale(dim, init_values=initial)
