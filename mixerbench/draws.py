"""Where every random number of a run comes from."""

import hashlib
import random

import numpy as np
import torch


def seed_of(purpose: str, *numbers: int) -> int:
    """A 63-bit seed that depends on all of its arguments and on nothing else."""
    text = ":".join((purpose, *map(str, numbers)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_generators(purpose: str, *numbers: int) -> None:
    """Set Python's, NumPy's and torch's global generators, on every device.

    timm's augmentation, mixup and stochastic depth draw from these. Setting them before
    each sample and each micro-batch makes a draw a function of (seed, epoch, sample) or
    (seed, step, virtual rank), never of the process or worker that does the work.
    """
    seed = seed_of(purpose, *numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.cuda.is_initialized():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
