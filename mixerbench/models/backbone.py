"""What all backbones share: initialisation, pooling, classifiers, and what the recipe asks.

Axis letters: B batch, N tokens (prefix first), C channels, H x W the token grid.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mixerbench.config.sizes import SizeRow
from mixers import TokenMixer
from mixers.core.errors import Refusal

Pool = Literal["avg", "token"]


class Backbone(nn.Module, ABC):
    """From images to logits by way of tokens; subclasses say what lies between.

    Args:
        dim: C of the tokens that the classifier reads.
        num_classes: 0 leaves the classifier out.
        pool: ``avg`` over the grid, or ``token``: the classifier reads a class token.
        distillation_token: a second prefix token with a classifier of its own (DeiT, section 4).
    """

    paper: ClassVar[str]
    stem_divisor: ClassVar[int]
    """The stem's patches are this many times smaller than those of an isotropic model."""
    sizes: ClassVar[Mapping[str, SizeRow]]
    """Name -> width, depth and heads: numbers, or numbers by stage where there are stages."""
    slots: ClassVar[tuple[str, ...]] = ()
    """Options that name a part of another kind: ``channel_mixer``, ``merging``."""
    even_grids: ClassVar[bool] = False
    """Must the grid be even wherever it is halved between stages?"""

    def __init__(
        self, dim: int, num_classes: int, *, pool: Pool = "avg", distillation_token: bool = False
    ) -> None:
        super().__init__()
        if distillation_token and pool != "token":
            raise Refusal("a distillation token needs a class token beside it: set pool=token.")
        self.pool = pool
        self.num_prefix_tokens = (pool == "token") + distillation_token
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.num_classes = num_classes
        self.grad_checkpointing = False
        self.distilled_training = False
        self.cls_token = _token(dim) if pool == "token" else None
        self.dist_token = _token(dim) if distillation_token else None

    def finish(self) -> None:
        """Put the classifiers behind the other parts and initialise everything."""
        self.head = _classifier(self.embed_dim, self.num_classes)
        distilled = self.dist_token is not None
        self.head_dist = _classifier(self.embed_dim, self.num_classes) if distilled else None
        self.init_weights()

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> tokens (B, N, C) as the classifier reads them, prefix first.

        Raises:
            Refusal: the patches do not tile the images, or a mixer does not take their grid.
        """

    @abstractmethod
    def blocks_in_order(self) -> Iterable[nn.Module]:
        """What is repeated over the depth, in the order in which it runs."""

    def init_weights(self) -> None:
        """DeiT's initialisation: truncated normal 0.02 for linear layers and tokens.

        Convolutions and norms keep PyTorch's, tables their own. A mixer that wants its
        linear layers otherwise overrides its ``init_weights()``, which has the last word.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, TokenMixer):
                module.init_weights()

    def with_prefix(self, x: Tensor) -> Tensor:
        """(B, H*W, C) -> (B, prefix + H*W, C)."""
        tokens = [token for token in (self.cls_token, self.dist_token) if token is not None]
        if not tokens:
            return x
        return torch.cat([*(token.expand(len(x), -1, -1) for token in tokens), x], dim=1)

    def run(self, blocks: Iterable[nn.Module], x: Tensor, *arguments: Any) -> Tensor:
        """``x`` through ``blocks``, run again in the backward pass if that is switched on."""
        for block in blocks:
            if self.grad_checkpointing and self.training:
                contexts = partial(_run_and_run_again, block)
                x = checkpoint(block, x, *arguments, use_reentrant=False, context_fn=contexts)
            else:
                x = block(x, *arguments)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens -> logits (B, classes), or pooled features (B, C) with ``pre_logits``.

        With a distillation token: in training with ``distilled_training`` the logits of
        both classifiers, else their mean.
        """
        if self.pool == "avg":
            pooled = x.mean(dim=1)
            return pooled if pre_logits else self.head(pooled)
        if self.head_dist is None:
            return x[:, 0] if pre_logits else self.head(x[:, 0])
        if pre_logits:
            return (x[:, 0] + x[:, 1]) / 2
        logits, distilled = self.head(x[:, 0]), self.head_dist(x[:, 1])
        if self.distilled_training and self.training:
            return logits, distilled
        return (logits + distilled) / 2

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Raises:
            Refusal: another pooling, which would change the tokens themselves.
        """
        if global_pool is not None and global_pool != self.pool:
            raise Refusal(
                f"this model pools by {self.pool!r}: build another one for pool={global_pool!r}."
            )
        self.num_classes = num_classes
        place = next(self.parameters())
        self.head = _classifier(self.embed_dim, num_classes).to(place.device, place.dtype)
        if self.head_dist is not None:
            self.head_dist = _classifier(self.embed_dim, num_classes).to(place.device, place.dtype)

    def no_weight_decay(self) -> set[str]:
        """Parameters that DeiT does not decay, and those that the parts declare."""
        return {"cls_token", "dist_token"} | self._declared("no_weight_decay")

    def offset_parameters(self) -> set[str]:
        """Weights of offset convolutions, which the recipe may train more slowly."""
        return self._declared("offset_parameters")

    def _declared(self, attribute: str) -> set[str]:
        return {
            f"{path}.{name}"
            for path, module in self.named_modules()
            if module is not self
            for name in getattr(module, attribute, ())
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory: blocks are run again in the backward pass."""
        self.grad_checkpointing = enable

    def set_distilled_training(self, enable: bool = True) -> None:
        self.distilled_training = enable


def _run_and_run_again(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), without_statistics(block)


@contextmanager
def without_statistics(module: nn.Module) -> Iterator[None]:
    """What runs here is not counted in BatchNorm's running statistics.

    For a block that runs again in the backward pass, and for all but one virtual rank of a step.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def _token(dim: int) -> nn.Parameter:
    token = nn.Parameter(torch.empty(1, 1, dim))
    nn.init.trunc_normal_(token, std=0.02)
    return token


def _classifier(dim: int, num_classes: int) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
