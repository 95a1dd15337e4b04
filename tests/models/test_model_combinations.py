"""Any mixer in any model: every combination either trains or is refused in one line."""

import copy
import io
import re
from itertools import product

import pytest
import torch
from micro_backbones import SIZES
from timm.utils import ModelEmaV3

from mixerbench.models import create_model
from mixerbench.models.part_kinds import STEMS
from mixers import MIXERS, list_mixers
from mixers.core.plan import SCHEDULES, read_plan

PLANS = [*list_mixers(), *SCHEDULES]
every_plan = pytest.mark.parametrize("plan", PLANS)


def _fits(plan: str, pool: str) -> bool:
    """A class token is only of use where every mixer of the plan carries the image to it."""
    facts = [MIXERS.facts(choice.name) for choice in read_plan(plan)]
    mixing = [fact["mixes_prefix"] for fact in facts if fact["adds_sub_layer"]]
    return pool == "avg" or (bool(mixing) and all(mixing))


def _runs_on_any_grid(plan: str) -> bool:
    return all(MIXERS.facts(choice.name)["any_grid"] for choice in read_plan(plan))


COMBINATIONS = list(product(PLANS, STEMS.names(), ("avg", "token")))


@pytest.mark.parametrize(("plan", "stem", "pool"), [c for c in COMBINATIONS if _fits(c[0], c[2])])
def test_every_combination_that_fits_trains_on_a_non_square_image(plan, stem, pool, micro, images):
    model = micro(plan, stem=stem, pool=pool)
    logits = model(images())
    assert logits.shape == (2, 7)
    torch.nn.functional.cross_entropy(logits, torch.tensor([1, 5])).backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("plan", "stem", "pool"), [c for c in COMBINATIONS if not _fits(c[0], c[2])]
)
def test_every_other_combination_is_refused_in_one_line(plan, stem, pool, micro):
    with pytest.raises(ValueError, match=r"cannot take a class token.*pool='avg'") as error:
        micro(plan, stem=stem, pool=pool)
    assert "\n" not in str(error.value)


def test_some_combinations_fit_and_some_do_not():
    assert 0 < sum(_fits(plan, "token") for plan in PLANS) < len(PLANS)


@every_plan
def test_half_and_double_precision_stay_near_single(plan, micro, images, assert_close):
    model = micro(plan).eval()
    with torch.no_grad():
        expected = model(images())
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            logits = copy.deepcopy(model).to(dtype)(images().to(dtype))
            assert logits.dtype == dtype
            assert_close(logits, expected, dtype)


@every_plan
def test_a_saved_model_gives_the_same_logits_when_loaded(plan, micro, perturb, images):
    model, other = perturb(micro(plan)).eval(), micro(plan).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(other(images()), model(images()))


@every_plan
def test_a_deep_copy_is_equal_and_independent(plan, micro, images):
    model = micro(plan).eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(images())
        assert torch.equal(twin(images()), before)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(model(images()), before)


def test_a_deep_copy_loads_official_weights_without_the_original(micro, timm_vit, images):
    twin = copy.deepcopy(micro(pool="token"))  # the original is gone
    theirs = timm_vit()
    twin.load_state_dict(theirs.state_dict())
    assert torch.equal(twin.blocks[0].mixer.proj.weight, theirs.blocks[0].attn.proj.weight)


def test_timms_moving_average_follows_the_model(micro):
    model = micro()
    average = ModelEmaV3(model, decay=0.75)
    start = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight += 1.0
    average.update(model)
    torch.testing.assert_close(average.module.head.weight, start + 0.25)


@pytest.mark.parametrize("plan", [plan for plan in PLANS if _runs_on_any_grid(plan)])
def test_a_mixer_for_any_grid_runs_at_another_resolution(plan, micro, images):
    assert micro(plan)(images(2, (64, 16))).shape == (2, 7)


@pytest.mark.parametrize("plan", [plan for plan in PLANS if not _runs_on_any_grid(plan)])
def test_a_mixer_for_one_grid_refuses_another_resolution_and_names_both(plan, micro, images):
    with pytest.raises(ValueError, match=r"2 x 3 .* 4 x 1") as error:
        micro(plan)(images(2, (64, 16)))
    assert "\n" not in str(error.value)


def test_a_plan_is_spread_over_the_blocks(micro):
    def mixers(plan) -> list[str]:
        return [type(block.mixer).__name__ for block in micro(plan).blocks]

    assert mixers("lit") == ["NoneType", "NoneType", "Attention", "Attention"]
    assert mixers(["local_attention", {"name": "patch_ff", "hidden_dim": 3}]) == [
        "LocalAttention",
        "LocalAttention",
        "PatchFF",
        "PatchFF",
    ]


def test_options_of_a_mixer_reach_every_block(micro):
    model = micro({"name": "patch_ff", "hidden_dim": 3, "norm": "tokens"})
    assert [block.mixer.fc1.out_features for block in model.blocks] == [3] * 4


@pytest.mark.parametrize("size", SIZES["vit"])
def test_a_size_is_width_depth_and_heads(size):
    with torch.device("meta"):
        model = create_model("attention", size)
    assert model.embed_dim == SIZES["vit"][size].dims[0]
    assert len(model.blocks) == SIZES["vit"][size].depths[0]
    assert {block.mixer.num_heads for block in model.blocks} == {*SIZES["vit"][size].num_heads}


def test_a_size_may_be_given_as_numbers():
    model = create_model("attention", {"dim": 24, "depth": 2, "num_heads": 3}, image_size=32)
    assert (model.embed_dim, len(model.blocks), model.blocks[0].mixer.num_heads) == (24, 2, 3)


@pytest.mark.parametrize(
    ("size", "patch_size", "millions"), [("tiny", 16, 7.7), ("base", 16, 62), ("large", 32, 206)]
)
def test_patch_ff_has_the_papers_number_of_parameters(size, patch_size, millions):
    with torch.device("meta"):
        model = create_model("patch_ff", size, patch_size=patch_size, pool="token")
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert round(count, 1 if millions < 10 else 0) == millions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixer": "atention"}, "unknown mixer 'atention'. Did you mean 'attention'?"),
        ({"mixer": {"name": "patch_ff", "hidden": 3}}, "'patch_ff' has no option 'hidden'"),
        ({"size": "bass"}, "unknown size 'bass' of backbone vit. Did you mean 'base'?"),
        ({"stem": "pach"}, "unknown stem 'pach'. Did you mean 'patch'?"),
        ({"stem": {"name": "patch", "stride": 4}}, "'patch' has no option 'stride'"),
        ({"stem": "conv", "patch_size": 8 + 4, "image_size": 24}, "patches of 12 pixels"),
        ({"backbone": "vitt"}, "unknown backbone 'vitt'. Did you mean 'vit'?"),
        ({"pol": "avg"}, "'vit' has no option 'pol'. Did you mean 'pool'?"),
        ({"pool": "max"}, "pool is 'avg' or 'token', not 'max'"),
        ({"distillation_token": True}, "needs a class token beside it"),
        ({"drop_path_schedule": "cosine"}, "'linear' or 'constant', not 'cosine'"),
        ({"image_size": (32, 40)}, "32 x 40 pixels is not divisible into patches of 16 x 16"),
        ({"mixer": ["attention"] * 5}, "5 choices does not fit 4 blocks"),
        ({"mixer": ["attention", "local_attention"], "pool": "token"}, "'local_attention' cannot"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        create_model(**{"mixer": "attention", "size": "micro", "image_size": 32} | arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": {"dim": 8, "depth": 1, "num_heads": 2, "heads": 4}},  # ignored
        {"size": {"dim": 8, "depth": 1}},  # KeyError
        {"stem": {"patch_size": 8}},  # KeyError
        {"backbone": {"pool": "avg"}},  # KeyError
        {"patch_size": 0},  # ZeroDivisionError
    ],
    ids=str,
)
def test_a_mapping_with_a_wrong_or_missing_key_is_a_value_error(arguments):
    with pytest.raises(ValueError, match=r"heads|name|patch"):
        create_model(**{"mixer": "attention", "size": "micro", "image_size": 32} | arguments)


@every_plan
def test_a_model_can_be_built_without_memory_on_the_meta_device(plan, micro):
    with torch.device("meta"):
        model = micro(plan, drop_path=0.1)
    assert all(parameter.is_meta for parameter in model.parameters())
