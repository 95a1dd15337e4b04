"""What every registered mixer must do: a new one is tested by existing."""

import io

import pytest
import torch
from torch import Tensor

from mixers import MIXERS, TokenGrid, TokenMixer, create_mixer, list_mixers

DIM, HEADS = 16, 2
GRID, OTHER_GRID = TokenGrid(3, 4), TokenGrid(5, 2)

every_mixer = pytest.mark.parametrize("name", list_mixers())


def _fact(name: str, fact: str) -> bool:
    return MIXERS.facts(name)[fact]


any_grid = pytest.mark.parametrize("name", [n for n in list_mixers() if _fact(n, "any_grid")])
one_grid = pytest.mark.parametrize("name", [n for n in list_mixers() if not _fact(n, "any_grid")])
mixes_prefix = pytest.mark.parametrize(
    "name", [n for n in list_mixers() if _fact(n, "mixes_prefix")]
)


def _build(name: str, grid: TokenGrid = GRID) -> TokenMixer:
    return create_mixer(name, DIM, grid, HEADS)


def _tokens(grid: TokenGrid = GRID, samples: int = 2) -> Tensor:
    return torch.randn(samples, grid.tokens, DIM)


@every_mixer
def test_keeps_the_shape(name):
    assert _build(name)(_tokens(), GRID).shape == (2, GRID.tokens, DIM)


@mixes_prefix
@pytest.mark.parametrize("prefix", [1, 2])
def test_keeps_the_shape_with_prefix_tokens(name, prefix):
    grid = GRID._replace(prefix=prefix)
    assert _build(name, grid)(_tokens(grid), grid).shape == (2, grid.tokens, DIM)


@mixes_prefix
def test_carries_information_between_prefix_and_grid_as_it_claims(name):
    grid = GRID._replace(prefix=1)
    x = _tokens(grid).requires_grad_()
    y = _build(name, grid)(x, grid)
    (to_prefix,) = torch.autograd.grad(y[:, 0].sum(), x, retain_graph=True)
    (to_grid,) = torch.autograd.grad(y[:, 1:].sum(), x)
    assert to_prefix[:, 1:].abs().max() > 0
    assert to_grid[:, 0].abs().max() > 0


@every_mixer
def test_every_parameter_gets_a_gradient(name):
    mixer = _build(name)
    x = _tokens()
    y = mixer(x, GRID)
    if not y.requires_grad:
        assert not list(mixer.parameters())
        return
    (y * torch.randn_like(y)).sum().backward()
    silent = [
        path
        for path, parameter in mixer.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert silent == []


@every_mixer
def test_samples_do_not_see_each_other(name):
    mixer = _build(name).eval()
    x = _tokens()
    other = torch.cat([x[:1], torch.randn_like(x[1:])])
    assert torch.equal(mixer(x, GRID)[0], mixer(other, GRID)[0])


@every_mixer
def test_leaves_its_input_as_it_was(name):
    x = _tokens()
    before = x.clone()
    _build(name)(x, GRID)
    assert torch.equal(x, before)


@any_grid
def test_runs_on_another_grid_as_it_claims(name):
    y = _build(name)(_tokens(OTHER_GRID), OTHER_GRID)
    assert y.shape == (2, OTHER_GRID.tokens, DIM)


@any_grid
def test_another_grid_needs_no_other_weights(name):
    there = _build(name, OTHER_GRID)
    here = _build(name, GRID)
    here.load_state_dict(there.state_dict())
    x = _tokens(OTHER_GRID)
    assert torch.equal(here.eval()(x, OTHER_GRID), there.eval()(x, OTHER_GRID))


@one_grid
def test_refuses_another_grid_and_names_both(name):
    with pytest.raises(ValueError, match=r"3 x 4 .* 5 x 2") as error:
        _build(name)(_tokens(OTHER_GRID), OTHER_GRID)
    assert "\n" not in str(error.value)


@one_grid
def test_refuses_a_transposed_grid_of_as_many_tokens(name):
    transposed = TokenGrid(GRID.width, GRID.height)
    with pytest.raises(ValueError, match=r"3 x 4 .* 4 x 3"):
        _build(name)(_tokens(transposed), transposed)


@every_mixer
def test_declares_its_facts(name):
    cls = MIXERS.get(name)
    assert issubclass(cls, TokenMixer)
    for fact in ("any_grid", "mixes_prefix", "adds_sub_layer"):
        assert isinstance(getattr(cls, fact), bool), fact
    assert "arXiv:" in cls.paper
    assert isinstance(cls.no_weight_decay, tuple)
    assert cls.__doc__, "the first paragraph is its line in `mixerbench list mixers`"


@every_mixer
def test_declares_its_formula_in_one_line(name):
    formula = MIXERS.get(name).formula
    assert formula.startswith("y")
    assert " = " in formula
    assert formula.isprintable()


def test_a_plugin_need_not_declare_a_formula():
    assert TokenMixer.formula == ""


@every_mixer
def test_parameters_without_weight_decay_exist_under_the_declared_names(name):
    mixer = _build(name)
    for parameter in MIXERS.get(name).no_weight_decay:
        assert hasattr(mixer, parameter), parameter  # None while an option is off


@every_mixer
def test_is_deterministic_in_eval(name):
    mixer = _build(name).eval()
    x = _tokens()
    assert torch.equal(mixer(x, GRID), mixer(x, GRID))


@every_mixer
def test_the_seed_decides_the_initial_weights(name):
    torch.manual_seed(3)
    one = _build(name).state_dict()
    torch.manual_seed(3)
    other = _build(name).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@every_mixer
def test_state_dict_round_trip_gives_the_same_mixer(name, randomize):
    mixer, other = randomize(_build(name)).eval(), _build(name).eval()
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = _tokens()
    assert torch.equal(other(x, GRID), mixer(x, GRID))


@every_mixer
def test_bfloat16_autocast_stays_near_float32(name, randomize, assert_close):
    mixer = randomize(_build(name)).eval()
    x = _tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x, GRID)
    assert_close(y, mixer(x, GRID), torch.bfloat16)


@every_mixer
def test_a_mixer_without_sub_layer_adds_zero(name):
    y = _build(name)(_tokens(), GRID)
    assert y.any() == _fact(name, "adds_sub_layer")
