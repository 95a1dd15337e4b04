"""For tests against a formula: weights far from where they start, and equality in float64."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def randomized(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """``module`` with every weight and statistic drawn anew, so that no part stays silent."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(scale * noise)
        for norm in module.modules():
            if isinstance(norm, _BatchNorm):
                norm.running_var.abs_().add_(0.5)
    return module


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal as two orders of the same float64 sum are."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
