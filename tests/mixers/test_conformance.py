"""What every mixer must pass before it is ranked: one wrong mixer for each check, many right."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch
from torch import Tensor, nn

from mixerbench.models import create_model
from mixers import MIXERS, TokenGrid, TokenMixer, create_mixer, list_mixers
from mixers.core.conformance import CHECKS, NonconformingMixer, check_mixer, check_mixers
from mixers.core.plan import MixerChoice
from mixers.core.registry import BrokenCodeError

DIM, HEADS = 8, 2
GRID, WITH_PREFIX = TokenGrid(3, 4), TokenGrid(3, 4, prefix=2)
GRIDS = [GRID, WITH_PREFIX, TokenGrid(14, 14), TokenGrid(1, 1), TokenGrid(2, 1), TokenGrid(24, 25)]
OPTIONS = [
    ("attention", {"rel_pos_bias": True, "attn_drop": 0.1, "proj_drop": 0.1}),
    ("patch_ff", {"norm": "tokens", "hidden_dim": 4}),
    ("local_attention", {"window": 4, "border": "masked", "out_proj": False}),
    ("convolution", {"depthwise": True, "kernel_size": 5, "bias": True}),
]


class Right(TokenMixer):
    """The mean of all tokens beside each token: what the wrong ones below spoil."""

    any_grid = True
    mixes_prefix = True
    paper = ""

    def __init__(self, dim: int, grid: TokenGrid, num_heads: int) -> None:
        super().__init__(dim, grid, num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        return self.proj(x + x.mean(1, keepdim=True))


def build(cls: type[TokenMixer], grid: TokenGrid = GRID) -> TokenMixer:
    return cls(DIM, grid, HEADS)


def refusal_of(mixer: TokenMixer, check: str) -> str:
    with pytest.raises(NonconformingMixer) as error:
        check_mixer(mixer, "mine")
    said = str(error.value)
    assert f"mixer 'mine' (8 channels, {mixer.grid} tokens) fails the check '{check}': " in said
    assert "expected " in said
    assert ", found " in said
    assert "\n" not in said
    return said


class Shape(Right):
    def forward(self, x, grid):
        return super().forward(x, grid)[:, 1:]


class Tuple(Right):
    def forward(self, x, grid):
        return super().forward(x, grid), None


class Type(Right):
    def forward(self, x, grid):
        return super().forward(x, grid).half()


class NotANumber(Right):
    def forward(self, x, grid):
        y = super().forward(x, grid)
        return torch.where(torch.arange(x.shape[1])[:, None] == 5, torch.nan, y)


class Overwrites(Right):
    pre_norm = False

    def forward(self, x, grid):
        x += x.mean(1, keepdim=True)
        return self.proj(x)


class DropoutInEvaluation(Right):
    def forward(self, x, grid):
        return nn.functional.dropout(super().forward(x, grid), 0.5, training=True)


class SoftmaxOverTheBatch(Right):
    def forward(self, x, grid):
        return super().forward(x, grid).softmax(0)


class BatchHiddenByAZero(Right):
    """What starts at zero hides no fault."""

    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x, grid):
        return super().forward(x, grid) + self.scale * x.mean(0)


class OneImageAtATime(Right):
    def forward(self, x, grid):
        return super().forward(x, grid)[:1]


class BatchInTraining(Right):
    def forward(self, x, grid):
        y = super().forward(x, grid)
        return y - y.mean(0) if self.training else y


class DetachedBatchInTraining(Right):
    def forward(self, x, grid):
        y = super().forward(x, grid)
        return y - y.mean(0).detach() if self.training else y


class DeadParameter(Right):
    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
        self.dead = nn.Linear(dim, dim)


class TimesZero(DeadParameter):
    def forward(self, x, grid):
        return super().forward(x, grid) + 0 * self.dead(x)


class WildGradient(Right):
    def forward(self, x, grid):
        ones = (self.proj.weight * 0).sum().sqrt()  # its value is 0, its gradient 0 * infinity
        return super().forward(x, grid) + ones


class NoMixing(Right):
    def forward(self, x, grid):
        return self.proj(x)


class RoundTrip(Right):
    """No mixing, but for rounding."""

    def forward(self, x, grid):
        return self.proj(torch.fft.ifft(torch.fft.fft(x, dim=1), dim=1).real)


class ZeroedToken(Right):
    def forward(self, x, grid):
        y = super().forward(x, grid)
        return torch.cat([torch.zeros_like(y[:, : grid.prefix]), y[:, grid.prefix :]], 1)


class DeafSecondToken(Right):
    def forward(self, x, grid):
        y = super().forward(x, grid)
        return torch.cat([y[:, :1], self.proj(x[:, 1:2]), y[:, 2:]], 1)


class OneGrid(Right):
    def forward(self, x, grid):
        self.check_grid(grid)
        return super().forward(x, grid)


class WrongOnAnother(Right):
    def forward(self, x, grid):
        return super().forward(x, grid)[:, : self.grid.tokens]


@pytest.mark.parametrize(
    ("cls", "check", "found"),
    [
        (Shape, "output shape", r"(1, 12, 8) of (1, N, C), found (1, 11, 8)."),
        (Tuple, "output shape", "found a tuple."),
        (Type, "output type", "expected torch.float32, as the tokens are, found torch.float16."),
        (NotANumber, "finite output", "found 8 of 96 NaN or infinite."),
        (Overwrites, "untouched input", "found them overwritten."),
        (DropoutInEvaluation, "same output twice", "found two, "),
        (SoftmaxOverTheBatch, "batch independence", "found a difference of "),
        (BatchHiddenByAZero, "batch independence", "found a difference of "),
        (OneImageAtATime, "batch independence", "the shape (2, 12, 8), found (1, 12, 8)."),
        (BatchInTraining, "batch independence in training", "found a gradient from one image"),
        (DetachedBatchInTraining, "batch independence in training", "found a difference of "),
        (DeadParameter, "gradients", "found none for 'dead.weight', 'dead.bias'."),
        (TimesZero, "gradients", "found none for 'dead.weight', 'dead.bias'."),
        (WildGradient, "gradients", "found NaN or infinite ones for 'proj.weight'."),
        (NoMixing, "mixing", "found that no token changes when half of the others do."),
        (RoundTrip, "mixing", "found that no token changes when half of the others do."),
        (ZeroedToken, "class token", "prefix token 0 to hear of the image, as mixes_prefix = True"),
        (ZeroedToken, "class token", "found that it does not: it is always zero."),
        (DeafSecondToken, "class token", "prefix token 1 to hear of the image"),
        (OneGrid, "any grid", "on 7 x 10 + 2 tokens too, as any_grid = True says"),
        (OneGrid, "any grid", "was built for 3 x 4 + 2 tokens and got 7 x 10 + 2"),
        (WrongOnAnother, "any grid", "the shape (1, 14, 8) for (1, 72, 8)."),
    ],
)
def test_a_wrong_mixer_is_refused_by_its_check(cls, check, found):
    grid = WITH_PREFIX if check in ("class token", "any grid") else GRID
    assert found in refusal_of(build(cls, grid), check)


def test_each_check_refuses_something():
    (mark,) = test_a_wrong_mixer_is_refused_by_its_check.pytestmark
    assert {case[1] for case in mark.args[1]} == set(CHECKS)


def test_the_mixer_that_the_wrong_ones_spoil_is_right():
    for grid in (GRID, WITH_PREFIX):
        check_mixer(build(Right, grid))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", list_mixers())
def test_every_mixer_passes(name, grid):
    if grid.prefix and not MIXERS.facts(name)["mixes_prefix"]:
        grid = grid._replace(prefix=0)
    check_mixer(create_mixer(name, DIM, grid, HEADS))


@pytest.mark.parametrize("grid", [GRID, TokenGrid(2, 1)], ids=str)
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_options_pass_too(name, options, grid):
    check_mixer(create_mixer(name, DIM, grid, HEADS, **options))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("convolution", {"kernel_size": 1}, "'mixing': expected .*mixes_tokens = False"),
        (
            "local_attention",
            {"window": 1, "border": "masked"},
            "'gradients': .* none for 'rel_row', 'rel_column'",
        ),
    ],
)
def test_an_option_that_leaves_nothing_to_mix_is_refused(name, options, said):
    mixer = create_mixer(name, DIM, TokenGrid(9, 9), HEADS, **options)
    with pytest.raises(NonconformingMixer, match=f"mixer '{name}' .* fails the check {said}"):
        check_mixer(mixer)


@pytest.mark.parametrize("grid", [GRID, TokenGrid(24, 25)], ids=str)
def test_a_mixer_that_halves_the_grid_passes(grid):
    check_mixer(MIXERS.build(MixerChoice("convolution"), DIM, grid, stride=2))


class ZeroProjection(Right):
    """Fixup, SkipInit, a last layer of zeros: nothing gets through at the start."""

    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x, grid):
        return self.out(super().forward(x, grid).relu())


class SpatialGating(Right):
    """gMLP: weights over tokens near zero, biases of one."""

    any_grid = False

    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
        self.tokens = nn.Linear(grid.tokens, grid.tokens)
        nn.init.zeros_(self.tokens.weight)
        nn.init.ones_(self.tokens.bias)

    def forward(self, x, grid):
        u = self.proj(x)
        return u * self.tokens(x.transpose(1, 2)).transpose(1, 2)


class RootOfAZero(Right):
    """No weight may be moved below what its function takes."""

    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
        self.scale = nn.Parameter(torch.full((64,), 1e-6))

    def forward(self, x, grid):
        return super().forward(x, grid) * (1 + self.scale.log().mean())


class SeparateKeys(Right):
    """Softmax over one token has no gradient for its query and key."""

    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
        self.q, self.k = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x, grid):
        return (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.proj(x)


class ClassAttention(Right):
    """CaiT: the class token reads the image, which hears nothing, by weights of its own."""

    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
        self.reads = nn.Linear(dim, dim)

    def forward(self, x, grid):
        image = x[:, grid.prefix :]
        y = self.proj(image + image.mean(1, keepdim=True))
        token = self.reads(image.mean(1, keepdim=True)).expand(-1, grid.prefix, -1)
        return torch.cat([token, y], 1)


class OwnNorm(Right):
    """BatchNorm mixes a batch in training, and dropout hides nothing."""

    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
        self.norm, self.drop = nn.BatchNorm1d(dim), nn.Dropout(0.5)

    def forward(self, x, grid):
        return self.drop(self.norm(super().forward(x, grid).transpose(1, 2)).transpose(1, 2))


class HardDecisions(Right):
    """Signs, of which rounding turns some."""

    def forward(self, x, grid):
        y = super().forward(x, grid)
        return y.sign() + y - y.detach()  # its gradient goes straight through


class Router(Right):
    """Each token goes to the better of eight experts: some get none in a small batch."""

    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
        self.gate = nn.Linear(dim, 8)
        self.experts = nn.ModuleList(nn.Linear(dim, dim) for _ in range(8))

    def forward(self, x, grid):
        x = super().forward(x, grid)
        share, chosen = self.gate(x).softmax(-1).max(-1, keepdim=True)
        return share * sum(
            (chosen == i) * expert(x) for i, expert in enumerate(self.experts)
        )  # fmt: skip


class WideStep(Right):
    """The token five rows down: on a small grid there is none."""

    mixes_prefix = False

    def forward(self, x, grid):
        image = x.unflatten(1, grid[:2])
        below = nn.functional.pad(image[:, 5:], (0, 0, 0, 0, 0, min(5, grid.height)))
        return self.proj(image + below[:, : grid.height]).flatten(1, 2)


class Axis(TokenMixer):
    """Along columns only: on one row there is nobody to hear of."""

    any_grid = True
    mixes_prefix = False
    paper = ""

    def forward(self, x, grid):
        image = x.unflatten(1, grid[:2])
        return image.cumsum(1).flatten(1, 2)


@pytest.mark.parametrize(
    ("cls", "grid"),
    [
        (ZeroProjection, WITH_PREFIX),
        (SpatialGating, GRID),
        (RootOfAZero, GRID),
        (SeparateKeys, TokenGrid(1, 1)),
        (ClassAttention, WITH_PREFIX),
        (ClassAttention, GRID),
        (OwnNorm, GRID),
        (OwnNorm, TokenGrid(1, 1)),
        (HardDecisions, TokenGrid(20, 20)),
        (Router, TokenGrid(2, 2)),
        (WideStep, TokenGrid(3, 3)),
        (Axis, TokenGrid(1, 9)),
    ],
)
def test_a_sound_design_passes(cls, grid, clean_registry):
    MIXERS.register("sound")(cls)
    check_mixer(create_mixer("sound", DIM, grid, HEADS))


@pytest.mark.parametrize("name", ["attention", "patch_ff", "local_attention", "lit"])
def test_published_models_pass_with_a_size_of_seconds(name):
    for options in ({"image_size": 64}, {"backbone": "pyramid", "image_size": 64}):
        check_mixers(create_model(name, "micro", num_classes=2, **options))
    if name != "local_attention":
        check_mixers(create_model(name if name != "lit" else "attention", "micro", pool="token",
                                  image_size=32))  # fmt: skip


def test_identical_mixers_are_checked_once_and_different_ones_all(monkeypatch):
    checked = []
    monkeypatch.setattr("mixers.core.conformance.check_mixer", lambda mixer: checked.append(mixer))
    plan = ["attention", {"name": "attention", "proj_drop": 0.1}, "identity", "none"]
    model = create_model(plan, {"dim": 16, "depth": 8, "num_heads": 2}, image_size=32)
    check_mixers(model)
    built_as = [(mixer.built_as.name, dict(mixer.built_as.options)) for mixer in checked]
    assert built_as == [("attention", {}), ("attention", {"proj_drop": 0.1}), ("identity", {})]


def test_strides_and_grids_of_a_staged_model_are_different_mixers(monkeypatch):
    checked = []
    monkeypatch.setattr("mixers.core.conformance.check_mixer", lambda mixer: checked.append(mixer))
    size = {"dims": (4, 4, 4, 4), "depths": (2, 2, 2, 2), "num_heads": (1, 1, 1, 1)}
    check_mixers(create_model("convolution", size, backbone="resnet", image_size=64))
    assert [(m.grid.height, m.stride) for m in checked] == [
        (16, 1), (16, 2), (8, 1), (8, 2), (4, 1), (4, 2), (2, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("grid", [GRID, TokenGrid(24, 25)], ids=["small", "large"])
def test_a_check_leaves_no_trace(grid, clean_registry):
    MIXERS.register("own_norm")(OwnNorm)
    mixer = create_mixer("own_norm", DIM, grid, HEADS)
    mixer.norm.eval()
    mixer.proj.weight.grad = torch.ones(DIM, DIM)
    before = copy.deepcopy(mixer.state_dict())
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()
    check_mixer(mixer)
    assert all(torch.equal(before[key], value) for key, value in mixer.state_dict().items())
    assert [module.training for module in mixer.modules()] == [True, True, False, True]
    assert torch.equal(mixer.proj.weight.grad, torch.ones(DIM, DIM))
    assert torch.equal(mixer.norm.num_batches_tracked, torch.tensor(0))
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]
    assert np.array_equal(np.random.get_state()[1], drawn[2][1])


class RaisesInForward(Right):
    def forward(self, x, grid):
        raise KeyError("first line\nsecond line")


class Leaves(Right):
    def forward(self, x, grid):
        raise SystemExit(0)


class WrongMatrix(Right):
    def forward(self, x, grid):
        return self.proj(x[..., 1:])


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (RaisesInForward, "KeyError: 'first line"),
        (Leaves, "SystemExit: 0"),
        (WrongMatrix, "RuntimeError: "),
    ],
)
def test_what_a_forward_raises_is_one_line_with_its_place(cls, said):
    with pytest.raises(BrokenCodeError) as error:
        check_mixer(build(cls), "mine")
    line = cls.forward.__code__.co_firstlineno + 1
    assert str(error.value).startswith("mixer 'mine', on 3 x 4 tokens: its forward raised " + said)
    assert str(error.value).endswith(f"({Path(__file__)}:{line})")
    assert "\n" not in str(error.value)


PLUGIN = """\
from mixers import TokenMixer, register_mixer

@register_mixer("test_wrong")
class Wrong(TokenMixer):
    any_grid, mixes_prefix, paper = True, False, ""
    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
    def forward(self, x, grid):
        return x.softmax(0)
"""


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("", "", "mixer 'test_wrong' (16 channels, 4 x 4 tokens) fails the check 'batch "
         "independence': expected an image's output to be the same alone and among 2 in "),
        ("x.softmax(0)", "x[:, 1:]", "'output shape': expected (1, 16, 16) of (1, N, C), found (1"),
        ("x.softmax(0)", "x[5]", "its forward raised IndexError: "),
        ("num_heads):", "):", "__init__ takes (self, dim, grid) and must take (self, dim, grid, n"),
    ],
)  # fmt: skip
def test_a_run_of_a_wrong_plugin_is_refused_before_it_has_a_folder(
    right, wrong, said, refused, tmp_path, clean_registry
):
    path = tmp_path / "wrong.py"
    path.write_text(PLUGIN.replace(right, wrong) if right else PLUGIN)
    model = ["mixer=test_wrong", f"plugins=[{path}]", *tiny_runs.MODEL, "protocol.patch_size=4"]
    run = [*tiny_runs.DATA, *tiny_runs.RECIPE, *tiny_runs.RUN, f"run.root={tmp_path / 'runs'}"]
    error = refused("train", *model, *run)
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_check_changes_no_number_of_a_run(command, tmp_path, monkeypatch):
    """Dropout draws, in the run and in its check."""
    losses = []
    for place in ("checked", "unchecked"):
        if place == "unchecked":
            monkeypatch.setattr("mixerbench.training.prepare.check_mixers", lambda model: None)
        given = [*tiny_runs.MODEL, *tiny_runs.DATA, *tiny_runs.RECIPE, *tiny_runs.RUN]
        mixer = ["mixer=attention", "mixer.attn_drop=0.1", "mixer.proj_drop=0.1"]
        outcome = command("train", *mixer, *given, f"run.root={tmp_path / place}")
        assert outcome.code == 0, outcome.err
        (folder,) = (tmp_path / place).glob("*/*")
        losses.append(tiny_runs.losses(folder))
    assert losses[0]
    assert losses[0] == losses[1]
