"""Learning rate, optimizers, groups without weight decay, and the moving average."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from timm.optim import Lamb
from torch import Tensor, nn

from mixerbench.config.compose import compose
from mixerbench.models import create_model
from mixerbench.models.build import build_model
from mixerbench.recipe import optimization
from mixerbench.recipe.optimization import (
    LearningRate,
    create_ema,
    create_optimizer,
    set_batch_norm_momentum,
)
from mixers import MIXERS

# --- learning rate --------------------------------------------------------------------------

STEPS = 3  # of an epoch


def deits_trace(peak: float, epochs: int) -> list[float]:
    """What DeiT's loop trains each epoch with: ``lr_scheduler.step(epoch)`` after the epoch."""
    warmup_epochs, warmup_lr, min_lr = 5, 1e-6, 1e-5
    trace, rate = [], warmup_lr  # which the scheduler sets when it is made
    for epoch in range(epochs):
        trace.append(rate)  # the epoch is trained here
        if epoch < warmup_epochs:
            rate = warmup_lr + epoch * (peak - warmup_lr) / warmup_epochs
        else:
            rate = min_lr + (peak - min_lr) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    return trace


@pytest.mark.parametrize(
    ("name", "peak", "epochs"), [("imagenet_deit", 1e-3, 300), ("imagenet_deit3", 4e-3, 800)]
)
def test_learning_rate_of_every_epoch_is_deits(name, peak, epochs, protocol):
    recipe = protocol(name).recipe
    optimizer = create_optimizer(recipe, nn.Linear(2, 2))
    rates = LearningRate(recipe, optimizer, STEPS)
    expected = deits_trace(peak, epochs)
    for step in range(recipe.epochs * STEPS):
        rate, epoch = rates.set(step), step // STEPS
        assert rate == pytest.approx(expected[epoch], rel=1e-12), epoch  # a cosine apart
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]
    assert recipe.epochs == len(expected)


def test_learning_rate_begins_and_ends_as_in_deit(protocol):
    recipe = protocol().recipe
    rates = LearningRate(recipe, create_optimizer(recipe, nn.Linear(2, 2)), STEPS)
    trace = [rates.set(epoch * STEPS) for epoch in range(300)]
    assert trace[:2] == [1e-6, 1e-6]
    assert trace[2] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 5, rel=1e-12)
    assert max(trace) == trace[6] == pytest.approx(0.999322e-3, rel=1e-6)  # seven digits
    assert trace[299] == pytest.approx(1.010856e-5, rel=1e-6)  # 1.005e-5 at half the batch


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(st.integers(0, 300 * STEPS - 1), min_size=1, max_size=8))
def test_learning_rate_depends_on_the_epoch_alone(steps, protocol):
    recipe = protocol().recipe
    rates = LearningRate(recipe, create_optimizer(recipe, nn.Linear(2, 2)), STEPS)
    expected = deits_trace(1e-3, 300)
    for step in steps:  # in any order, as after an interruption
        assert rates.set(step) == pytest.approx(expected[step // STEPS], rel=1e-12)


@pytest.mark.parametrize(
    ("field", "value", "epoch"),
    [
        ("warmup_epochs", 10, 3),
        ("warmup_lr", 1e-4, 0),
        ("min_lr", 1e-4, 299),
        ("interval", "step", 3),
    ],
)
def test_every_setting_of_the_schedule_changes_a_rate(field, value, epoch, protocol):
    recipes = [protocol().recipe, protocol(**{f"recipe__schedule__{field}": value}).recipe]
    optimizers = [create_optimizer(recipe, nn.Linear(2, 2)) for recipe in recipes]
    first, second = (
        LearningRate(recipe, optimizer, STEPS).set(epoch * STEPS)
        for recipe, optimizer in zip(recipes, optimizers, strict=True)
    )
    assert first != second


# --- groups ---------------------------------------------------------------------------------


def undecayed(recipe: object, model: nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = create_optimizer(recipe, model).param_groups
    found = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(found) == sorted(names.values())  # each once
    return {
        names[id(p)] for group in groups if group["weight_decay"] == 0.0 for p in group["params"]
    }


def test_deit_decays_no_bias_norm_embedding_or_token(protocol):
    model = create_model("attention", "tiny", pool="token")
    expected = {
        name
        for name, parameter in model.named_parameters()
        if name.partition(".")[0] in ("cls_token", "pos_embed")
        or name.endswith(".bias")
        or "norm" in name
    }
    assert undecayed(protocol().recipe, model) == expected
    assert (len(expected), len(list(model.parameters()))) == (102, 152)


@pytest.mark.parametrize(
    ("mixer", "tables"),
    [
        ({"name": "attention", "rel_pos_bias": True}, ["rel_pos_table"]),
        ("local_attention", ["rel_row", "rel_column"]),
    ],
    ids=["relative bias", "local attention"],
)
def test_tables_of_mixers_are_not_decayed(mixer, tables, protocol):
    model = create_model(mixer, "micro", image_size=64, num_classes=3)
    found = undecayed(protocol().recipe, model)
    for block in range(4):
        for table in tables:
            name = f"blocks.{block}.mixer.{table}"
            assert model.get_parameter(name).ndim > 1  # timm's rule alone would decay it
            assert name in found


@pytest.mark.parametrize("mixer", sorted(MIXERS.names()))
def test_decayed_are_all_weights_of_two_axes_that_nobody_exempts(mixer, protocol):
    model = create_model(mixer, "micro", image_size=64, num_classes=3)
    exempt = {"table", "cls_token", "dist_token", *MIXERS.get(mixer).no_weight_decay}
    expected = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or name.endswith(".bias") or name.rpartition(".")[2] in exempt
    }
    assert undecayed(protocol().recipe, model) == expected


# --- optimizers -----------------------------------------------------------------------------


def train(model: nn.Module, optimizer: torch.optim.Optimizer, scales: list[float]) -> list[Tensor]:
    """Steps along random gradients, at another rate each; the weights after them."""
    generator = torch.Generator().manual_seed(0)
    for step, scale in enumerate(scales):
        for parameter in model.parameters():
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 + step)
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def test_deits_optimizer_has_deits_constants(network, protocol):
    optimizer = create_optimizer(protocol().recipe, network)
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]
    for group in optimizer.param_groups:
        assert (tuple(group["betas"]), group["eps"]) == ((0.9, 0.999), 1e-8)
        assert group["lr"] == pytest.approx(1e-3, rel=1e-12)
        assert not group["amsgrad"]


def test_fused_adamw_is_torchs_plain_loop(network, protocol):
    plain_network = copy.deepcopy(network)
    optimizer = create_optimizer(protocol().recipe, network)
    assert optimizer.defaults["fused"]
    decayed = [p for p in plain_network.parameters() if p.ndim > 1]
    others = [p for p in plain_network.parameters() if p.ndim <= 1]
    plain = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.05}],
        betas=(0.9, 0.999),
        eps=1e-8,
        foreach=False,
        fused=False,
    )
    scales = [1.0, 1e-3, 10.0, 0.0, 1.0] * 4
    before = [p.detach().clone() for p in network.parameters()]
    ours, expected = train(network, optimizer, scales), train(plain_network, plain, scales)
    for one, other, start in zip(ours, expected, before, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # 20 float32 steps
        assert (one - start).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("field", "value"),
    [("betas", [0.5, 0.9]), ("eps", 1e-2), ("weight_decay", 0.5), ("name", "sgd"), ("lr", 1.0)],
)
def test_every_setting_of_the_optimizer_changes_its_step(field, value, network, protocol):
    results = []
    for fields in ({}, {f"recipe__optimizer__{field}": value}):
        model = copy.deepcopy(network)
        optimizer = create_optimizer(protocol(**fields).recipe, model)
        for step in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 1.0 + step)
            optimizer.step()
        results.append(model[0].weight.detach())
    assert not torch.allclose(*results, rtol=0, atol=1e-6)


def lamb_loop(
    parameters: list[Tensor], all_gradients: list[list[Tensor]], recipe: object
) -> list[Tensor]:
    """LAMB as apex' FusedLAMB has it (arXiv:1904.00962, algorithm 2), in float64.

    All gradients are first scaled to a common norm of at most 1. The trust ratio is for
    the parameters that are decayed.
    """
    (beta1, beta2), eps = recipe.optimizer.betas, recipe.optimizer.eps
    weights = [parameter.double() for parameter in parameters]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for step, gradients in enumerate(all_gradients, start=1):
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
        for i, gradient in enumerate(gradients):
            g = gradient.double() / max(norm, 1.0)
            first[i] = beta1 * first[i] + (1 - beta1) * g
            second[i] = beta2 * second[i] + (1 - beta2) * g * g
            corrected = second[i] / (1 - beta2**step)
            update = first[i] / (1 - beta1**step) / (corrected.sqrt() + eps)
            trust = 1.0
            if weights[i].ndim > 1:
                update = update + recipe.optimizer.weight_decay * weights[i]
                trust = weights[i].norm() / update.norm()
            weights[i] = weights[i] - recipe.optimizer.lr * trust * update
    return weights


def test_deit3s_lamb_clips_at_one_by_itself_and_is_apexs_formula(network, protocol):
    recipe = protocol("imagenet_deit3").recipe
    optimizer = create_optimizer(recipe, network)
    assert type(optimizer) is Lamb
    shapes = [parameter.shape for parameter in network.parameters()]
    all_gradients = [
        [scale * torch.randn(shape) for shape in shapes] for scale in (0.01, 100.0, 1.0, 0.001)
    ]
    with torch.no_grad():  # LayerNorm's bias and the others start at zero: no trust in 0 / x
        for parameter in network.parameters():
            parameter += 0.1
    before = [parameter.detach().clone() for parameter in network.parameters()]
    expected = lamb_loop(before, all_gradients, recipe)
    for gradients in all_gradients:
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for parameter, wanted in zip(network.parameters(), expected, strict=True):
        # Four float32 steps on weights of order 1.
        torch.testing.assert_close(parameter.detach().double(), wanted, rtol=0, atol=2e-6)


def test_sasas_optimizer_has_the_papers_constants(network, protocol):
    optimizer = create_optimizer(protocol("imagenet_sasa").recipe, network)
    assert type(optimizer) is torch.optim.SGD
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 1e-4]
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["nesterov"]) == (1.6, 0.9, True)
        assert group["dampening"] == 0


@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_momentum_reaches_nesterovs_formula(momentum, protocol):
    """As PyTorch has it: the step looks one momentum ahead (Sutskever et al., 2013)."""
    fields = {"recipe__optimizer__momentum": momentum, "recipe__optimizer__lr": 0.1}
    recipe = protocol("imagenet_sasa", **fields).recipe
    model = nn.Linear(4, 3, bias=False)
    optimizer = create_optimizer(recipe, model)
    weight, velocity = model.weight.detach().double(), torch.zeros(3, 4, dtype=torch.float64)
    for _ in range(5):
        model.weight.grad = torch.randn(3, 4)
        gradient = model.weight.grad.double() + recipe.optimizer.weight_decay * weight
        velocity = momentum * velocity + gradient
        weight = weight - recipe.optimizer.lr * (gradient + momentum * velocity)
        optimizer.step()
    # Five float32 steps on weights of order 1.
    torch.testing.assert_close(model.weight.detach().double(), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("field", ["betas", "eps", "momentum"])
def test_what_a_recipe_leaves_null_is_not_passed(field, network, protocol, monkeypatch):
    monkeypatch.setattr(optimization, "create_optimizer_v2", lambda *_, **options: options)
    complete = {
        f"recipe__optimizer__{name}": value
        for name, value in (("betas", [0.5, 0.9]), ("eps", 1e-3), ("momentum", 0.7))
    }
    gap = {f"recipe__optimizer__{field}": None}
    passed = create_optimizer(protocol(**complete).recipe, network)
    assert (passed["betas"], passed["eps"], passed["momentum"]) == ((0.5, 0.9), 1e-3, 0.7)
    with_gap = create_optimizer(protocol(**complete | gap).recipe, network)
    assert passed.keys() - with_gap.keys() == {field}


# --- regularisation and the moving average --------------------------------------------------


def test_deit_drops_paths_linearly_and_has_no_layer_scale():
    model = build_model(compose(["protocol=imagenet_deit", "size=tiny"]), 10)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)], rel=1e-12)
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert not any(name.endswith("gamma") for name, _ in model.named_parameters())


def test_deit3_drops_paths_constantly_and_scales_layers_by_1e_4(protocol):
    model = build_model(compose(["protocol=imagenet_deit3", "size=micro"]), 10)
    for block in model.blocks:
        assert block.drop_path1.drop_prob == block.drop_path2.drop_prob == 0.05
        for scale in (block.ls1, block.ls2):
            assert scale.gamma.shape == (64,)
            assert set(scale.gamma.tolist()) == {torch.tensor(1e-4).item()}  # in float32
    decayed = undecayed(protocol("imagenet_deit3").recipe, model)
    assert "blocks.0.ls1.gamma" in decayed


def test_average_covers_weights_and_statistics(protocol):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    start = copy.deepcopy(model.state_dict())
    average = create_ema(protocol(recipe__ema__decay=0.75).recipe, model)
    model(3 + torch.randn(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    average.update(model)
    for key, value in average.module.state_dict().items():
        new = model.state_dict()[key]
        expected = 0.75 * start[key] + 0.25 * new if value.is_floating_point() else new
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)  # float32 of order 1
    assert not torch.equal(model[1].running_mean, start["1.running_mean"])


def test_average_is_a_copy_that_does_not_train(protocol):
    model = nn.Linear(2, 2)
    average = create_ema(protocol().recipe, model)
    assert torch.equal(average.module.weight, model.weight)
    with torch.no_grad():
        model.weight += 1.0
    assert not torch.equal(average.module.weight, model.weight)
    assert not average.module.training


def test_average_of_batch_statistics_takes_the_recipes_share(protocol):
    model = nn.Sequential(nn.BatchNorm1d(2), BatchNormAct2d(2), nn.InstanceNorm1d(2))
    set_batch_norm_momentum(protocol(recipe__batch_norm_momentum=0.25).recipe, model)
    assert [module.momentum for module in model] == [0.25, 0.25, 0.1]
    images = 3 + torch.randn(8, 2)
    for share in (0.25, 1 - 0.75**2):  # of 3, the rest is the zero that it starts from
        model[0](images)
        torch.testing.assert_close(model[0].running_mean, share * images.mean(0))


@pytest.mark.parametrize(
    ("name", "decay"), [("imagenet_deit", 0.9), ("imagenet_lit", 0.9), ("imagenet_sasa", 0.9999)]
)
def test_batch_statistics_decay_as_published(name, decay, protocol):
    model = nn.BatchNorm2d(2)
    set_batch_norm_momentum(protocol(name).recipe, model)
    assert 1 - model.momentum == pytest.approx(decay, rel=1e-12)
