"""What the models' tests share: tolerances, micro models, and timm's ViT as the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mixerbench.models import create_model

TOLERANCES = {  # absolute, for logits and features of order 1
    torch.float64: 1e-5,  # as near as float32, which it is compared with
    torch.float32: 1e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
IMAGE = (32, 48)  # pixels: 2 x 3 tokens
CLASSES = 7


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    def check(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
        assert actual.shape == expected.shape
        worst = (actual.double() - expected.double()).abs().max().item()
        assert worst <= TOLERANCES[dtype], f"{worst:.3g} > {TOLERANCES[dtype]:.3g} ({dtype})"

    return check


@pytest.fixture(scope="session")
def micro() -> Callable[..., nn.Module]:
    """``create_model`` with a micro size and a non-square image."""

    def build(mixer: Any = "attention", **options: Any) -> nn.Module:
        return create_model(
            mixer, "micro", **{"image_size": IMAGE, "num_classes": CLASSES} | options
        )

    return build


@pytest.fixture(scope="session")
def timm_vit() -> Callable[..., nn.Module]:
    """timm's ViT or distilled DeiT in the micro size."""

    def build(distilled: bool = False, **options: Any) -> nn.Module:
        cls = VisionTransformerDistilled if distilled else VisionTransformer
        shape = {"img_size": IMAGE, "patch_size": 16, "num_classes": CLASSES}
        return cls(**shape, **{"embed_dim": 64, "depth": 4, "num_heads": 4} | options)

    return build


@pytest.fixture(scope="session")
def perturb() -> Callable[[nn.Module], nn.Module]:
    """No parameter stays at a neutral value, so that none can be swapped or lost unseen."""

    def change(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        return model

    return change


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    def draw(samples: int = 2, height_width: tuple[int, int] = IMAGE) -> Tensor:
        return torch.randn(samples, 3, *height_width, generator=torch.Generator().manual_seed(2))

    return draw
