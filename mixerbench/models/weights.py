"""What a file of weights must hold to be one."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from mixers.core.errors import Refusal


def check_numbers(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse what loads without a word and is no result of training.

    Args:
        expected: a model's own entries; those of ``tensors`` with the same names are judged.

    Raises:
        Refusal: one holds integers where the model has fractions, or the reverse, or
            something infinite or no number.
    """
    for name, own in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if tensor.is_floating_point() != own.is_floating_point():
            raise Refusal(
                f"the entry {name} holds {_word(tensor)} and the model has {_word(own)} there: "
                "this is no file of trained weights, or something has converted it."
            )
        if tensor.is_floating_point() and not tensor.is_meta:
            values = tensor.float() if tensor.element_size() == 1 else tensor  # 8 bits: no isfinite
            bad = ~values.isfinite()
            if bad.any():
                raise Refusal(
                    f"the entry {name} holds {int(bad.sum()):,} of {bad.numel():,} values that are "
                    "infinite or no numbers: the training broke off there, or the file is damaged."
                )


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of all entries: names, kinds, shapes and bytes."""
    sha = hashlib.sha256()
    for name, tensor in tensors.items():
        sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
