"""What the recipe's tests share: composed protocols, and generators that start at zero."""

import copy
import functools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mixerbench.config.compose import compose
from mixerbench.config.schema import Protocol


@functools.cache
def _composed(name: str) -> Protocol:
    return compose([f"protocol={name}"]).protocol


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture(scope="session")
def protocol() -> Callable[..., Protocol]:
    """The protocol of that name, with fields set by path; the test's own copy."""

    def get(name: str = "imagenet_deit", **fields: object) -> Protocol:
        result = copy.deepcopy(_composed(name))
        for path, value in fields.items():
            *groups, field = path.split("__")
            group = functools.reduce(getattr, groups, result)
            assert hasattr(group, field), f"no field {path}"
            setattr(group, field, value)
        return result

    return get
