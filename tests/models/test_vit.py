"""The isotropic backbone: regularisation, checkpointing, head, weight decay."""

import pytest
import timm.optim
import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.optim import param_groups_weight_decay
from torch import nn

from mixers import TokenGrid, create_mixer

TABLES = [{"name": "attention", "rel_pos_bias": True}, "local_attention"]


def _rates(model: nn.Module, name: str) -> list[float]:
    paths = [getattr(block, name) for block in model.blocks]
    return [path.drop_prob if isinstance(path, DropPath) else 0.0 for path in paths]


@pytest.mark.parametrize("branch", ["drop_path1", "drop_path2"])
def test_drop_path_grows_linearly_from_zero_as_in_deit(branch, micro):
    rates = _rates(micro(drop_path=0.3), branch)
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert rates == pytest.approx(calculate_drop_path_rates(0.3, 4))


@pytest.mark.parametrize("branch", ["drop_path1", "drop_path2"])
def test_drop_path_may_be_the_same_everywhere(branch, micro):
    rates = _rates(micro(drop_path=0.3, drop_path_schedule="constant"), branch)
    assert rates == pytest.approx([0.3] * 4)


def test_a_block_whose_branches_are_both_dropped_leaves_its_tokens_as_they_were(micro):
    model = micro(drop_path=1.0, drop_path_schedule="constant")
    x = torch.randn(2, 6, 64)
    for block in model.blocks:
        assert torch.equal(block(x, model.grid), x)


@pytest.mark.parametrize("option", ["drop_path", "dropout"])
def test_regularisation_acts_in_training_only(option, micro, images):
    model, plain = micro(**{option: 0.5}), micro()
    plain.load_state_dict(model.state_dict())
    assert not torch.equal(model(images(8)), model(images(8)))
    assert torch.equal(model.eval()(images()), plain.eval()(images()))


def test_dropout_is_after_the_position_embedding_and_inside_the_mlps(micro):
    rates = {n: m.p for n, m in micro(dropout=0.25).named_modules() if isinstance(m, nn.Dropout)}
    assert {name for name, rate in rates.items() if rate == 0.25} == {
        "pos_drop",
        *(f"blocks.{i}.channel_mixer.drop{k}" for i in range(4) for k in (1, 2)),
    }


def test_layer_scale_starts_each_branch_at_its_initial_value(micro):
    model = micro(layer_scale=1e-4)
    for block in model.blocks:
        for scale in (block.ls1, block.ls2):
            assert torch.equal(scale.gamma, torch.full((64,), 1e-4))


def test_without_layer_scale_there_is_no_gamma(micro):
    assert not [name for name in micro().state_dict() if "gamma" in name]


def test_a_block_without_mixer_has_no_norm_and_no_branch_for_it(micro):
    model = micro("none", layer_scale=0.1, drop_path=0.2)
    for block in model.blocks:
        assert block.mixer is None
        assert not any(hasattr(block, name) for name in ("norm1", "ls1", "drop_path1"))
    assert not [name for name in model.state_dict() if "norm1" in name or "ls1" in name]


def test_a_block_without_mixer_is_its_mlp_branch_alone(micro):
    model = micro("none").eval()
    x = torch.randn(2, 6, 64)
    block = model.blocks[0]
    assert torch.equal(block(x, model.grid), x + block.channel_mixer(block.norm2(x), model.grid))


def test_an_identity_block_adds_the_normalised_token(micro):
    model = micro("identity").eval()
    x = torch.randn(2, 6, 64)
    block = model.blocks[0]
    x1 = x + block.norm1(x)
    assert torch.equal(block(x, model.grid), x1 + block.channel_mixer(block.norm2(x1), model.grid))


def test_a_mixer_with_its_own_norm_gets_none_from_the_block(micro):
    model = micro({"name": "patch_ff", "norm": "tokens"})
    assert all(isinstance(block.norm1, nn.Identity) for block in model.blocks)
    assert all(isinstance(block.norm1, nn.LayerNorm) for block in micro("patch_ff").blocks)


def test_every_norm_has_the_epsilon_of_vit(micro):
    for plan in ("attention", {"name": "patch_ff", "norm": "tokens"}):
        norms = [m for m in micro(plan).modules() if isinstance(m, nn.LayerNorm)]
        assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize(
    "plan", [{"name": "attention", "attn_drop": 0.1, "proj_drop": 0.1}, "patch_ff", TABLES, "lit"]
)
def test_grad_checkpointing_changes_no_gradient(plan, micro, images):
    model = micro(plan, dropout=0.1, drop_path=0.3)
    passes = []
    model.blocks[-1].register_forward_pre_hook(lambda *_: passes.append(1))

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad(set_to_none=True)
        passes.clear()
        torch.manual_seed(5)
        model(images(4)).square().sum().backward()
        assert len(passes) == 1 + checkpointing, "checkpointed blocks run twice"
        return [parameter.grad for parameter in model.parameters()]

    plain, checkpointed = gradients(False), gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


def test_grad_checkpointing_saves_nothing_and_does_nothing_in_evaluation(micro, images):
    model = micro().eval()
    expected = model(images())
    model.set_grad_checkpointing()
    passes = []
    model.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    logits = model(images())
    logits.sum().backward()
    assert len(passes) == 1
    assert torch.equal(logits, expected)


TIMM_VARIANTS = {
    "avg": ({"class_token": False, "global_pool": "avg", "fc_norm": False}, {"pool": "avg"}),
    "token": ({}, {"pool": "token"}),
    "distilled": ({"distilled": True}, {"pool": "token", "distillation_token": True}),
}


@pytest.mark.parametrize("variant", TIMM_VARIANTS)
def test_head_and_features_have_the_shapes_and_values_of_timms_models(
    variant, micro, timm_vit, perturb, images, assert_close
):
    timm_options, options = TIMM_VARIANTS[variant]
    theirs, ours = perturb(timm_vit(**timm_options)).eval(), micro(**options).eval()
    ours.load_state_dict(theirs.state_dict())
    assert ours.num_features == theirs.num_features == 64
    assert ours.head_hidden_size == theirs.head_hidden_size == 64
    with torch.no_grad():
        tokens, expected = ours.forward_features(images()), theirs.forward_features(images())
        assert_close(tokens, expected)
        for pre_logits in (False, True):
            assert_close(
                ours.forward_head(tokens, pre_logits=pre_logits),
                theirs.forward_head(expected, pre_logits=pre_logits),
            )


@pytest.mark.parametrize("variant", TIMM_VARIANTS)
@pytest.mark.parametrize("num_classes", [3, 0])
def test_reset_classifier_gives_what_timms_gives(variant, num_classes, micro, timm_vit, images):
    timm_options, options = TIMM_VARIANTS[variant]
    theirs, ours = timm_vit(**timm_options), micro(**options)
    described = []
    for model in (theirs, ours):
        model.reset_classifier(num_classes)
        heads = model.get_classifier()
        heads = heads if isinstance(heads, tuple) else (heads,)
        described.append((model.num_classes, [str(head) for head in heads]))
        assert model(images()).shape == (2, num_classes or 64)
    assert described[0] == described[1]


def test_reset_classifier_keeps_the_precision_of_the_model(micro, images):
    model = micro(pool="token", distillation_token=True).double()
    model.reset_classifier(3, global_pool="token")
    assert model(images().double()).dtype == torch.float64


def test_reset_classifier_refuses_another_pooling(micro):
    with pytest.raises(ValueError, match=r"pools by 'avg'.*pool='token'"):
        micro().reset_classifier(3, global_pool="token")


def test_weights_start_as_deits(micro):
    model = micro(pool="token", distillation_token=True)
    model.reset_classifier(1000)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    some = {"head", "head_dist", "blocks.0.mixer.qkv", "blocks.3.channel_mixer.fc2"}
    assert some <= linear.keys()
    for name, module in linear.items():
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
        assert module.weight.abs().max() < 0.2
        assert not module.bias.any(), name
    assert model.pos_embed.table.std().item() == pytest.approx(0.02, rel=0.2)
    for token in (model.cls_token, model.dist_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.4)


def test_the_class_token_reads_the_image_and_its_own_position(micro, images):
    model = micro(pool="token").eval()
    assert not torch.equal(model(images())[0], model(images())[1])
    assert model.pos_embed.table.shape == (1, 1 + 6, 64)
    assert micro(pool="token", distillation_token=True).pos_embed.table.shape == (1, 2 + 6, 64)
    assert micro(pool="avg").pos_embed.table.shape == (1, 6, 64)


def _undecayed(model: nn.Module, groups: list[dict]) -> set[str]:
    without = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in without}


@pytest.mark.parametrize("by", ["param_groups_weight_decay", "create_optimizer_v2"])
def test_timm_decays_neither_norms_biases_embeddings_nor_the_mixers_tables(by, micro):
    model = micro(TABLES)
    if by == "create_optimizer_v2":  # asks the model itself
        groups = timm.optim.create_optimizer_v2(model, "adamw", 1e-3, 0.05).param_groups
    else:
        groups = param_groups_weight_decay(
            model, 0.05, no_weight_decay_list=model.no_weight_decay()
        )
    tables = {f"blocks.{i}.mixer.rel_pos_table" for i in (0, 1)}
    tables |= {f"blocks.{i}.mixer.rel_{axis}" for i in (2, 3) for axis in ("row", "column")}
    vectors = {name for name, p in model.named_parameters() if p.ndim == 1}
    assert _undecayed(model, groups) == tables | vectors | {"pos_embed.table"}


def test_prefix_tokens_are_not_decayed(micro):
    model = micro(pool="token", distillation_token=True)
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert {"cls_token", "dist_token", "pos_embed.table"} <= _undecayed(model, groups)


def test_the_tables_of_each_mixer_alone_are_more_than_vectors():
    """So that only ``no_weight_decay`` can exempt them: 1-D parameters never decay."""
    for plan in TABLES:
        options = {} if isinstance(plan, str) else {"rel_pos_bias": True}
        name = plan if isinstance(plan, str) else plan["name"]
        mixer = create_mixer(name, 8, TokenGrid(2, 3), 2, **options)
        assert all(getattr(mixer, table).ndim > 1 for table in mixer.no_weight_decay)


def test_layer_wise_learning_rates_see_the_stem_each_block_and_the_head(micro):
    model = micro(pool="token")
    groups = timm.optim.param_groups_layer_decay(
        model, 0.0, no_weight_decay_list=(), layer_decay=0.5, min_scale=0.0
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = {name: scales[id(p)] for name, p in model.named_parameters()}
    assert found["cls_token"] == found["pos_embed.table"] == found["stem.proj.weight"] == 0.5**5
    assert [found[f"blocks.{i}.norm1.weight"] for i in range(4)] == [0.5**4, 0.25 / 2, 0.25, 0.5]
    assert found["head.weight"] == 1.0
