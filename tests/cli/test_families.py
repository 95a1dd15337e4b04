"""What the page of a mixer family is filled with."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_stores import MadeStore

from leaderboard.mixer_description import MixerDescription
from mixerbench.commands.leaderboard._mixer_pages import families
from mixerbench.measure import tokens
from mixerbench.tracking.keys import Param
from mixers import list_mixers
from mixers.core.catalog import mixer_catalog
from mixers.core.plan import SCHEDULES

ROOT = Path(__file__).parents[2]
PLUGIN = '''
import torch
from mixers import TokenMixer, register_mixer

class Base(TokenMixer):
    any_grid = False
    mixes_prefix = False

@register_mixer("test_scaled")
class Scaled(Base):
    """Every token times a number."""

    paper = "of cs/0112017 and arXiv:cs/0112017v2"

    def __init__(self, dim, grid, num_heads, *, factor: float = 2.0):
        super().__init__(dim, grid, num_heads)
        self.factor = factor

    def forward(self, x, grid):
        return self.factor * x

@register_mixer("test_broken")
class Broken(Base):
    """Never runs."""

    paper = "mine"

    def forward(self, x, grid):
        raise KeyError("first line\\nsecond line")

@register_mixer("test_fourier")
class Fourier(Base):
    """What the counters do not know."""

    paper = ""

    def forward(self, x, grid):
        return torch.fft.fft2(x).real
'''


@pytest.fixture(scope="module")
def built_in() -> dict[str, MixerDescription]:
    return families([*list_mixers(), *SCHEDULES])


@pytest.fixture
def plugin(tmp_path: Path, clean_registry: None) -> str:
    path = tmp_path / "own.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.mark.parametrize("name", [*list_mixers(), *SCHEDULES])
def test_every_mixer_and_schedule_has_a_whole_page(
    name: str, built_in: dict[str, MixerDescription]
) -> None:
    family = built_in[name]
    assert family.name == name
    assert family.summary
    assert family.formula
    assert family.paper_url.startswith("https://arxiv.org/abs/")
    assert family.paper_url.rpartition("/")[2] in family.paper
    assert all(sentence.endswith(".") for sentence in family.facts)
    assert family.parts
    for part in family.parts:
        assert list(part.macs) == [side * side for side in tokens.SIDES]
        assert part.dim == tokens.DIM
        assert len(part.reach) == len(part.reach[0]) == 14
        assert (part.exponent is None) == (not any(part.macs.values()))


def test_a_mixer_is_one_part_and_a_schedule_its_distinct_mixers(
    built_in: dict[str, MixerDescription],
) -> None:
    for name in list_mixers():
        assert [part.name for part in built_in[name].parts] == [name]
    assert [part.name for part in built_in["lit"].parts] == ["none", "attention"]


def test_what_source_says_is_shown_as_it_is(built_in: dict[str, MixerDescription]) -> None:
    for name, entry in mixer_catalog().items():
        family = built_in[name]
        shown = (family.summary, family.paper, family.formula, list(family.options))
        assert shown == (entry.summary, entry.paper, entry.formula, [o.name for o in entry.options])
    lit = built_in["lit"]
    assert (lit.summary, lit.paper) == (SCHEDULES["lit"].summary, SCHEDULES["lit"].paper)


def test_defaults_are_shown_as_the_command_line_takes_them(
    built_in: dict[str, MixerDescription],
) -> None:
    shown = {"hidden_ratio": "4.0", "hidden_dim": "null", "norm": "channels"}
    assert built_in["patch_ff"].options == shown
    assert built_in["attention"].options["qkv_bias"] == "true"
    assert built_in["lit"].options == {"plan": "[none,none,attention,attention]"}


@pytest.mark.parametrize(
    ("name", "grid", "token"),
    [
        ("attention", "with rel_pos_bias only", "Mixes a class token"),
        ("patch_ff", "Runs only on the grid", "Mixes a class token"),
        ("convolution", "Runs on any grid of tokens.", "Cannot mix a class token"),
        ("lit", "with rel_pos_bias only", "Mixes a class token"),
        ("none", "Runs on any grid of tokens.", "Adds no sub-layer"),
    ],
)
def test_facts_are_sentences(
    name: str, grid: str, token: str, built_in: dict[str, MixerDescription]
) -> None:
    facts = built_in[name].facts
    assert grid in facts[0]
    assert token in facts[1]


def test_a_tiny_layer_is_measured_at_the_tokens_of_the_board(
    built_in: dict[str, MixerDescription],
) -> None:
    n, d = 196, 192
    (attention,) = built_in["attention"].parts
    assert attention.macs[n] == n * 4 * d**2 + 2 * n**2 * d


@pytest.mark.parametrize(
    ("name", "exponent", "reached"),
    [
        ("attention", 1.75, 196),
        ("patch_ff", 2, 196),
        ("local_attention", 1, 49),
        ("convolution", 1, 9),
        ("identity", None, 1),
        ("none", None, 0),
    ],
)
def test_the_figures_of_each_mixer(
    name: str, exponent: float | None, reached: int, built_in: dict[str, MixerDescription]
) -> None:
    (part,) = built_in[name].parts
    assert part.exponent == (None if exponent is None else pytest.approx(exponent, abs=0.005))
    assert part.reach_share == pytest.approx(reached / 196)
    assert bool(part.formula_macs) == (name == "local_attention")


def test_unknown_names_are_left_out_and_the_order_is_that_of_the_names() -> None:
    assert list(families(["none", "of another machine", "identity"])) == ["none", "identity"]
    assert families([]) == {}


def test_a_mixer_of_a_plugin_has_a_page_with_what_it_inherits(plugin: str) -> None:
    family = families(["test_scaled"], [plugin])["test_scaled"]
    assert (family.summary, family.formula) == ("Every token times a number.", "")
    assert family.paper_url == "https://arxiv.org/abs/cs/0112017"
    assert family.options == {"factor": "2.0"}
    assert "only on the grid" in family.facts[0]
    assert family.parts[0].reach_share == pytest.approx(1 / 196)


def test_without_its_plugin_a_mixer_is_unknown(plugin: str) -> None:
    assert families(["test_scaled"]) == {}


@pytest.mark.parametrize(
    ("name", "reason"), [("test_broken", "first line"), ("test_fourier", "aten::fft_fft2")]
)
def test_a_mixer_that_cannot_be_measured_says_why_and_the_others_stay(
    name: str, reason: str, plugin: str
) -> None:
    found = families([name, "identity"], [plugin])
    assert found[name].parts == ()
    assert reason in found[name].facts[-1]
    assert "\n" not in found[name].facts[-1]
    assert (found[name].paper_url, found["identity"].parts != ()) == ("", True)


def test_the_facts_of_a_page_cannot_be_changed(built_in: dict[str, MixerDescription]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        built_in["none"].formula = "y = 1"  # type: ignore[misc]


def test_a_page_can_be_written_without_mixers_or_torch() -> None:
    script = (
        "import sys, leaderboard.mixer_description\n"
        "heavy = {'torch', 'mixers', 'mixerbench', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.filterwarnings("ignore")  # mlflow warns about itself
def test_a_mixer_of_a_plugin_has_a_page_whole_only_where_the_command_names_its_file(
    plugin: str, tmp_path: Path, command: Callable[..., Any]
) -> None:
    store = MadeStore(tmp_path)
    store.log("mine", mixer="test_scaled", params={f"{Param.MODEL}mixer.factor": 3.0})
    store.log("theirs", mixer="attention")

    def page(*given: str) -> str:
        out = tmp_path / f"site{len(given)}"
        outcome = command("leaderboard", "site", "--uri", store.uri, "--out", str(out), *given)
        assert outcome.code == 0, outcome.err
        assert (out / "mixer-attention.html").exists() == (len(given) < 2)
        return (out / "mixer-test_scaled.html").read_text()

    without = page()
    assert "Its code is not here" in without
    assert "mixer.factor" in without and "3.0" in without
    assert "Receptive field" not in without
    assert "test_scaled" not in list_mixers()
    for whole in (page(f"plugins=[{plugin}]"), page("mixer=test_scaled", f"plugins=[{plugin}]")):
        assert "Every token times a number." in whole
        assert "Receptive field" in whole and "Complexity in tokens" in whole
        assert "Its code is not here" not in whole
