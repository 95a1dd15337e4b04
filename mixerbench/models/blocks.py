"""The residual block that every mixer and channel mixer sits in."""

from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn

from mixers import TokenGrid, TokenMixer

LAYER_NORM_EPS = 1e-6  # ViT's and DeiT's; PyTorch's default is 1e-5


class Block(nn.Module):
    """Pre-norm mixer, then pre-norm MLP over channels, each with a residual.

    Args:
        mixer: a mixer with ``adds_sub_layer`` false is left out, norm and residual too.
        mlp_ratio: hidden width of the MLP as a multiple of C.
        drop_path: probability of dropping a residual branch of a sample.
        layer_scale: initial value of the learned scale of each branch; None for no scale.
    """

    def __init__(
        self,
        mixer: TokenMixer,
        *,
        mlp_ratio: float,
        drop_path: float,
        dropout: float,
        layer_scale: float | None,
    ) -> None:
        super().__init__()
        dim = mixer.dim
        self.mixer: TokenMixer | None = mixer if mixer.adds_sub_layer else None
        if self.mixer is not None:
            self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS) if mixer.pre_norm else nn.Identity()
            self.ls1 = _layer_scale(dim, layer_scale)
            self.drop_path1 = _drop_path(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), drop=dropout)
        self.ls2 = _layer_scale(dim, layer_scale)
        self.drop_path2 = _drop_path(drop_path)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        if self.mixer is not None:
            x = x + self.drop_path1(self.ls1(self.mixer(self.norm1(x), grid)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def _layer_scale(dim: int, initial: float | None) -> nn.Module:
    return nn.Identity() if initial is None else LayerScale(dim, init_values=initial)


def _drop_path(probability: float) -> nn.Module:
    return DropPath(probability) if probability > 0.0 else nn.Identity()
