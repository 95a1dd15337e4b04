"""The reader of source text and the loaded class never disagree, inheritance included."""

import importlib
import sys
from pathlib import Path

import pytest

from mixerbench.config.compose import compose
from mixerbench.config.parts import KINDS, part_catalog
from mixerbench.models.part_kinds import BACKBONES, CHANNEL_MIXERS, MERGINGS, STEMS
from mixers import MIXERS, Place, TokenGrid, create_mixer, list_mixers, load_plugin
from mixers.core.catalog import mixer_catalog
from mixers.core.plan import MixerChoice
from mixers.core.source import read_file

REGISTRIES = {
    "mixer": MIXERS,
    "stem": STEMS,
    "backbone": BACKBONES,
    "channel_mixer": CHANNEL_MIXERS,
    "merging": MERGINGS,
}
BUILT_IN = [(kind, name) for kind in KINDS for name in part_catalog(kind)]

FAMILY = '''
from typing import Literal

import mixers
from mixers import Place, TokenMixer as Contract, register_mixer
from mixers.core import contract
from mixers.local_attention import LocalAttention

Side = Literal["left", "right"]

class Shared(Contract):
    """What the two have in common.

    More of it.
    """
    any_grid, mixes_prefix, paper = True, False, "arXiv:1234.56789"
    formula = "y = x"
    family = "shift"

    def __init__(self, dim, grid, num_heads, *, window: int = 3, side: Side = "left"):
        super().__init__(dim, grid, num_heads)
        self.window, self.side = window, side

    def forward(self, x, grid):
        return x.roll(self.window, 1)

class Marked:
    no_weight_decay = ("scale",)

@register_mixer("family_first")
class First(Marked, Shared):
    pass

@register_mixer("family_second")
class Second(Shared):
    """Says it itself."""
    mixes_prefix = True

    def __init__(self, dim, grid, num_heads, *, place: Place, scale: float = 0.5, **others):
        super().__init__(dim, grid, num_heads, **others)
        self.place = place

@register_mixer("family_local")
class Narrow(LocalAttention):
    formula = "y = ours"

@register_mixer("family_plain")
class Plain(contract.TokenMixer):
    any_grid = mixes_prefix = True
    paper = ""
    def forward(self, x, grid):
        return x

@mixers.register_mixer("family_dotted")
class Dotted(mixers.TokenMixer):
    any_grid = mixes_prefix = True
    paper = ""
    def forward(self, x, grid):
        return x
'''


@pytest.fixture
def plugin(tmp_path: Path, clean_registry: None) -> Path:
    path = tmp_path / "family.py"
    path.write_text(FAMILY)
    return path


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_they_agree_on_everything_that_is_built_in(kind: str, name: str) -> None:
    assert part_catalog(kind)[name] == REGISTRIES[kind].spec(name)


@pytest.mark.parametrize("kind", KINDS)
def test_they_know_the_same_names(kind: str) -> None:
    assert sorted(part_catalog(kind)) == REGISTRIES[kind].names()


def test_they_agree_on_a_plugin_whose_classes_share_a_base(plugin: Path) -> None:
    load_plugin(plugin)
    read = {spec.name: spec for spec in read_file(plugin, "mixer")}
    assert set(read) == set(list_mixers()) - set(mixer_catalog())
    for name, spec in read.items():
        assert spec == MIXERS.spec(name)
        assert spec.path == MIXERS.spec(name).path


def test_facts_options_and_the_summary_are_inherited(plugin: Path) -> None:
    read = {spec.name: spec for spec in read_file(plugin, "mixer")}
    first, second, local = (read[f"family_{name}"] for name in ("first", "second", "local"))
    assert first.paper == second.paper == "arXiv:1234.56789"
    assert first.facts["no_weight_decay"] == ("scale",)
    assert first.facts["adds_sub_layer"] is True  # of the contract
    assert not first.facts["mixes_prefix"]
    assert second.facts["mixes_prefix"]
    assert first.summary == "What the two have in common."
    assert second.summary == "Says it itself."
    assert [option.name for option in first.options] == ["window", "side"]
    assert first.options[1].choices == ("left", "right")
    assert [option.name for option in second.options] == ["scale"]  # **others is not followed
    assert second.given == ("place",)
    assert (local.formula, local.facts["mixes_prefix"]) == ("y = ours", False)
    assert {option.name for option in local.options} >= {"window", "border"}
    assert read["family_plain"].summary == read["family_dotted"].summary == ""


def test_an_inherited_option_is_one_on_the_command_line_and_in_a_call(plugin: Path) -> None:
    settings = compose([f"plugins=[{plugin}]", "mixer=family_first", "mixer.window=5"])
    assert settings.model["mixer"] == {"name": "family_first", "window": 5, "side": "left"}
    load_plugin(plugin)
    mixer = create_mixer("family_first", 8, TokenGrid(2, 3), window=5)
    assert mixer.window == 5


def test_a_base_in_another_file_of_the_package_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_registry: None
) -> None:
    package = tmp_path / "their_package" / "parts"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "base.py").write_text(FAMILY.partition("class Marked")[0])
    (package.parent / "one.py").write_text(
        "from mixers import register_mixer\nfrom .parts.base import Shared as Base\n"
        "@register_mixer('their_one')\nclass One(Base):\n    mixes_prefix = True\n"
    )
    (package / "two.py").write_text(
        "import their_package.parts.base as base\nfrom mixers import register_mixer\n"
        "@register_mixer('their_two')\nclass Two(base.Shared):\n    mixes_prefix = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, path in (("one", package.parent / "one.py"), ("parts.two", package / "two.py")):
        (spec,) = read_file(path, "mixer")
        importlib.import_module(f"their_package.{name}")
        assert spec == MIXERS.spec(spec.name)
        assert [option.name for option in spec.options] == ["window", "side"]
    for name in [name for name in sys.modules if name.startswith("their_package")]:
        del sys.modules[name]


WRONG = [
    ("mixer=local_attention mixer.border=none", "border is 'zero' or 'masked', not 'none'"),
    ("mixer=plan mixer.plan=[{name:patch_ff,norm:x}]", "norm is 'channels' or 'tokens', not 'x'"),
    ("mixer=plan mixer.plan=[{name:patch_ff,nrm:x}]", "'patch_ff' has no option 'nrm'"),
    ("backbone.pool=max", "pool is 'avg' or 'token', not 'max'"),
    ("backbone.pos_resize=nearest", "pos_resize is 'bicubic' or 'bilinear', not 'nearest'"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_choice_is_refused_when_it_is_composed(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        compose(line.split())
    assert "\n" not in str(error.value)


def test_a_choice_is_refused_when_it_is_built(plugin: Path) -> None:
    load_plugin(plugin)
    for name, options, message in (
        ("patch_ff", {"norm": "x"}, "'patch_ff': norm is 'channels' or 'tokens', not 'x'"),
        ("family_first", {"side": "up"}, "'family_first': side is 'left' or 'right', not 'up'"),
    ):
        with pytest.raises(ValueError, match=message):
            create_mixer(name, 8, TokenGrid(2, 3), **options)


def test_a_fact_that_is_no_literal_is_refused_with_its_line(plugin: Path) -> None:
    plugin.write_text(FAMILY.replace('family = "shift"', 'family = "sh" + "ift"'))
    with pytest.raises(ValueError, match=r"family\.py:\d+: Shared\.family is no literal"):
        read_file(plugin, "mixer")


def test_a_family_that_nobody_knows_is_refused_by_both(plugin: Path) -> None:
    plugin.write_text(FAMILY.replace('family = "shift"', 'family = "shft"'))
    for read in (lambda: read_file(plugin, "mixer"), lambda: load_plugin(plugin)):
        with pytest.raises(ValueError, match=r"family is 'attention', .* or 'other', not 'shft'"):
            read()


def test_a_mixer_that_asks_for_its_place_is_built_with_it(plugin: Path) -> None:
    load_plugin(plugin)
    alone = create_mixer("family_second", 8, TokenGrid(2, 3))
    assert alone.place == Place(block=0, depth=1, block_in_stage=0, stage=0)
    place = Place(3, 12, 1, 2)
    mixer = MIXERS.build(MixerChoice("family_second"), 8, TokenGrid(2, 3), place=place)
    assert (mixer.place, mixer.given) == (place, {"place": place})
    with pytest.raises(ValueError, match="has no option 'place'"):
        create_mixer("family_second", 8, TokenGrid(2, 3), place=place)
