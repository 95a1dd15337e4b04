"""Weights and images for comparing a model with its published code, without a checkpoint.

Every tensor is a function of its official name and shape alone: both sides get the same values,
and ``logits/*.json`` holds what the authors' code makes of them. Measured with
lukemelas/do-you-even-need-attention (commit 1f57ab0) and MonashAI/LIT (commit 742e961), torch
2.15.0, torchvision 0.29.2, timm 1.0.31, CPU; names, shapes and numbers are all that is kept of
them. NumPy's RandomState is frozen: the values are the same everywhere.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

SCALE = 0.05
IMAGES_SHAPE = (2, 3, 224, 224)
IMAGES_SEED = 12345


def fill(name: str, shape: list[int], is_norm_weight: bool) -> np.ndarray:
    """One entry in float64; the official name seeds the draw, in the official shape."""
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    value = np.asarray(generator.standard_normal(shape), dtype=np.float64) * SCALE
    if name.endswith("running_var"):
        return 1.0 + np.abs(value)
    return 1.0 + value if is_norm_weight else value


def fill_all(reference: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All entries of ``state_dicts/*.json`` but the integer buffers, by official name."""
    return {
        name: fill(name, shape, name in reference["norm_weights"])
        for name, shape in reference["state_dict"].items()
        if name not in reference["integer_buffers"]
    }


def images(seed: int = 0) -> np.ndarray:
    """(2, 3, 224, 224) in float32."""
    generator = np.random.RandomState(IMAGES_SEED + seed)
    return generator.standard_normal(IMAGES_SHAPE).astype(np.float32)
