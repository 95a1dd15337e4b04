"""Speed: the budget, the spread, the mode. No test depends on how fast the machine is."""

import math
import time

import pytest
import torch
from torch import nn

from mixerbench import create_model
from mixerbench.measure.speed import Spread, latency_ms, throughput

MICRO = {"size": "micro", "image_size": 32, "patch_size": 4, "num_classes": 10}
CPU = {"precision": "fp32", "device": "cpu"}


class Slow(nn.Module):
    """Takes at least ``seconds`` and remembers what it was called with."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.calls = []

    def forward(self, images):
        time.sleep(self.seconds)
        product = images[0, 0] @ images[0, 0]
        self.calls.append(
            (tuple(images.shape), product.dtype, self.training, torch.is_inference_mode_enabled())
        )
        return images


def test_a_pass_longer_than_the_budget_is_measured_once_after_the_first():
    model = Slow(0.1)
    spread = throughput(model, 8, 4, seconds=0.05, **CPU)
    assert len(model.calls) == 2
    assert spread.repeats == 1
    assert spread.median == spread.lower_quartile == spread.upper_quartile <= 4 / 0.1


@pytest.mark.parametrize("measure", [throughput, latency_ms])
def test_the_budget_bounds_the_passes(measure):
    model = Slow(0.01)
    batch = (4,) if measure is throughput else ()
    spread = measure(model, 8, *batch, seconds=0.2, **CPU)
    # A pass takes 0.01 s or more, so 0.2 s hold 20 of them; beside them the first pass, and
    # the last of the warm-up and of the repeats, which may have begun in time.
    assert 2 <= len(model.calls) <= 20 + 3
    assert spread.repeats >= 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_has_a_positive_finite_speed_with_ordered_quartiles(precision):
    model = create_model("patch_ff", **MICRO)
    options = {"seconds": 0.1, "precision": precision, "device": "cpu"}
    for spread in (throughput(model, 32, 2, **options), latency_ms(model, 32, **options)):
        assert 0 < spread.lower_quartile <= spread.median <= spread.upper_quartile < math.inf
        assert spread.repeats >= 1


def test_passes_run_in_evaluation_and_inference_mode_at_the_precision_asked_for():
    model = Slow(0.0).train()
    throughput(model, (8, 8), 3, seconds=0.0, precision="bf16", device="cpu", in_chans=1)
    latency_ms(model, 8, seconds=0.0, **CPU)
    assert set(model.calls) == {
        ((3, 1, 8, 8), torch.bfloat16, False, True),
        ((1, 3, 8, 8), torch.float32, False, True),
    }
    assert model.training


def test_random_numbers_are_left_alone():
    state = torch.get_rng_state()
    throughput(Slow(0.0), 8, 4, seconds=0.0, **CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_spread_is_median_and_quartiles():
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)


def test_an_unknown_precision_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'fp8'. Known: fp32, bf16, fp16"):
        throughput(Slow(0.0), 8, 1, seconds=0.1, precision="fp8", device="cpu")
