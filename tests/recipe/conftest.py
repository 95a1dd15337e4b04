"""What the recipe's tests share: composed protocols, and generators that start at zero."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seed(seed_all) -> None:
    seed_all(0)


@pytest.fixture(scope="session")
def seed_all() -> Callable[[int], None]:
    def seed(value: int) -> None:
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)

    return seed
