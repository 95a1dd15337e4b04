"""What training, timm and users ask of a backbone: checkpointing, copies, groups, classifiers."""

import copy
import io

import pytest
import timm.optim
import torch
from micro_backbones import (
    NAMES,
    TABLES,
    blocks_of,
    build_micro,
    every_backbone,
    one_of_each,
    pool_option,
    random_images,
    refusal_of,
    trained_once,
)
from timm.models import group_parameters
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

# --- gradient checkpointing ---------------------------------------------------------------------

CHECKPOINTED = ["attention", "lit", "convolution", ["local_attention", "patch_ff"]]


def _step(model: nn.Module, checkpointing: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    model.set_grad_checkpointing(checkpointing)
    torch.manual_seed(5)
    model(random_images(samples=4)).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()], dict(model.named_buffers())


@every_backbone
@pytest.mark.parametrize("plan", CHECKPOINTED, ids=str)
def test_grad_checkpointing_changes_no_gradient_and_runs_blocks_twice(plan, backbone):
    model = build_micro(plan, backbone, dropout=0.1, drop_path=0.3, layer_scale=0.5)
    twin = copy.deepcopy(model)
    passes: list[int] = []
    list(blocks_of(model))[-1].register_forward_pre_hook(lambda *_: passes.append(1))
    gradients, _ = _step(model, checkpointing=True)
    assert len(passes) == 2
    expected, _ = _step(twin, checkpointing=False)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("backbone", NAMES)
def test_grad_checkpointing_changes_no_statistics_of_batches(backbone):
    """``run.grad_checkpointing`` is a run setting: the evaluated model must not depend on it."""
    model = build_micro("convolution", backbone, stem="conv")
    twin = copy.deepcopy(model)
    _, checkpointed = _step(model, checkpointing=True)
    _, plain = _step(twin, checkpointing=False)
    assert plain, "the case has BatchNorms"
    different = [
        name for name, buffer in plain.items() if not torch.equal(buffer, checkpointed[name])
    ]
    assert different == []


@every_backbone
def test_grad_checkpointing_does_nothing_in_evaluation(backbone):
    model = build_micro("attention", backbone).eval()
    expected = model(random_images())
    model.set_grad_checkpointing()
    passes: list[int] = []
    next(blocks_of(model)).register_forward_pre_hook(lambda *_: passes.append(1))
    logits = model(random_images())
    logits.sum().backward()
    assert len(passes) == 1
    assert torch.equal(logits, expected)


# --- saving, copying, averaging -----------------------------------------------------------------


@one_of_each
def test_a_saved_model_gives_the_same_logits_when_loaded(backbone, stem):
    model, other = (build_micro(TABLES, backbone, stem=stem) for _ in range(2))
    file = io.BytesIO()
    torch.save(trained_once(model).state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(other.eval()(random_images()), model(random_images()))


@one_of_each
def test_a_deep_copy_is_equal_and_independent(backbone, stem):
    model = trained_once(build_micro(TABLES, backbone, stem=stem))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(random_images())
        assert torch.equal(twin(random_images()), before)
        for tensor in [*twin.parameters(), *twin.buffers()]:
            tensor.zero_()
        assert torch.equal(model(random_images()), before)


@one_of_each
def test_a_model_can_be_built_without_memory_on_the_meta_device(backbone, stem):
    with torch.device("meta"):
        model = build_micro(TABLES, backbone, stem=stem, drop_path=0.1, layer_scale=0.1)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    real = build_micro(TABLES, backbone, stem=stem, drop_path=0.1, layer_scale=0.1)
    shapes = {name: tensor.shape for name, tensor in real.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


@every_backbone
def test_timms_moving_average_follows_the_model(backbone):
    model = build_micro("attention", backbone, stem="conv")
    average = ModelEmaV3(model, decay=0.75)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained_once(model)
    average.update(model)
    for name, parameter in average.module.named_parameters():
        expected = 0.75 * start[name] + 0.25 * dict(model.named_parameters())[name]
        torch.testing.assert_close(parameter, expected, msg=name)
    assert average.module(random_images()).isfinite().all()


@one_of_each
def test_the_seed_decides_the_initial_weights(backbone, stem):
    torch.manual_seed(3)
    one = build_micro(TABLES, backbone, stem=stem).state_dict()
    torch.manual_seed(3)
    other = build_micro(TABLES, backbone, stem=stem).state_dict()
    torch.manual_seed(4)
    third = build_micro(TABLES, backbone, stem=stem).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(not torch.equal(one[key], third[key]) for key in one)


@every_backbone
def test_linear_layers_start_as_deits_and_resnets_convolutions_as_hes(backbone):
    model = build_micro("attention", backbone, size="tiny" if backbone != "resnet" else "r26")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.weight.numel() > 5000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert not module.bias.any(), name
        if isinstance(module, nn.Conv2d) and backbone == "resnet" and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
        if name.endswith("merging.offset"):
            assert not module.weight.any() and not module.bias.any()


# --- the interface that timm and the recipe use -------------------------------------------------


@every_backbone
@pytest.mark.parametrize("num_classes", [3, 0])
def test_reset_classifier_replaces_the_classifier(backbone, num_classes):
    model = build_micro("attention", backbone).double()
    features = model.forward_head(model.forward_features(random_images().double()), pre_logits=True)
    assert features.shape == (2, model.num_features)
    model.reset_classifier(num_classes)
    assert model.num_classes == num_classes
    assert isinstance(model.get_classifier(), nn.Linear if num_classes else nn.Identity)
    logits = model(random_images().double())
    assert logits.shape == (2, num_classes or model.num_features)
    assert logits.dtype == torch.float64
    refusal_of(lambda: model.reset_classifier(3, global_pool="token"), "pools by 'avg'")


@every_backbone
def test_the_logits_are_the_classifier_on_the_mean_of_the_tokens(backbone):
    model = build_micro("attention", backbone).eval()
    tokens = model.forward_features(random_images())
    assert tokens.shape[2] == model.num_features == model.embed_dim == model.head_hidden_size
    expected = F.linear(tokens.mean(dim=1), model.head.weight, model.head.bias)
    torch.testing.assert_close(model(random_images()), expected)


def test_the_logits_of_a_pyramid_may_be_the_classifier_on_the_class_token():
    model = build_micro("attention", "pyramid", pool="token").eval()
    tokens = model.forward_features(random_images())
    expected = F.linear(tokens[:, 0], model.head.weight, model.head.bias)
    torch.testing.assert_close(model(random_images()), expected)


NOT_DECAYED = {
    "vit": ({"pool": "avg"}, {"pos_embed.table", "mixer.rel"}),
    "pyramid": ({"pos_embed": True}, {"pos_embed.table", "mixer.rel"}),
    "resnet": ({}, {"mixer.rel"}),
}


@every_backbone
def test_tables_and_tokens_take_no_weight_decay(backbone):
    options, kinds = NOT_DECAYED[backbone]
    model = build_micro(TABLES, backbone, stem="attention", **options)
    names = dict(model.named_parameters()).keys()
    expected = {name for name in names if any(kind in name for kind in kinds)}
    expected |= {"stem.row", "stem.column", "stem.mixture"}
    assert len(expected) > 8
    assert model.no_weight_decay() & names == expected
    assert model.no_weight_decay() - names <= {"cls_token", "dist_token"} | {
        name for name in model.no_weight_decay() if "rel_pos_table" in name
    }
    groups = timm.optim.param_groups_weight_decay(
        model, 0.05, no_weight_decay_list=model.no_weight_decay()
    )
    without = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    found = {name for name, p in model.named_parameters() if id(p) in without}
    assert found == expected | {n for n, p in model.named_parameters() if p.ndim == 1}


def test_the_class_token_of_a_pyramid_takes_no_weight_decay():
    model = build_micro("attention", "pyramid", pool="token")
    assert "cls_token" in model.no_weight_decay() & dict(model.named_parameters()).keys()


@pytest.mark.parametrize("backbone", NAMES)
def test_layer_wise_learning_rates_grow_from_the_stem_to_the_head(backbone):
    model = build_micro("attention", backbone, **pool_option(backbone, "token"))
    groups = timm.optim.param_groups_layer_decay(
        model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = {name: scales[id(p)] for name, p in model.named_parameters()}  # all of them
    in_order = [s for n, s in found.items() if not n.startswith(("cls_token", "pos_embed"))]
    assert in_order == sorted(in_order)
    first = {name.partition(".")[0] for name, s in found.items() if s == min(found.values())}
    assert "stem" in first <= {"stem", "pos_embed", "cls_token"}
    assert {name for name, s in found.items() if s == 1.0} == {"head.weight", "head.bias"}
    assert len(set(found.values())) >= 6  # stem, four stages or blocks, head


@every_backbone
def test_coarse_groups_of_parameters_are_stages_or_blocks(backbone):
    model = build_micro("attention", backbone)
    groups = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert groups.keys() == dict(model.named_parameters()).keys()
    assert {name for name in groups if groups[name] == max(groups.values())} == {
        "head.weight",
        "head.bias",
    }
