"""What the tests of measurements share: the proof that a model is given back as it was."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import nn


@pytest.fixture
def given_back() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """A context around the measurement of a model with a ``head``; one gradient is there before."""

    @contextmanager
    def around(model: nn.Module) -> Iterator[None]:
        kept = torch.ones_like(model.head.bias)
        model.head.bias.grad = kept
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        state = torch.get_rng_state()
        yield
        assert model.head.bias.grad is kept
        assert all(p.grad is None for p in model.parameters() if p is not model.head.bias)
        after = model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)

    return around
