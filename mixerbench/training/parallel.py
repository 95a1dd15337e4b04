"""One model on several processes: PyTorch's DDP or FSDP2 between the loop and the model."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import cast

import torch
from timm.layers import DropPath
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mixerbench.config.schema import Run
from mixerbench.models.backbone import Backbone, without_statistics
from mixerbench.objectives.objective import Outputs
from mixerbench.training.group import Group

Forward = Callable[[Tensor, bool], Outputs]
"""Outputs for images (B, 3, H, W); True with the last micro-batch that this process has in a step.

After the backward pass of the last one every process has the mean gradient of all.
"""


def distribute(
    model: Backbone, ema: ModelEmaV3, run: Run, group: Group, example: Tensor
) -> Forward:
    """Spread ``model``, and where it is cut into parts ``ema`` too, over the processes.

    To be called before there is an optimizer: FSDP replaces the parameters.

    Args:
        example: images of one micro-batch, of any content.
    """
    if run.compile:
        _compile_blocks(model)
    if group.size == 1:
        return lambda images, last: model(images)
    if run.parallel == "fsdp":
        return _sharded(model, ema, run, group, example.device)
    return _replicated(model, run, group, example)


def _replicated(model: nn.Module, run: Run, group: Group, example: Tensor) -> Forward:
    device = example.device
    with warnings.catch_warnings():  # the newer name is not in all versions that we support
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        replica = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # the first virtual rank's are shared at evaluations
            gradient_as_bucket_view=True,
            static_graph=True,
        )
    _warm_up(replica, model, example)

    def call(images: Tensor, last: bool) -> Outputs:
        with nullcontext() if last else replica.no_sync():
            return replica(images)

    return call


def _warm_up(forward: nn.Module, model: nn.Module, example: Tensor) -> None:
    """Two forward and backward passes through DDP before the first step of this process.

    DDP learns in the first which gradients there are, in the second in which order they come,
    and packs them accordingly from the third on. A static graph learns it wrongly where the
    first is one of several accumulated passes (PyTorch 2.15: no_sync() fails an assertion,
    leaving DDP out gives wrong gradients without a word). And a run that resumed would add its
    gradients in another order than the one that went on.
    """
    for _ in range(2):
        with without_statistics(model):
            outputs = forward(example)
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        (sum(part.sum() for part in parts) * 0.0).backward()
        model.zero_grad(set_to_none=True)


def _sharded(
    model: Backbone, ema: ModelEmaV3, run: Run, group: Group, device: torch.device
) -> Forward:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (group.size,))
    ema.foreach = False  # one call cannot mix full buffers with parts of parameters
    for root in (model, ema.module):
        for block in cast(Backbone, root).blocks_in_order():
            fully_shard(block, mesh=mesh)
        fully_shard(root, mesh=mesh)
    # Reduced after every micro-batch: full gradients would need the memory that FSDP saves.
    return lambda images, last: model(images)


def _compile_blocks(model: Backbone) -> None:
    """Compile what is repeated, once for all its repetitions: the start does not grow with depth.

    Stochastic depth stays outside. Its rates differ, so that each block would be compiled for its
    own; and it draws as it does without compiling.
    """
    for part in model.modules():
        if isinstance(part, DropPath):
            part.forward = torch.compiler.disable(part.forward)  # type: ignore[method-assign]
    for block in model.blocks_in_order():
        block.compile()


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that is spread over the processes; all of them must call this together."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` spread over the processes as ``like`` is."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; all of it where it is not spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
