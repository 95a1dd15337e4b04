"""Registering, naming and building: what is refused, and how it is said."""

import sys

import pytest

import mixers
from mixers import TokenGrid, TokenMixer, create_mixer, list_mixers, load_plugin
from mixers.registry import Registry


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
    with pytest.raises(RuntimeError, match="on purpose"):
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
