"""Every mixer at every size by timm's own entry points."""

import pytest
import timm
import timm.data
import torch

import mixerbench.models  # noqa: F401  registers the names
from mixerbench.models.vit import ViT
from mixers import MIXERS, list_mixers
from mixers.core.plan import SCHEDULES


def test_timm_lists_every_mixer_and_schedule_at_every_size():
    expected = {f"mixerbench_{m}_{s}" for m in (*list_mixers(), *SCHEDULES) for s in ViT.sizes}
    assert expected <= set(timm.list_models("mixerbench_*"))
    assert set(timm.list_models(module="timm_models")) >= expected


def test_no_name_claims_to_have_weights():
    assert timm.list_models("mixerbench_*", pretrained=True) == []


def test_patch_ff_base_runs_with_another_classifier():
    model = timm.create_model("mixerbench_patch_ff_base", num_classes=10).eval()
    assert model.num_classes == model.head.out_features == 10
    assert model.embed_dim == 768
    with torch.no_grad():
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 10)


@pytest.mark.parametrize("mixer", [*list_mixers(), *SCHEDULES])
def test_a_timm_model_is_the_one_of_create_model(mixer, micro, images):
    theirs = timm.create_model(f"mixerbench_{mixer}_micro", img_size=(32, 48), num_classes=7)
    ours = micro(mixer)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(ours.eval()(images()), theirs.eval()(images()))


def test_timms_words_reach_the_model():
    model = timm.create_model(
        "mixerbench_attention_micro",
        img_size=32,
        in_chans=1,
        patch_size=8,
        drop_path_rate=0.3,
        drop_rate=0.2,
        init_values=1e-3,
        global_pool="token",
    )
    assert model.grid == (4, 4, 1)
    assert model.stem.proj.in_channels == 1
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    assert model.pos_drop.p == 0.2
    assert model.blocks[0].ls1.gamma[0].item() == pytest.approx(1e-3)
    assert model.pool == "token"


def test_an_unknown_word_is_refused():
    with pytest.raises(ValueError, match="no option 'distilled'"):
        timm.create_model("mixerbench_attention_micro", img_size=32, distilled=True)


def test_pretrained_weights_are_refused():
    with pytest.raises(ValueError, match="mixerbench_attention_micro has no published weights"):
        timm.create_model("mixerbench_attention_micro", pretrained=True)


def test_data_config_is_deits():
    model = timm.create_model("mixerbench_attention_micro")
    config = timm.data.resolve_data_config(model=model)
    assert config["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    assert config["std"] == timm.data.IMAGENET_DEFAULT_STD
    assert config["input_size"] == (3, 224, 224)
    assert config["crop_pct"] == 0.875
    assert config["interpolation"] == "bicubic"


@pytest.mark.parametrize("mixer", list_mixers())
def test_timm_knows_whether_the_input_size_is_fixed(mixer):
    config = timm.get_pretrained_cfg(f"mixerbench_{mixer}_micro")
    assert config.fixed_input_size != MIXERS.facts(mixer)["any_grid"]


def test_timm_finds_the_classifier_and_the_first_convolution():
    model = timm.create_model("mixerbench_attention_micro", img_size=32)
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()
    assert isinstance(model.get_submodule(model.default_cfg["first_conv"]), torch.nn.Conv2d)
