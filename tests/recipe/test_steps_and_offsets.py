"""What LIT's optimizer and schedule have that DeiT's have not: a value per step, slow offsets.

The reference is a replay of LIT's own loop (main.py, optimizer.py and lr_scheduler.py of
ziplab/LIT, classification/code_for_lit_s_m_b): its three groups and timm's scheduler,
stepped after the optimizer with the number of the step.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from mixerbench.models import create_model
from mixerbench.recipe.optimization import LearningRate, create_optimizer

STEPS = 7  # of an epoch


class Deformed(nn.Module):
    """A network with two offset convolutions, which declares their parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2)
        self.offset = nn.Conv2d(4, 8, 2)
        self.norm = nn.BatchNorm2d(4)
        self.table = nn.Parameter(torch.zeros(4, 4))
        self.deeper = nn.ModuleDict({"offset": nn.Conv2d(4, 8, 2), "mlp": nn.Linear(4, 4)})

    def no_weight_decay(self) -> set[str]:
        return {"table"}

    def offset_parameters(self) -> set[str]:
        return {"offset.weight", "deeper.offset.weight"}


class WithBiases(Deformed):
    """Declares the biases too, which the recipe must leave alone."""

    def offset_parameters(self) -> set[str]:
        return {f"{name}.{kind}" for name in ("offset", "deeper.offset") for kind in KINDS}


KINDS = ("weight", "bias")
NO_DECAY = ["table", "stem.bias", "offset.bias", "norm.weight", "norm.bias",
            "deeper.offset.bias", "deeper.mlp.bias"]  # fmt: skip
OFFSETS = ["offset.weight", "deeper.offset.weight"]
DECAYED = ["stem.weight", "deeper.mlp.weight"]


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def replayed(batch: int, epochs: int, warmup_epochs: int) -> list[tuple[float, float, float]]:
    """What LIT trains each step with: others, not decayed, offsets."""
    base, warmup, minimum = (rate * batch / 512 for rate in (5e-4, 5e-7, 5e-6))
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(3)]
    groups[1]["weight_decay"] = 0.0
    groups[2]["lr"] = base * 0.01
    optimizer = torch.optim.AdamW(groups, lr=base, weight_decay=0.05)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=epochs * STEPS,
        lr_min=minimum,
        warmup_lr_init=warmup,
        warmup_t=warmup_epochs * STEPS,
        cycle_limit=1,
        t_in_epochs=False,
    )
    trace = []
    for step in range(epochs * STEPS):
        trace.append(tuple(group["lr"] for group in optimizer.param_groups))
        scheduler.step_update(step)
    return trace


LIT = replayed(1024, 300, 20)


# --- one value per step ---------------------------------------------------------------------


def test_every_step_of_the_schedule_is_lits(protocol):
    recipe = protocol("imagenet_lit").recipe
    optimizer = create_optimizer(recipe, Deformed())
    rates = LearningRate(recipe, optimizer, STEPS)
    for step, (others, undecayed, offsets) in enumerate(LIT):
        assert rates.set(step) == undecayed
        assert [group["lr"] for group in optimizer.param_groups] == [undecayed, others, offsets]
    assert step + 1 == recipe.epochs * STEPS


def test_the_first_two_steps_share_a_rate_as_lits_loop_steps_late(protocol):
    recipe = protocol("imagenet_lit").recipe
    rates = LearningRate(recipe, create_optimizer(recipe, nn.Linear(2, 2)), STEPS)
    trace = [rates.set(step) for step in range(4)]
    slope = (1e-3 - 1e-6) / (20 * STEPS)
    assert trace == pytest.approx([1e-6, 1e-6, 1e-6 + slope, 1e-6 + 2 * slope], rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(st.integers(0, 300 * STEPS - 1), min_size=1, max_size=8))
def test_a_rate_depends_on_the_step_alone(steps, protocol):
    recipe = protocol("imagenet_lit").recipe
    optimizer = create_optimizer(recipe, Deformed())
    rates = LearningRate(recipe, optimizer, STEPS)
    for step in steps:  # in any order, as after an interruption in the middle of an epoch
        rates.set(step)
        others, undecayed, offsets = LIT[step]
        assert [group["lr"] for group in optimizer.param_groups] == [undecayed, others, offsets]


def test_an_interrupted_schedule_goes_on_with_the_optimizers_saved_state(protocol):
    recipe = protocol("imagenet_lit").recipe
    first = create_optimizer(recipe, Deformed())
    LearningRate(recipe, first, STEPS).set(1234)
    second = create_optimizer(recipe, Deformed())
    rates = LearningRate(recipe, second, STEPS)  # as the loop does: before the state is loaded
    second.load_state_dict(first.state_dict())
    for step in range(1235, 1235 + 2 * STEPS):
        rates.set(step)
        others, undecayed, offsets = LIT[step]
        assert [group["lr"] for group in second.param_groups] == [undecayed, others, offsets]


def test_sasa_warms_up_from_zero_and_ends_at_zero(protocol):
    recipe = protocol("imagenet_sasa").recipe
    optimizer = create_optimizer(recipe, nn.Linear(2, 2))
    rates = LearningRate(recipe, optimizer, STEPS)
    trace = [rates.set(step) for step in range(130 * STEPS)]
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.6)
    scheduler = CosineLRScheduler(
        reference, t_initial=130 * STEPS, warmup_t=10 * STEPS, t_in_epochs=False
    )
    for step, rate in enumerate(trace):
        assert rate == reference.param_groups[0]["lr"]
        scheduler.step_update(step)
    assert trace[:2] == [0.0, 0.0]
    # No prefix: the cosine begins with the warm-up, and is below the peak where that ends.
    assert max(trace) == trace[10 * STEPS] == pytest.approx(1.6 * 69 / 70, rel=1e-12)
    assert trace[10 * STEPS + 1] == pytest.approx(1.6 * 0.985471, rel=1e-5)
    assert 0 < trace[-1] < 1e-4


# --- slow offsets ---------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Deformed, WithBiases])
def test_offsets_weights_are_a_group_and_their_biases_are_not(cls, protocol):
    model = cls()
    optimizer = create_optimizer(protocol("imagenet_lit").recipe, model)
    assert names_of(model, optimizer) == [NO_DECAY, DECAYED, OFFSETS]
    found = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [(1e-3, 0.0), (1e-3, 0.05), (pytest.approx(1e-5, rel=1e-12), 0.05)]


def test_offsets_rate_is_constant_after_the_warm_up(protocol):
    recipe = protocol("imagenet_lit").recipe
    optimizer = create_optimizer(recipe, Deformed())
    rates = LearningRate(recipe, optimizer, STEPS)
    trace = []
    for step in range(300 * STEPS):
        rates.set(step)
        trace.append(optimizer.param_groups[2]["lr"])
    warm = trace[: 20 * STEPS + 1]
    assert warm[1:] == sorted(set(warm))  # rises in every step
    assert warm[0] == 1e-6
    assert trace[20 * STEPS + 1 :] == pytest.approx([1e-5] * (280 * STEPS - 1), rel=1e-12)


def test_offsets_rate_falls_where_the_batch_is_larger(protocol):
    recipe = protocol("imagenet_lit", recipe__batch__size=4096).recipe
    optimizer = create_optimizer(recipe, Deformed())
    rates = LearningRate(recipe, optimizer, STEPS)
    found = []
    for step in (20 * STEPS + 1, 300 * STEPS - 1):
        rates.set(step)
        found.append(optimizer.param_groups[2]["lr"])
    assert found[0] == pytest.approx(1e-5 + 3e-5 * 0.989074, rel=1e-5)  # (1 + cos 12 degrees) / 2
    assert found[1] == pytest.approx(1e-5, rel=1e-4)


@pytest.mark.parametrize(
    ("scale", "model"), [(1.0, Deformed()), (0.01, nn.Sequential(nn.Linear(3, 3)))]
)
def test_without_slow_offsets_groups_are_timms(scale, model, protocol):
    recipe = protocol(recipe__optimizer__offset_lr_scale=scale).recipe
    ours = create_optimizer(recipe, model)
    timms = create_optimizer_v2(
        model, "adamw", 1e-3, 0.05, betas=(0.9, 0.999), eps=1e-8, fused=True
    )
    assert names_of(model, ours) == names_of(model, timms)
    assert ours.defaults == timms.defaults
    for one, other in zip(ours.param_groups, timms.param_groups, strict=True):
        assert {**one, "params": []} == {**other, "params": []}


def test_without_weight_decay_biases_of_offsets_keep_their_rate(protocol):
    model = WithBiases()
    recipe = protocol("imagenet_lit", recipe__optimizer__weight_decay=0.0).recipe
    all_others, offsets = names_of(model, create_optimizer(recipe, model))
    assert offsets == OFFSETS
    assert sorted(all_others) == sorted(NO_DECAY + DECAYED)


def test_an_offset_parameter_that_is_none_is_an_error(protocol):
    class Mistaken(Deformed):
        def offset_parameters(self) -> set[str]:
            return {"offsets.weight"}

    with pytest.raises(AttributeError, match="offsets"):
        create_optimizer(protocol("imagenet_lit").recipe, Mistaken())


def test_lits_own_models_slow_their_mergings(protocol):
    model = create_model("lit", "micro", image_size=64, num_classes=3, backbone="pyramid")
    groups = names_of(model, create_optimizer(protocol("imagenet_lit").recipe, model))
    slow = [name for name, p in model.named_parameters() if "offset" in name and p.ndim > 1]
    assert len(slow) == 3  # between four stages
    assert groups[2] == slow
    assert not set(groups[1]) & set(slow)
    assert {name.replace("weight", "bias") for name in slow} <= set(groups[0])
