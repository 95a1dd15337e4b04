"""Registering, naming and building: what is refused, and how it is said."""

import sys
from importlib.metadata import EntryPoint

import pytest
import torch

import mixers
from mixers import TokenGrid, TokenMixer, create_mixer, list_mixers, load_plugin
from mixers.core.plan import MixerChoice
from mixers.core.registry import BrokenCodeError, Registry


@pytest.fixture
def registry() -> Registry:
    """Rules of the mixers' registry, without its contents: nothing to clean up."""
    return Registry("mixer", "mixers", ("any_grid", "mixes_prefix", "paper"))


class Plain(TokenMixer):
    any_grid = True
    mixes_prefix = False
    paper = "arXiv:0000.00000"

    def forward(self, x, grid):
        return x


def test_a_registered_class_is_listed_found_and_built(registry):
    assert registry.register("plain")(Plain) is Plain
    assert registry.names() == ["plain"]
    assert registry.get("plain") is Plain
    built = registry.create("plain", 8, TokenGrid(2, 3), 2)
    assert (built.dim, built.grid, built.num_heads) == (8, TokenGrid(2, 3), 2)
    assert registry.facts("plain")["any_grid"] is True


def test_a_taken_name_is_refused_and_says_by_whom(registry):
    registry.register("plain")(Plain)
    with pytest.raises(ValueError, match=r"mixer 'plain' is registered already, by .*Plain"):
        registry.register("plain")(Plain)


@pytest.mark.parametrize("fact", ["any_grid", "mixes_prefix", "paper"])
def test_a_class_that_does_not_declare_a_fact_is_refused(fact, registry):
    facts = {"any_grid": True, "mixes_prefix": True, "paper": ""}
    del facts[fact]
    with pytest.raises(ValueError, match=f"'mine' does not declare its '{fact}'"):
        registry.register("mine")(type("Mine", (TokenMixer,), facts))
    assert registry.names() == []


def test_an_option_without_a_type_is_refused(registry):
    class Untyped(Plain):
        def __init__(self, dim, grid, num_heads, *, window=3):
            super().__init__(dim, grid, num_heads)

    with pytest.raises(ValueError, match="option 'window' has no type"):
        registry.register("untyped")(Untyped)


def test_listeners_hear_of_every_later_name(registry):
    heard = []
    registry.register("early")(Plain)
    registry.on_register(heard.append)
    registry.register("late")(Plain)
    assert heard == ["late"]


def test_names_are_sorted_and_the_first_five_are_there():
    assert list_mixers() == sorted(list_mixers())
    assert {"attention", "patch_ff", "local_attention", "identity", "none"} <= set(list_mixers())


def test_an_unknown_mixer_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown mixer 'atention'\. Did you mean 'attention'\?"):
        create_mixer("atention", 8, TokenGrid(2, 2))


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"'local_attention' has no option 'windw'\. Did you mean 'wi"
    ):
        create_mixer("local_attention", 8, TokenGrid(2, 2), 2, windw=3)
    with pytest.raises(ValueError, match=r"'identity' has no option 'x'\. It has none\."):
        create_mixer("identity", 8, TokenGrid(2, 2), x=1)


def test_options_reach_the_mixer():
    assert create_mixer("local_attention", 8, TokenGrid(2, 2), 2, window=3).window == 3


def test_the_package_offers_each_name_it_lists_and_no_other():
    for name in mixers.__all__:
        assert getattr(mixers, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'create_mixr'"):
        mixers.create_mixr  # noqa: B018


def test_a_grid_counts_its_tokens_and_reads_as_rows_x_columns():
    assert TokenGrid(3, 4).tokens == 12
    assert TokenGrid(3, 4, prefix=2).tokens == 14
    assert str(TokenGrid(3, 4)) == "3 x 4"
    assert str(TokenGrid(3, 4, prefix=2)) == "3 x 4 + 2"


def test_a_plugin_runs_once_per_path(tmp_path):
    path, runs = tmp_path / "counts.py", tmp_path / "runs"
    path.write_text(f"with open({str(runs)!r}, 'a') as f: f.write('x')\n")
    load_plugin(path)
    load_plugin(str(path))
    assert runs.read_text() == "x"


def test_a_plugin_that_failed_can_be_loaded_when_mended(tmp_path):
    path, runs = tmp_path / "fails.py", tmp_path / "runs"
    path.write_text("raise RuntimeError('on purpose')\n")
    before = set(sys.modules)
    with pytest.raises(BrokenCodeError, match=r"plugin fails\.py raised RuntimeError: on pur"):
        load_plugin(path)
    assert set(sys.modules) == before
    path.write_text(f"with open({str(runs)!r}, 'a') as f: f.write('mended')\n")
    load_plugin(path)
    assert runs.read_text() == "mended"


@pytest.mark.parametrize("name", ["absent.py", "notes.txt"])
def test_a_plugin_that_is_no_python_file_is_refused(name, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="is not a Python file"):
        load_plugin(tmp_path / name)


def test_a_plugin_whose_second_class_is_refused_leaves_nothing_behind(tmp_path, clean_registry):
    path = tmp_path / "half.py"
    text = (
        "from mixers import TokenMixer, register_mixer\n"
        "class Base(TokenMixer):\n    any_grid = mixes_prefix = True\n    paper = ''\n"
        "@register_mixer('test_half_one')\nclass One(Base): pass\n"
    )
    path.write_text(text + "register_mixer('attention')(One)\n")
    with pytest.raises(ValueError, match="'attention' is registered already"):
        load_plugin(path)
    path.write_text(text)
    load_plugin(path)


def test_a_mixer_cannot_take_the_name_of_a_schedule(clean_registry):
    with pytest.raises(ValueError, match="'lit'"):
        mixers.register_mixer("lit")(Plain)


class Options(Plain):
    def __init__(self, dim, grid, num_heads, *, window: int):
        super().__init__(dim, grid, num_heads)
        if window < 1:
            raise ValueError(f"a window of {window}\nis empty")
        [self.one] = [0] * window


class NoHeads(Plain):
    def __init__(self, dim, grid):
        super().__init__(dim, grid, 1)


class OnePlaceMore(Plain):
    def __init__(self, dim, grid, num_heads, window=3):
        super().__init__(dim, grid, num_heads)


class NoInit(Plain):
    def __init__(self, dim, grid, num_heads):
        pass


class NoSuper(Plain):
    def __init__(self, dim, grid, num_heads):
        self.layer = torch.nn.Linear(dim, dim)


class OtherWidth(Plain):
    def __init__(self, dim, grid, num_heads):
        super().__init__(dim // 2, grid, num_heads)


class Leaving(Plain):
    def __init__(self, dim, grid, num_heads):
        super().__init__(dim, grid, num_heads)
        sys.exit(0)


class Abstract(TokenMixer):
    any_grid, mixes_prefix, paper = True, False, ""


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoHeads, r"'mine': __init__ takes \(self, dim, grid\) and must take \(self, dim, grid, n"),
        (OnePlaceMore, r"takes \(self, dim, grid, num_heads, window\) and must take .*\*, option"),
        (torch.nn.Identity, "mixer 'mine' is no TokenMixer"),
        (len, "mixer 'mine' is no TokenMixer"),
    ],
)
def test_a_class_that_cannot_be_built_as_a_mixer_is_refused_at_once(cls, message, clean_registry):
    with pytest.raises(ValueError, match=message) as error:
        mixers.register_mixer("mine")(cls)
    assert "\n" not in str(error.value)
    assert "mine" not in list_mixers()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Options, {}, "^mixer 'mine' has no default for 'window': give one.$"),
        (Options, {"window": 0}, r"'mine': its __init__ raised ValueError: a window of 0 \("),
        (Options, {"window": 2}, r"ValueError: too many .* \(.*test_mixer_registry.py:\d+\)$"),
        (NoSuper, {}, r"AttributeError: cannot assign module before .*_registry.py:\d+\)$"),
        (NoInit, {}, r"must call super\(\).__init__\(dim, .* self.dim at 8, and not at None"),
        (OtherWidth, {}, r"leave self.dim at 8, and not at 4\."),
        (Leaving, {}, r"mixer 'mine': its __init__ raised SystemExit: 0 \(.*:\d+\)"),
        (Abstract, {}, "TypeError: Can't instantiate abstract class Abstract"),
    ],
)
def test_a_class_that_is_not_built_as_a_mixer_is_refused_in_one_line(
    cls, options, message, clean_registry
):
    mixers.register_mixer("mine")(cls)
    with pytest.raises(ValueError, match=message) as error:
        create_mixer("mine", 8, TokenGrid(2, 2), 2, **options)
    assert "\n" not in str(error.value)


def test_a_mixer_knows_how_it_was_built():
    mixer = create_mixer("convolution", 8, TokenGrid(2, 2), kernel_size=5)
    assert mixer.built_as == MixerChoice("convolution", {"kernel_size": 5})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
        ("\nint('x')\n", "ValueError: invalid literal"),
        ("\nraise KeyError\n", "KeyError"),
    ],
)
def test_a_plugin_that_raises_says_what_and_where(text, said, tmp_path):
    path = tmp_path / "stops.py"
    path.write_text(text)
    with pytest.raises(BrokenCodeError) as error:
        load_plugin(path)
    assert str(error.value).startswith(f"plugin stops.py raised {said}")
    assert str(error.value).endswith(f"({path}:2)")


def test_an_installed_package_that_raises_is_named(tmp_path, monkeypatch):
    (tmp_path / "their_broken_module.py").write_text("raise KeyError('theirs')\n")
    point = EntryPoint("theirs", "their_broken_module", "mixerbench.mixers")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(mixers.core.registry, "entry_points", lambda group: [point])
    with pytest.raises(BrokenCodeError, match=r"'theirs', module their_broken_module .*KeyError"):
        Registry("mixer", "mixers").names()
