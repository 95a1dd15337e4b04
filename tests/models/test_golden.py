"""Official weights give official logits: those of the authors' code, timm and torchvision."""

import functools
import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from mixerbench.config.presets import PRESETS
from mixerbench.models import convert_official, create_model
from mixers import TokenGrid, create_mixer

GOLDEN = Path(__file__).parents[1] / "golden"
OFFICIAL = {  # preset -> the authors' name
    "ff_tiny": "linear_tiny",
    "ff_base": "linear_base",
    "ff_large": "linear_large",
    "lit_ti": "lit_ti",
    "lit_s": "lit_small",
    "lit_m": "lit_medium",
    "lit_b": "lit_base",
}
pytestmark = pytest.mark.slow  # models of the papers' size

MEASURED = ("ff_tiny", "lit_ti", "lit_s")
DEPTHS = {"resnet26": [1, 2, 4, 1], "resnet38": [2, 3, 5, 2], "resnet50": [3, 4, 6, 3]}
WITH_CODE = [name for name, preset in PRESETS.items() if preset.code]

# Relative to the largest logit of the image. Ours was 3e-14 and below; the authors' code itself
# moves by up to 1e-11 in float64.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}


# --- What was measured ------------------------------------------------------------------------


def _load_weights_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


weights = _load_weights_module()


@functools.cache
def _reference(preset: str) -> Mapping[str, Any]:
    """Official names and shapes."""
    return json.loads((GOLDEN / "state_dicts" / f"{OFFICIAL[preset]}.json").read_text())


@functools.cache
def _measured(preset: str) -> Mapping[str, Any]:
    return json.loads((GOLDEN / "logits" / f"{OFFICIAL[preset]}.json").read_text())


@functools.cache
def _official(preset: str) -> Mapping[str, Tensor]:
    """Official names and the values that the measurement was made with."""
    filled = weights.fill_all(_reference(preset))
    return {name: torch.from_numpy(value) for name, value in filled.items()}


def _empty(preset: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every official entry, the floating-point ones without memory and values."""
    return {
        name: _integer(name, shape)
        if name in _reference(preset)["integer_buffers"]
        else torch.empty(shape, dtype=dtype, device="meta")
        for name, shape in _reference(preset)["state_dict"].items()
    }


def _integer(name: str, shape: list[int]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    side = math.isqrt(shape[0])
    return _official_index(side, side)


@functools.cache
def _official_index(H: int, W: int) -> Tensor:
    """(Δrow + H - 1)(2W - 1) + (Δcolumn + W - 1) of each query and key, Δ = query - key."""
    places = [(row, column) for row in range(H) for column in range(W)]
    return torch.tensor(
        [
            [(qr - kr + H - 1) * (2 * W - 1) + (qc - kc + W - 1) for kr, kc in places]
            for qr, qc in places
        ]
    )


@functools.cache
def _on_meta(preset: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(preset=preset)


def _converted(preset: str, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    # .to() before loading: weights rounded to float32 on the way move the logits by 7e-7
    model = create_model(preset=preset, **options).to(dtype).eval()
    model.load_state_dict(convert_official(preset, _official(preset)))
    return model


def _logits(model: nn.Module, dtype: torch.dtype = torch.float64) -> Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(weights.images(seed=0)).to(dtype)).double()


def _difference(logits: Tensor, preset: str) -> float:
    """The largest of the first 16 classes, relative to the largest logit of the image."""
    measured = _measured(preset)
    expected = torch.tensor(measured["logits_f64_first16"], dtype=torch.float64)
    largest = torch.tensor(measured["logits_f64_absmax"], dtype=torch.float64)
    return ((logits[:, :16] - expected).abs().amax(dim=1) / largest).max().item()


# --- Logits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", MEASURED)
def test_official_weights_give_the_logits_of_the_authors_code(preset):
    logits, measured = _logits(_converted(preset)), _measured(preset)
    tolerance = TOLERANCES[torch.float64]
    assert logits.shape == (2, 1000)
    assert _difference(logits, preset) < tolerance
    for image, largest in enumerate(measured["logits_f64_absmax"]):
        absolute = tolerance * largest
        assert logits[image].abs().max().item() == pytest.approx(largest, rel=0, abs=absolute)
        total = pytest.approx(measured["logits_f64_sum"][image], rel=0, abs=1000 * absolute)
        assert logits[image].sum().item() == total


# lit_ti's own rounding comes near the bar: 6e-5 in the authors' code
@pytest.mark.parametrize("preset", ["ff_tiny", "lit_s"])
def test_float32_weights_give_those_logits_to_float32(preset):
    logits = _logits(_converted(preset, torch.float32), torch.float32)
    assert _difference(logits, preset) < TOLERANCES[torch.float32]


def _set_eps(suffix: str, eps: float) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        norms = [module for name, module in model.named_modules() if name.endswith(suffix)]
        assert norms
        for norm in norms:
            assert norm.eps != eps
            norm.eps = eps

    return change


def _swap_offset_axes(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if ".offset." in name:  # (y, x) of each kernel position -> (x, y)
            parameter.data = parameter.data.unflatten(0, (4, 2)).flip(1).flatten(0, 1)


def _key_minus_query(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("rel_pos_table"):
            parameter.data = parameter.data.flip(0)


def _nothing(model: nn.Module) -> None:
    pass


@pytest.mark.parametrize(
    ("preset", "options", "change"),
    [
        ("ff_tiny", {"norm_eps": 1e-5}, _nothing),
        ("ff_tiny", {"channels_first": False}, _nothing),
        ("ff_tiny", {}, _set_eps(".mixer.norm", 1e-5)),
        ("lit_ti", {"norm_eps": 1e-5}, _nothing),
        ("lit_ti", {}, _set_eps("stem.norm", 1e-6)),
        ("lit_s", {"norm_eps": 1e-6}, _nothing),
        ("lit_s", {}, _set_eps(".merging.norm", 1e-6)),
        ("lit_s", {}, _swap_offset_axes),
        ("lit_s", {}, _key_minus_query),
    ],
    ids=[
        "eps of the blocks of ff_tiny",
        "channels after tokens",
        "eps of the norms over tokens",
        "eps of the blocks of lit_ti",
        "eps of the stem",
        "eps of the blocks of lit_s",
        "eps of the BatchNorms",
        "offsets in (x, y)",
        "index by key - query",
    ],
)
def test_a_slip_would_show_in_the_logits(preset, options, change):
    model = _converted(preset, **options)
    change(model)
    assert _difference(_logits(model), preset) > 10 * TOLERANCES[torch.float64]


@pytest.mark.parametrize("preset", ["ff_tiny", "lit_s"])
def test_an_approximate_gelu_would_show_in_the_logits(preset, monkeypatch):
    model, exact = _converted(preset), nn.functional.gelu
    monkeypatch.setattr(nn.functional, "gelu", lambda x: exact(x, approximate="tanh"))
    assert _difference(_logits(model), preset) > TOLERANCES[torch.float32]


def test_the_position_table_of_ff_large_becomes_the_mean_of_each_2_x_2_positions():
    size = {"dim": 8, "depth": 1, "num_heads": 1}
    positions = create_model(preset="ff_large", size=size).double().pos_embed
    assert positions.table.shape == (1, 1 + 14 * 14, 8)
    image = positions.table[:, 1:].unflatten(1, (7, 2, 7, 2)).mean(dim=(2, 4))
    expected = torch.cat([positions.table[:, :1], image.flatten(1, 2)], dim=1)
    torch.testing.assert_close(positions(TokenGrid(7, 7, prefix=1)), expected)


# --- Names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", OFFICIAL)
def test_every_official_entry_has_one_place_in_our_model(preset):
    official, model = _empty(preset), _on_meta(preset)
    converted = convert_official(preset, official)
    expected = model.state_dict()
    assert list(converted) == list(expected)
    for name, tensor in converted.items():
        assert (name, tensor.shape) == (name, expected[name].shape)
    numbers = [
        sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
        for state in (official, converted)
    ]
    assert numbers[0] == numbers[1]
    places = [id(tensor) for tensor in converted.values()]
    left = [name for name, tensor in official.items() if places.count(id(tensor)) != 1]
    if preset.startswith("ff"):  # theirs is an image and a vector, ours one table
        assert left == ["pos_encoding.pos_embed", "pos_encoding.cls_pos_embed"]
    else:  # computed, see below
        assert all(name.endswith("relative_position_index") for name in left)


@pytest.mark.parametrize("preset", OFFICIAL)
def test_our_model_has_as_many_parameters_as_theirs(preset):
    parameters = sum(parameter.numel() for parameter in _on_meta(preset).parameters())
    assert parameters == _reference(preset)["parameters"]


@pytest.mark.parametrize(
    ("preset", "theirs", "ours"),
    [
        ("ff_large", "blocks.23.norm1.weight", "blocks.23.norm2.weight"),
        ("ff_large", "blocks.23.norm2.weight", "blocks.23.mixer.norm.weight"),
        ("ff_large", "blocks.23.mlp1.fc2.bias", "blocks.23.channel_mixer.fc2.bias"),
        ("ff_large", "blocks.23.mlp2.fc2.bias", "blocks.23.mixer.fc2.bias"),
        ("lit_b", "layers.2.blocks.17.attn.qkv.weight", "stages.2.blocks.17.mixer.qkv.weight"),
        ("lit_b", "layers.2.downsample.dconv.weight", "stages.3.merging.conv.weight"),
        ("lit_b", "layers.0.blocks.1.norm2.weight", "stages.0.blocks.1.norm2.weight"),
    ],
)
def test_entries_of_the_models_without_measured_logits_are_where_they_belong(preset, theirs, ours):
    official = _empty(preset)
    assert convert_official(preset, official)[ours] is official[theirs]


def test_the_position_image_of_the_feed_forward_models_is_read_row_by_row_behind_the_class_token():
    official = dict(_official("ff_tiny"))
    table = convert_official("ff_tiny", official)["pos_embed.table"]
    assert torch.equal(table[0, 0], official["pos_encoding.cls_pos_embed"][0, 0])
    for row, column in ((0, 0), (0, 13), (5, 2), (13, 13)):
        theirs = official["pos_encoding.pos_embed"][0, :, row, column]
        assert torch.equal(table[0, 1 + 14 * row + column], theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("preset", MEASURED)
def test_the_type_of_numbers_stays_as_given(preset, dtype):
    converted = convert_official(preset, _empty(preset, dtype))
    counters = {n: t.dtype for n, t in converted.items() if n.endswith("num_batches_tracked")}
    assert set(counters.values()) <= {torch.int64}
    assert {t.dtype for n, t in converted.items() if n not in counters} == {dtype}


@pytest.mark.parametrize("preset", ["lit_ti", "lit_s"])
def test_batch_counters_are_kept_and_start_at_zero_where_they_are_missing(preset):
    without = dict(_official(preset))
    counters = [n for n in _reference(preset)["state_dict"] if n.endswith("num_batches_tracked")]
    assert counters
    assert not set(counters) & set(without)
    given = {**without, **{name: torch.tensor(7) for name in counters}}
    for official, count in ((without, 0), (given, 7)):
        converted = convert_official(preset, official)
        kept = [t for name, t in converted.items() if name.endswith("num_batches_tracked")]
        assert kept == [torch.tensor(count)] * len(counters)
        assert {t.dtype for t in kept} == {torch.int64}


def test_the_stored_position_index_may_be_missing():
    with_index = _empty("lit_s")
    without = {n: t for n, t in with_index.items() if not n.endswith("relative_position_index")}
    assert len(without) == len(with_index) - 8
    for state in (with_index, without):
        assert _are_the_same(convert_official("lit_s", state), without)


def test_a_stored_position_index_by_key_minus_query_is_refused():
    state = _empty("lit_s")
    state["layers.3.blocks.1.attn.relative_position_index"] = _official_index(7, 7).T
    message = _refusal("lit_s", state)
    assert "1 unexpected: layers.3.blocks.1.attn.relative_position_index." in message


@pytest.mark.parametrize("height_width", [(14, 14), (7, 7), (3, 5)], ids=str)
def test_our_position_index_is_the_official_one(height_width):
    grid = TokenGrid(*height_width)
    mixer = create_mixer("attention", dim=8, grid=grid, num_heads=2, rel_pos_bias=True)
    assert torch.equal(mixer.rel_pos_index, _official_index(*height_width))
    assert "rel_pos_index" not in mixer.state_dict()


# --- Wrappers and what is refused -------------------------------------------------------------


def _are_the_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """The tensors themselves, not equal ones."""
    return {id(tensor) for tensor in one.values()} == {id(tensor) for tensor in other.values()}


def _parallel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


WRAPPERS = {
    "none": lambda state, other: state,
    "model": lambda state, other: {"model": state, "epoch": 299},
    "state_dict": lambda state, other: {"state_dict": state, "arch": "lit"},
    "module.": lambda state, other: _parallel(state),
    "module. in model": lambda state, other: {"model": _parallel(state)},
    "beside a moving average": lambda state, other: {"model_ema": other, "model": state},
    "beside timm's moving average": lambda state, other: {
        "state_dict_ema": other,
        "state_dict": state,
    },
}
EMA_WRAPPERS = {
    "model_ema": lambda state, other: {"model": other, "model_ema": state},
    "state_dict_ema": lambda state, other: {"state_dict": other, "state_dict_ema": state},
    "module. in model_ema": lambda state, other: {"model": other, "model_ema": _parallel(state)},
    "alone": lambda state, other: {"state_dict_ema": state},
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_weights_are_found_in_any_wrapper(wrap):
    state = _empty("lit_ti")
    found = convert_official("lit_ti", wrap(state, _empty("lit_ti")))
    assert _are_the_same(found, state)


@pytest.mark.parametrize("wrap", EMA_WRAPPERS.values(), ids=EMA_WRAPPERS)
def test_the_moving_average_is_found_when_asked_for(wrap):
    state = _empty("lit_ti")
    found = convert_official("lit_ti", wrap(state, _empty("lit_ti")), ema=True)
    assert _are_the_same(found, state)


def _refusal(preset: str, state: Mapping[str, Any], *, ema: bool = False) -> str:
    with pytest.raises(ValueError) as error:
        convert_official(preset, state, ema=ema)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_a_moving_average_that_is_not_there_is_refused(wrapper):
    state = _empty("lit_ti")
    content = state if wrapper is None else {wrapper: state}
    assert "no moving average" in _refusal("lit_ti", content, ema=True)


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"epoch": 3}], ids=str)
def test_a_checkpoint_without_weights_is_refused(content):
    assert "no weights" in _refusal("lit_ti", content)


def test_a_missing_entry_is_named():
    state = _empty("lit_s")
    del state["norm.bias"]
    assert "1 missing: norm.bias." in _refusal("lit_s", state)


def test_an_unexpected_entry_is_named():
    state = _empty("lit_s") | {"aux_head.weight": torch.zeros(3)}
    assert "1 unexpected: aux_head.weight." in _refusal("lit_s", state)


def test_an_entry_of_another_shape_is_named_with_both_shapes():
    state = _empty("lit_s") | {"head.bias": torch.zeros(21841)}
    assert "1 of another shape: head.bias (21841,) for (1000,)." in _refusal("lit_s", state)


def test_all_that_is_wrong_is_said_at_once():
    state = _empty("ff_tiny") | {"extra": torch.zeros(3), "head.bias": torch.zeros(2)}
    del state["norm.bias"]
    message = _refusal("ff_tiny", state)
    for part in ("norm.bias", "extra", "head.bias (2,)"):
        assert message.count(part) == 1


@pytest.mark.parametrize("name", ["pos_embed", "cls_pos_embed"])
def test_half_a_position_table_is_refused(name):
    state = _empty("ff_tiny")
    del state[f"pos_encoding.{name}"]
    assert "1 missing: pos_embed.table" in _refusal("ff_tiny", state)


def test_a_position_table_of_another_width_is_refused():
    state = _empty("ff_tiny")
    state["pos_encoding.cls_pos_embed"] = torch.zeros(1, 1, 7)
    assert "pos_encoding.pos_embed (1, 192, 14, 14) for" in _refusal("ff_tiny", state)


@pytest.mark.parametrize("preset", ["sasa_r50", "attention_only_tiny"])
def test_a_preset_without_published_code_is_refused_with_those_that_have(preset):
    message = _refusal(preset, {})
    assert f"preset {preset!r} has no published code" in message
    known = message.rpartition(": ")[2].rstrip(".").split(", ")
    assert known == WITH_CODE
    assert {*OFFICIAL, *DEPTHS} < set(known)


@pytest.mark.parametrize(
    ("preset", "other"),
    [
        ("lit_m", "lit_s"),
        ("lit_s", "lit_m"),
        ("lit_s", "lit_ti"),
        ("lit_ti", "lit_s"),
        ("lit_m", "lit_b"),
        ("ff_tiny", "ff_base"),
        ("ff_base", "ff_large"),
        ("deit_base", "ff_base"),
        ("resnet50", "lit_b"),
    ],
)
def test_the_weights_of_another_preset_are_refused(preset, other):
    message = _refusal(preset, _empty(other))
    assert message.startswith(f"the checkpoint is not of preset {preset}. ")


# --- timm's DeiT and torchvision's ResNet -----------------------------------------------------


def _assert_same_logits(preset: str, theirs: nn.Module) -> None:
    theirs = theirs.double().eval()
    with torch.device("meta"):  # initialising it would take as long as the rest
        ours = create_model(preset=preset).eval()
    ours.load_state_dict(convert_official(preset, theirs.state_dict()), assign=True)
    images = torch.from_numpy(weights.images()).double()[:1]
    with torch.no_grad():
        logits, expected = ours(images), theirs(images)
    assert logits.shape == expected.shape == (1, 1000)
    assert (logits - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.parametrize("preset", [name for name in WITH_CODE if name.startswith("deit")])
def test_timms_deit_gives_its_logits(preset, perturb):
    _assert_same_logits(preset, perturb(timm.create_model(f"{preset}_patch16_224")))


def test_a_distilled_deit_is_not_taken_for_a_plain_one():
    with torch.device("meta"):
        distilled = timm.create_model("deit_tiny_distilled_patch16_224").state_dict()
        plain = timm.create_model("deit_tiny_patch16_224").state_dict()
    assert "3 unexpected: dist_token, head_dist.weight, head_dist.bias" in _refusal(
        "deit_tiny", distilled
    )
    assert "3 missing: dist_token, head_dist.weight, head_dist.bias" in _refusal(
        "deit_tiny_distilled", plain
    )


@pytest.mark.parametrize("preset", DEPTHS)
def test_torchvisions_resnet_gives_its_logits(preset, perturb):
    theirs = perturb(ResNet(Bottleneck, DEPTHS[preset]))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    _assert_same_logits(preset, theirs)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("pos_encoding.pos_embed", (1, 192, 7, 28)),  # as many positions, in another order
        ("pos_encoding.pos_embed", (1, 192, 7, 7)),
        ("pos_encoding.pos_embed", (2, 192, 14, 14)),
        ("pos_encoding.cls_pos_embed", (2, 1, 192)),
    ],
)
def test_a_misshapen_position_table_is_named_with_its_own_shape(name, shape):
    state = {**_official("ff_tiny"), name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=re.escape(f"{name} {shape} for")):
        convert_official("ff_tiny", state)


@pytest.mark.parametrize("average", [None, 0.9999])
def test_a_moving_average_that_holds_no_weights_is_refused(average):
    content = {**_official("ff_tiny"), "model_ema": average}
    with pytest.raises(ValueError, match="no moving average"):
        convert_official("ff_tiny", content, ema=True)


def test_names_and_shapes_alone_can_be_converted():
    state = {name: tensor.to("meta") for name, tensor in _official("lit_s").items()}
    converted = convert_official("lit_s", state)
    assert all(t.is_meta for t in converted.values() if t.is_floating_point())
