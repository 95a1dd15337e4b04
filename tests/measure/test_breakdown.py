"""Where a training step's time and memory go: sums, known cases, slow parts, nothing left."""

import time
from dataclasses import fields

import pytest
import torch
from micro_backbones import IMAGE, NAMES, build_micro
from torch import Tensor, nn

from mixerbench import create_model
from mixerbench.measure.breakdown import OPERATORS, OTHERS, Breakdown, break_down
from mixerbench.measure.flops import count_macs
from mixerbench.measure.memory import MIB
from mixerbench.measure.model_costs import OWN, count_parameters
from mixerbench.measure.peak import peak_flops, training_flops
from mixers import TokenGrid, TokenMixer

pytestmark = pytest.mark.slow  # models are traced, part by part

MICRO = {"image_size": 32, "patch_size": 4, "num_classes": 10}
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=no_gpu)]
NAP = 0.2  # seconds, beside milliseconds of everything else


def micro(mixer="attention", depth=2, **options):
    return create_model(mixer, {"dim": 16, "depth": depth, "num_heads": 2}, **MICRO, **options)


def broken_down(model, image_size=32, **options) -> Breakdown:
    defaults = {"num_classes": 10, "batch_size": 2, "seconds": 0.01}
    settings = defaults | {"precision": "fp32", "device": "cpu"} | options
    return break_down(model, image_size, **settings)


def by_name(rows):
    return {row.name: row for row in rows}


class Sleeping(TokenMixer):
    """Takes its time in one direction."""

    any_grid, mixes_prefix, paper = True, False, "none"

    def __init__(self, dim: int, *, forward: float, backward: float):
        super().__init__(dim, TokenGrid(8, 8), 1)
        self.seconds = forward, backward
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        x = x * self.scale
        if not torch.is_grad_enabled():  # multiply-adds are being counted
            return x
        forward, backward = self.seconds
        time.sleep(forward)
        return SlowBackward.apply(x, backward)


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


class Residual(nn.Module):
    """A wrapper that knows nothing of mixers, as plugins have them."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(16), inner

    def forward(self, x: Tensor, *grid: TokenGrid) -> Tensor:
        return x + self.inner(self.norm(x), *grid)


# --- sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["attention", "local_attention", "lit", "none"])
@pytest.mark.parametrize("backbone", NAMES)
def test_the_parts_add_up_to_the_model(backbone, mixer):
    model = build_micro(mixer, backbone)
    found = broken_down(model, IMAGE, num_classes=7)
    total = found.total
    assert sum(row.time_share for row in found.parts) == pytest.approx(1)
    assert total.forward_ms + total.backward_ms == pytest.approx(found.step_ms.median)
    assert total.parameters == count_parameters(model)
    assert total.gmacs == pytest.approx(count_macs(model, IMAGE).total / 1e9)
    assert total.peak_share == found.mfu
    for row in (*found.parts, *found.inside_blocks):
        assert min(row.forward_ms, row.backward_ms, row.activations_mib, row.peak_share) >= 0
        assert row.parameters >= 0 and row.gmacs >= 0


@pytest.mark.parametrize("backbone", NAMES)
def test_what_is_inside_the_blocks_adds_up_to_the_blocks(backbone):
    found = broken_down(build_micro(backbone=backbone), IMAGE, num_classes=7)
    blocks = [row for row in found.parts if row.kind in ("Block", "Bottleneck")]
    assert len(blocks) == found.blocks
    assert {"mixer", "norms", OWN} <= by_name(found.inside_blocks).keys()
    for field in fields(blocks[0]):
        if field.name not in ("name", "kind", "peak_share"):
            inside = sum(getattr(row, field.name) for row in found.inside_blocks)
            assert inside == pytest.approx(sum(getattr(row, field.name) for row in blocks))


def test_the_share_of_the_peak_is_that_of_the_parts_own_multiply_adds():
    found = broken_down(micro(), batch_size=4)
    for row in (*found.parts, found.total):
        seconds = (row.forward_ms + row.backward_ms) / 1e3
        flops = training_flops(4 * row.gmacs * 1e9)
        assert row.peak_share * seconds * found.peak_gflops * 1e9 == pytest.approx(flops)
    assert found.peak_gflops == peak_flops("cpu", "fp32") / 1e9


def test_operators_are_the_slowest_and_the_others():
    found = broken_down(micro()).operators
    assert [row.name for row in found].index(OTHERS) == OPERATORS
    assert sum(row.time_share for row in found) == pytest.approx(1)
    slowest = [row.ms for row in found[:-1]]
    assert slowest == sorted(slowest, reverse=True)
    assert "addmm" in by_name(found)
    assert all(row.calls > 0 for row in found)


def test_a_model_of_few_operators_has_few_rows():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    found = broken_down(model, 4).operators
    assert by_name(found)["addmm"].calls == 1
    assert sum(row.time_share for row in found) == pytest.approx(1)


# --- who is slow --------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_a_slow_mixer_is_shown_as_the_slow_part(way, checkpointing):
    model = micro(depth=3)
    model.set_grad_checkpointing(checkpointing)
    seconds = {"forward": 0.0, "backward": 0.0} | {way: NAP}
    model.blocks[1].mixer = Sleeping(16, **seconds)
    found = broken_down(model)
    slow = by_name(found.parts)["blocks.1"]
    assert slow == max(found.parts, key=lambda row: row.time_share)
    sleeper = next(row for row in found.inside_blocks if row.kind == "Sleeping")
    assert sleeper.name == "mixer"
    assert sleeper.time_share == pytest.approx(slow.time_share, abs=0.2)
    again = way == "forward" and checkpointing  # it runs once more in the backward pass
    assert (sleeper.forward_ms > 250 * NAP) == (way == "forward")
    assert (sleeper.backward_ms > 250 * NAP) == (way == "backward" or again)


def test_time_between_the_parts_is_the_models_own():
    class Dawdling(nn.Sequential):
        def forward(self, images):
            features = super().forward(images)
            if torch.is_grad_enabled():
                time.sleep(NAP)
            return features

    found = broken_down(Dawdling(nn.Flatten(), nn.Linear(48, 10)), 4)
    assert by_name(found.parts)[OWN].time_share > 0.6
    assert found.blocks == 0
    assert found.inside_blocks == ()


def test_a_mixer_is_found_inside_of_what_wraps_it():
    model = micro(depth=2)
    model.blocks[0] = Residual(model.blocks[0].mixer)
    model.blocks[1] = Residual(Residual(Sleeping(16, forward=NAP, backward=0.0)))
    found = broken_down(model)
    kinds = {(row.name, row.kind): row for row in found.inside_blocks}
    assert ("mixer", "Attention") in kinds
    assert kinds["mixer", "Sleeping"].time_share > 0.6
    assert kinds["norms", "LayerNorm"].parameters == 3 * 32


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_activations_of_linear_layers_and_gelu_are_what_their_tensors_take(device):
    batch = 8
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 10))
    found = broken_down(model, 4, batch_size=batch, device=device)
    kept = {row.name: row.activations_mib * MIB for row in found.parts}
    assert kept["1"] == 4 * batch * 48  # its input, the images; not the weight
    assert kept["2"] == 4 * batch * 64  # its input, which the linear layer does not need
    assert kept["3"] == 4 * batch * 64  # its input: what GELU put out
    assert kept["0"] == 0


def test_a_tensor_that_two_parts_keep_is_counted_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(48, 10), nn.Linear(48, 10)

        def forward(self, images):
            x = images.flatten(1)
            return self.first(x) + self.second(x)

    kept = {row.name: row.activations_mib * MIB for row in broken_down(Twice(), 4).parts}
    assert (kept["first"], kept["second"]) == (4 * 2 * 48, 0)


def test_twice_the_images_keep_twice_as_much_and_checkpointing_less():
    model = micro()
    two, four = (broken_down(model, batch_size=n).total.activations_mib for n in (2, 4))
    assert four == pytest.approx(2 * two, rel=0.01)
    model.set_grad_checkpointing()
    inputs = by_name(broken_down(model).parts)[OWN].activations_mib  # of the blocks
    assert 2 * (2 * 64 * 16 * 4) <= inputs * MIB < two * MIB / 2


# --- all kinds of models ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "token"},
        {"stem": "conv", "drop_path": 0.5, "dropout": 0.1, "layer_scale": 0.1},
        {"channels_first": True, "channel_mixer": "feature_attention"},
        {"channel_mixer": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_odd_models_are_broken_down_too(options, precision):
    found = broken_down(micro(**options), precision=precision)
    assert sum(row.time_share for row in found.parts) == pytest.approx(1)
    assert {"stem", "blocks.0", "blocks.1", "norm", "head", OWN} <= by_name(found.parts).keys()


@pytest.mark.parametrize("distilled", [False, True])
def test_a_model_with_two_classifiers_is_broken_down(distilled):
    model = micro(pool="token", distillation_token=True)
    model.set_distilled_training(distilled)
    rows = by_name(broken_down(model).parts)
    assert rows["head"].forward_ms > 0 and rows["head_dist"].forward_ms > 0
    assert rows[OWN].parameters == 2 * 16  # class and distillation token


def test_frozen_parts_have_no_backward_pass():
    model = micro(depth=1, dropout=0.0)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    rows = by_name(broken_down(model).parts)
    assert rows["blocks.0"].backward_ms == rows["stem"].backward_ms == 0
    assert rows["blocks.0"].forward_ms > 0 and rows["head"].backward_ms > 0
    assert rows["blocks.0"].activations_mib == 0


@pytest.mark.parametrize("device", DEVICES)
def test_on_every_device_in_half_precision(device):
    found = broken_down(micro(), batch_size=8, precision="bf16", device=device)
    assert found.total.time_share == pytest.approx(1)
    assert 0 < found.mfu < 2


# --- nothing is left ----------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["attention", "convolution"])
def test_the_model_is_left_as_it_was(mixer, capfd, given_back):
    model = micro(mixer, stem="conv", drop_path=0.5, dropout=0.1).train()
    model.blocks[0].eval()
    with given_back(model), torch.no_grad():
        broken_down(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert capfd.readouterr() == ("", "")


def test_the_model_is_left_as_it_was_by_a_step_that_fails():
    model = micro(stem="conv").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        broken_down(model, num_classes=11)  # the model has 10
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
