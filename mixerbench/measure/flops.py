"""Multiply-adds of a forward pass: counted twice, never guessed.

fvcore counts the operators of a traced graph, by the handlers below: its own leave attention
out, which makes DeiT-Ti 14 % too cheap, and count norms. torch's FlopCounterMode counts the
kernels that run. They must agree, and an operator that neither knows is an error.

What is executed is counted: masked and causal attention in full; zeros that a mixer appends
or pads with (local_attention) as the numbers they are multiplied with. What only a kernel
does inside itself (padding heads to a multiple of 8, skipping masked blocks) is not: the
figure belongs to the model, not to the device.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mixerbench.measure._state import images_shape, measuring
from mixers import TokenMixer
from mixers.core.errors import Refusal

CONVENTION: Final = (
    "multiply-adds of convolutions, linear layers, matrix products and attention, one image; "
    "norms, activations, softmax and element-wise operations not counted"
)
"""Printed beside every figure. DeiT-Ti is 1.25 G by it, 1.26 with norms, 1.08 without attention."""

TOLERANCE: Final = 0.01
"""How far the two counters may be apart, as a share of the larger."""


class CountingError(Refusal):
    """The multiply-adds of a model cannot be counted: better no figure than a wrong one."""


@dataclass(frozen=True)
class MacCount:
    """Multiply-adds of the forward pass of one image, by ``CONVENTION``."""

    total: int
    by_operator: Mapping[str, int]
    by_module: Mapping[str, int]
    """A module's path -> its multiply-adds, those of its children included."""


def on_cpu(model: nn.Module) -> nn.Module:
    """``model`` itself, with zeros on the CPU for what is on the meta device.

    It can be counted then: costs depend on shapes alone. Indices must be valid ones, too.
    """
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        model.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in chain(model.parameters(), model.buffers()):
                tensor.zero_()
    return model


def count_macs(model: nn.Module, image_size: int | tuple[int, int], in_chans: int = 3) -> MacCount:
    """Count the multiply-adds of one image in evaluation mode, as a CPU executes them.

    Elsewhere a mixer may execute others: a fused kernel wants padding, say. A board's count is
    the same wherever its models were trained.

    Raises:
        CountingError: an operator is unknown, or the two counters differ by more than 1 %.
        ImportError: fvcore is not installed.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper cannot be traced
    if any(parameter.is_cuda for parameter in model.parameters()):
        model = copy.deepcopy(model).cpu()
    with (
        measuring(model, training=False) as device,
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        image = torch.zeros(images_shape(1, in_chans, image_size), device=device)
        own = _declared_operators(model)
        count = _count_by_fvcore(model, image, own)
        by_torch = _count_by_torch(model, image)
    known_to_both = count.total - sum(count.by_operator.get(name, 0) for name in own)
    if abs(known_to_both - by_torch) > TOLERANCE * max(known_to_both, by_torch):
        raise CountingError(
            f"the two counters disagree: fvcore with our handlers says {count.total:,} "
            f"multiply-adds ({_listed(count.by_operator)}), torch's FlopCounterMode {by_torch:,}. "
            "An operator's handler in mixerbench.measure.flops.HANDLERS is wrong, or torch lacks "
            "its formula: torch.utils.flop_counter.register_flop_formula adds one."
        )
    return count


def macs_by_formula(model: nn.Module, count: MacCount) -> int:
    """The total of ``count``, with the formula of the paper for every mixer that executes more.

    Local attention, for example, is a dense product with zeros in it; its paper counts the window.
    """
    total = count.total
    for path, module in model.named_modules():
        if isinstance(module, TokenMixer):
            own = module.formula_macs(module.grid)
            if own is not None:
                total += own - count.by_module[path]
    return total


Handler = Callable[[list[Any], list[Any]], int]
"""(inputs, outputs) of a traced operator, as torch._C.Value -> multiply-adds."""


def _declared_operators(model: nn.Module) -> dict[str, Callable[..., int]]:
    """Operator, as it is counted -> the formula that a mixer of the model declares for it.

    Raises:
        CountingError: the operator is known already, or two mixers declare different formulas.
    """
    formulas: dict[str, Callable[..., int]] = {}
    for module in model.modules():
        for operator, method in module.operators.items() if isinstance(module, TokenMixer) else ():
            formula = getattr(type(module), method)
            name = operator.removeprefix("aten::")
            if operator in HANDLERS or formulas.setdefault(name, formula) is not formula:
                raise CountingError(
                    f"mixer {type(module).__name__} declares a formula for {operator}, which has "
                    "another one already: declare only operators that no counter knows."
                )
    return formulas


def _handler_of(formula: Callable[..., int]) -> Handler:
    def handler(inputs: list[Any], outputs: list[Any]) -> int:
        shapes = [_shape(value) if value.isCompleteTensor() else None for value in inputs]
        return int(formula(shapes, [_shape(value) for value in outputs]))

    return handler


def _count_by_fvcore(
    model: nn.Module, image: Tensor, own: Mapping[str, Callable[..., int]]
) -> MacCount:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, the tracer warns of constants
        try:
            from fvcore.nn import FlopCountAnalysis
        except ImportError as error:
            raise ImportError(
                "counting multiply-adds needs fvcore, which is not installed: pip install fvcore"
            ) from error
        analysis = FlopCountAnalysis(model, image)
        analysis.clear_op_handles().set_op_handle(**HANDLERS)
        analysis.set_op_handle(**{f"aten::{name}": _handler_of(own[name]) for name in own})
        # Its warnings are our errors, below; a module that is not called costs nothing.
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_module = analysis.by_module()
    unknown = [name for name in analysis.unsupported_ops() if not _multiplies_nothing(name)]
    if unknown:
        raise CountingError(
            f"cannot count the multiply-adds of {', '.join(sorted(unknown))}. Declare a formula in "
            "the mixer's 'operators', add a handler to mixerbench.measure.flops.HANDLERS, or, if "
            "the operator has none by the convention "
            f"({CONVENTION}), its name to NO_MACS there."
        )
    by_operator = {
        name.removeprefix("_"): int(macs) for name, macs in analysis.by_operator().items()
    }
    return MacCount(
        sum(by_operator.values()), by_operator, {path: int(n) for path, n in by_module.items()}
    )


def _count_by_torch(model: nn.Module, image: Tensor) -> int:
    import torchvision.ops  # noqa: F401  registers the operator that is named below
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten.mv: lambda matrix, vector, **_: 2 * prod(matrix),
            aten.dot: lambda left, right, **_: 2 * prod(left),
            torch.ops.torchvision.deform_conv2d: lambda _, weight, *args, out_shape, **kwargs: (
                2 * prod(out_shape) * prod(weight[1:])
            ),
        },
    )
    # MATH: attention as the two matrix products that it is. An independent check of our
    # formula, and free of what a device's fused kernel pads.
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(image)
    return int(counter.get_total_flops()) // 2  # torch: 2 per multiply-add


def _listed(by_operator: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {macs:,}" for name, macs in sorted(by_operator.items())) or "none"


def _multiplies_nothing(operator: str) -> bool:
    return operator in NO_MACS or operator.removesuffix("_") in NO_MACS  # add_: add in place


def _shape(value: Any) -> list[int]:
    if not value.isCompleteTensor():
        raise CountingError(f"the trace does not know the shape of {value.debugName()}.")
    return list(value.type().sizes())


def _product(left: int) -> Handler:
    """A matrix product: every element of the result sums over the left factor's last axis."""

    def handler(inputs: list[Any], outputs: list[Any]) -> int:
        return prod(_shape(outputs[0])) * _shape(inputs[left])[-1]

    return handler


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    transposed = inputs[6].toIValue()
    positions = inputs[0] if transposed else outputs[0]
    return prod(_shape(positions)) * prod(_shape(inputs[1])[1:])


def _deformable(inputs: list[Any], outputs: list[Any]) -> int:
    """The convolution; the bilinear sampling before it is element-wise."""
    return prod(_shape(outputs[0])) * prod(_shape(inputs[1])[1:])


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    *_, queries, width = _shape(inputs[0])
    *_, keys, value_width = _shape(inputs[2])
    *batch_and_heads, _, _ = _shape(outputs[0])
    return prod(batch_and_heads) * queries * keys * (width + value_width)


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    factors, _, result = inputs[0].toIValue().replace(" ", "").partition("->")
    terms, values = factors.split(","), list(inputs[1].node().inputs())
    if len(terms) > 2:
        raise CountingError(f"einsum {factors!r} has no one order: write products of two factors.")
    sizes = [_axis_sizes(term, _shape(value)) for term, value in zip(terms, values, strict=True)]
    if len(sizes) == 1:
        return 0
    left, right = sizes
    summed = left.keys() & right.keys() - set(result)
    if not summed:
        return 0  # an element-wise product
    return prod(_shape(outputs[0])) * prod(min(left[axis], right[axis]) for axis in summed)


def _axis_sizes(term: str, shape: list[int]) -> dict[str, int]:
    front, _, back = term.partition("...")
    return dict(zip(front, shape, strict=False)) | dict(
        zip(reversed(back), reversed(shape), strict=False)
    )


HANDLERS: Final[dict[str, Handler]] = {
    "aten::_convolution": _convolution,
    "aten::convolution": _convolution,
    **{f"aten::{name}": _product(0) for name in ("linear", "matmul", "mm", "bmm", "mv", "dot")},
    **{f"aten::{name}": _product(1) for name in ("addmm", "baddbmm")},  # the 0th is added
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
    "torchvision::deform_conv2d": _deformable,
}
"""Operator -> its multiply-adds. A plugin with an operator of its own adds it here."""

_NO_MACS = (
    # activations, norms
    "gelu silu relu6 leaky_relu elu hardswish hardsigmoid sigmoid tanh softplus softmax "
    "log_softmax layer_norm batch_norm group_norm instance_norm rms_norm linalg_vector_norm "
    # arithmetic, reductions, comparisons
    "add sub rsub mul div neg abs pow square sqrt rsqrt reciprocal exp log sin cos erf logaddexp "
    "maximum minimum lerp sum mean var std amax amin min argmax all any logsumexp cumsum "
    "ne lt le where logical_and logical_or logical_not bitwise_and bitwise_or __or__ "
    # new tensors, shapes, gathers
    "eye linspace tril triu ones_like empty_like new_ones fill zero clone alias pad repeat "
    "repeat_interleave expand_as view_as reshape_as unflatten movedim numpy_T flip index_select "
    "take_along_dim scatter tile concat pixel_shuffle pixel_unshuffle unfold im2col sort argsort "
    "topk numel "
    # pooling, resampling
    "avg_pool1d avg_pool2d max_pool1d max_pool2d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler"
)
NO_MACS: Final[set[str]] = {f"aten::{name}" for name in _NO_MACS.split()}
"""Operators without multiply-adds by the convention, beside those that fvcore ignores itself."""
