"""Official DeiT weights load: timm's DeiT, randomly initialised, gives the same logits."""

import pytest
import timm
import torch

from mixerbench.models import create_model

pytestmark = pytest.mark.slow  # models of the papers' size

DEIT = {"tiny": 5.7, "small": 22.1, "base": 86.6}  # millions of parameters, the paper's table 1


@pytest.mark.parametrize("size", DEIT)
def test_deit_weights_give_deits_logits_and_its_number_of_parameters(
    size, perturb, images, assert_close
):
    deit = perturb(timm.create_model(f"deit_{size}_patch16_224")).eval()
    ours = create_model("attention", size, pool="token").eval()
    ours.load_state_dict(deit.state_dict())
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert round(count / 1e6, 1) == DEIT[size]
    assert count == sum(parameter.numel() for parameter in deit.parameters())
    with torch.no_grad():
        image = images(1, (224, 224))
        assert_close(ours(image), deit(image))


def test_distilled_deit_weights_give_its_logits_in_evaluation_and_training(
    perturb, images, assert_close
):
    deit = perturb(timm.create_model("deit_tiny_distilled_patch16_224"))
    ours = create_model("attention", "tiny", pool="token", distillation_token=True)
    ours.load_state_dict(deit.state_dict())
    image = images(1, (224, 224))
    with torch.no_grad():
        assert_close(ours.eval()(image), deit.eval()(image))
        assert_close(ours.train()(image), deit.train()(image))
        for model in (ours, deit):
            model.set_distilled_training(True)
        for one, other in zip(ours(image), deit(image), strict=True):
            assert_close(one, other)
        assert_close(ours.eval()(image), deit.eval()(image))


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"init_values": 0.3}, {"pool": "token", "layer_scale": 1.0}),
        ({"qkv_bias": False}, {"pool": "token", "mixer": {"name": "attention", "qkv_bias": False}}),
        ({"mlp_ratio": 2.0}, {"pool": "token", "mlp_ratio": 2.0}),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, {"pool": "avg"}),
    ],
    ids=["layer scale", "no qkv bias", "mlp ratio", "average pooling"],
)
def test_each_variant_of_timms_vit_gives_its_logits(
    options, ours, micro, timm_vit, perturb, images, assert_close
):
    theirs = perturb(timm_vit(**options)).eval()
    model = micro(**ours).eval()
    model.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert_close(model(images()), theirs(images()))


@pytest.mark.parametrize("height_width", [(48, 32), (64, 80), (16, 16), (96, 48)], ids=str)
@pytest.mark.parametrize("distilled", [False, True], ids=["class token", "distilled"])
def test_the_position_embedding_is_resampled_as_timm_does(
    height_width, distilled, micro, timm_vit, perturb, images, assert_close
):
    theirs = perturb(timm_vit(distilled, dynamic_img_size=True)).eval()
    torch.nn.init.normal_(theirs.pos_embed)  # so that interpolation shows
    model = micro(pool="token", distillation_token=distilled).eval()
    model.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        image = images(2, height_width)
        assert_close(model(image), theirs(image))


def test_the_name_of_the_weights_is_kept_when_the_model_is_part_of_another(micro, timm_vit):
    theirs, model = timm_vit(), micro(pool="token")
    whole = torch.nn.ModuleDict({"student": model})
    whole.load_state_dict({f"student.{key}": value for key, value in theirs.state_dict().items()})
    assert torch.equal(model.blocks[2].mixer.qkv.weight, theirs.blocks[2].attn.qkv.weight)
    assert torch.equal(model.stem.proj.weight, theirs.patch_embed.proj.weight)


def test_loading_leaves_the_given_state_dict_as_it_was(micro, timm_vit):
    state = timm_vit().state_dict()
    keys = list(state)
    micro(pool="token").load_state_dict(state)
    assert list(state) == keys


def test_weights_of_another_width_are_refused(micro, timm_vit):
    with pytest.raises(RuntimeError, match="size mismatch"):
        micro(pool="token").load_state_dict(timm_vit(embed_dim=32).state_dict())
