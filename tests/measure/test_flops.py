"""Multiply-adds: against publications, against torch, against arithmetic by hand."""

import sys
import warnings

import pytest
import torch
from torch import Tensor, nn

from mixerbench import create_model
from mixerbench.measure import flops
from mixerbench.measure.flops import CountingError, count_macs
from mixers import list_mixers
from mixers.core.plan import SCHEDULES

pytestmark = pytest.mark.slow  # models of the papers' size are traced

MICRO = {"size": "micro", "image_size": 32, "patch_size": 4, "num_classes": 10}
N, C, DEPTH, HEADS = 64, 64, 4, 4  # micro on 32 x 32 pixels with patches of 4
# Stem, MLPs and classifier of every micro model, from their shapes.
SHELL = N * (3 * 4 * 4) * C + DEPTH * 2 * N * C * 4 * C + C * 10
VARIANTS = [
    *list_mixers(),
    *SCHEDULES,
    {"name": "attention", "rel_pos_bias": True},
    {"name": "local_attention", "border": "masked", "window": 4},
    {"name": "patch_ff", "norm": "tokens"},
]


class Calls(nn.Module):
    """A model that is one function of its images."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


@pytest.mark.parametrize(("size", "published"), [("tiny", 1.3), ("small", 4.6), ("base", 17.6)])
def test_deit_costs_what_its_paper_says(size, published):
    gmacs = count_macs(create_model("attention", size, pool="token"), 224).total / 1e9
    assert round(gmacs, 1) == published


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("mixer", VARIANTS, ids=str)
def test_both_counters_agree_on_every_mixer_and_stem(mixer, stem):
    model = create_model(mixer, stem=stem, layer_scale=0.1, drop_path=0.1, **MICRO)
    count = count_macs(model, 32)  # raises when they do not
    with torch.no_grad():
        by_torch = flops._count_by_torch(model.eval(), torch.zeros(1, 3, 32, 32))
    assert count.total == by_torch
    assert sum(count.by_operator.values()) == count.by_module[""] == count.total


def test_patch_ff_costs_two_products_over_tokens():
    count = count_macs(create_model("patch_ff", **MICRO), 32)
    assert count.total == SHELL + DEPTH * 2 * C * N * 4 * N


def test_attention_costs_its_projections_and_two_products_of_tokens():
    count = count_macs(create_model("attention", **MICRO), 32)
    products = DEPTH * HEADS * N * N * (C // HEADS + C // HEADS)
    assert count.by_operator["scaled_dot_product_attention"] == products
    assert count.total == SHELL + DEPTH * N * C * (3 * C + C) + products


def test_the_columns_that_local_attention_appends_are_counted():
    count = count_macs(create_model("local_attention", **MICRO), 32)
    d = C // HEADS
    width = d + 8 + 8 + 1  # q and k with one-hot row, column and border
    assert count.by_operator["matmul"] == DEPTH * HEADS * N * (N + 1) * (width + d)
    row_and_column = 2 * N * 8 * (C // HEADS // 2)  # q with the tables at absolute positions
    border = 2 * N * 7 * (C // HEADS // 2)  # q with the window's own
    assert count.by_operator["einsum"] == DEPTH * HEADS * (row_and_column + border)


def test_a_mixer_that_is_absent_costs_nothing():
    assert count_macs(create_model("none", **MICRO), 32).total == SHELL


def test_another_resolution_is_counted_at_that_resolution():
    model = create_model("attention", **MICRO)
    larger = count_macs(model, (48, 40)).by_operator["scaled_dot_product_attention"]
    assert larger == DEPTH * (12 * 10) ** 2 * 2 * C


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda x: torch.ones(5, 8) @ x, 3 * 5 * 8 * 8),  # the left factor is broadcast
        (lambda x: x @ torch.ones(8), 3 * 8 * 8),
        (lambda x: torch.baddbmm(x[0], x[0], x[0]), 3 * 8**3),
        (lambda x: torch.einsum("...ij,...kj->...ik", x, x), 3 * 8**3),
        (lambda x: torch.einsum("bchw,bchw->bchw", x, x), 0),  # element-wise
        (lambda x: torch.einsum("bchw->bhwc", x), 0),
        (lambda x: nn.functional.conv2d(x, torch.ones(6, 1, 3, 3), groups=3), 6 * 9 * 6 * 6),
        (lambda x: nn.functional.conv_transpose2d(x, torch.ones(3, 4, 2, 2)), 8 * 8 * 3 * 4 * 4),
        (lambda x: nn.functional.layer_norm(x, (8,)).softmax(-1), 0),
    ],
    ids=["broadcast", "vector", "baddbmm", "einsum", "ew-einsum", "permute", "conv", "convT", "0"],
)
def test_products_are_counted_exactly(function, macs):
    assert count_macs(Calls(function), 8).total == macs


def test_an_operator_that_nobody_knows_is_an_error_that_names_it():
    with pytest.raises(CountingError, match="aten::fft_fft2"):
        count_macs(Calls(lambda x: torch.fft.fft2(x).abs()), 8)


def test_an_autograd_function_is_an_error_that_names_it():
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x @ x

    with pytest.raises(CountingError, match="Opaque"):
        count_macs(Calls(Opaque.apply), 8)


def test_without_its_handler_attention_is_an_error_and_not_free(monkeypatch):
    monkeypatch.delitem(flops.HANDLERS, "aten::scaled_dot_product_attention")
    with pytest.raises(CountingError, match="aten::scaled_dot_product_attention"):
        count_macs(create_model("attention", **MICRO), 32)


def test_a_wrong_handler_is_noticed(monkeypatch):
    monkeypatch.setitem(flops.HANDLERS, "aten::scaled_dot_product_attention", lambda *_: 0)
    with pytest.raises(CountingError, match="disagree"):
        count_macs(create_model("attention", **MICRO), 32)


def test_every_handler_is_no_operator_that_multiplies_nothing():
    assert not flops.NO_MACS & flops.HANDLERS.keys()


def test_a_missing_fvcore_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    with pytest.raises(ImportError, match="pip install fvcore"):
        count_macs(create_model("none", **MICRO), 32)


def test_counting_warns_of_nothing(recwarn, caplog, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        count_macs(create_model("local_attention", **MICRO), 32)
    assert not recwarn.list
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_counting_leaves_each_module_in_its_mode_and_random_numbers_alone():
    model = create_model("attention", drop_path=0.2, **MICRO).train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    count_macs(model, 32)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mixer", VARIANTS, ids=str)
def test_a_model_on_a_gpu_has_the_count_of_a_cpu(mixer):
    model = create_model(mixer, **MICRO)
    expected = count_macs(model, 32)
    assert count_macs(model.cuda(), 32) == expected
    assert all(parameter.is_cuda for parameter in model.parameters())
