"""The catalogue, read from source text, says what the imported classes say."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from mixers import MIXERS, TokenMixer, list_mixers
from mixers.core.catalog import mixer_catalog, plugin_path
from mixers.core.names import nearest
from mixers.core.source import read_file
from mixers.core.spec import GIVEN, MISSING, Spec

PLUGIN = '''
import mixers

@mixers.register_mixer("from_plugin")
class Mine(mixers.TokenMixer):
    """Does this
    and that.

    And more.
    """

    any_grid: bool = True
    mixes_prefix = not_to_be = False
    paper = "arXiv:0000.00000"
    computed = 1 + len("a")
    no_weight_decay = ("table",)

    def __init__(self, dim, grid, num_heads, *, a: int, b: float | None = None, c=(1, -2)):
        super().__init__(dim, grid, num_heads)

class NotRegistered(mixers.TokenMixer):
    pass
'''


@pytest.fixture
def write(tmp_path):
    def file(text: str, name: str = "plugin.py") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return file


def test_names_are_those_of_the_registry():
    assert sorted(mixer_catalog()) == list_mixers()


@pytest.mark.parametrize("name", list_mixers())
def test_facts_are_those_of_the_class(name):
    entry, cls = mixer_catalog()[name], MIXERS.get(name)
    assert entry.kind == "mixer"
    assert entry.class_name == cls.__name__
    assert {fact: getattr(cls, fact) for fact in entry.facts} == entry.facts
    assert {"any_grid", "mixes_prefix", "paper"} <= entry.facts.keys()
    assert entry.facts.get("adds_sub_layer", True) == cls.adds_sub_layer
    assert entry.facts.get("no_weight_decay", ()) == cls.no_weight_decay
    assert entry.paper == cls.paper
    assert entry.formula == cls.formula
    assert entry.path == Path(inspect.getfile(cls))
    assert entry.summary == " ".join(inspect.getdoc(cls).split("\n\n")[0].split())


@pytest.mark.parametrize("name", list_mixers())
def test_options_are_those_of_the_signature(name):
    expected = [
        (
            parameter.name,
            inspect.formatannotation(parameter.annotation),
            MISSING if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in inspect.signature(MIXERS.get(name).__init__).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in GIVEN
    ]
    options = mixer_catalog()[name].options
    assert [(o.name, o.annotation, o.default) for o in options] == expected


def test_reading_it_imports_no_torch():
    script = (
        "import sys\n"
        "from mixers.core.catalog import mixer_catalog\n"
        "import mixers.core.plan\n"
        "assert 'attention' in mixer_catalog()\n"
        "heavy = {'torch', 'timm', 'numpy', 'mixers.core.registry'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_plugin_file_is_read(write):
    path = write(PLUGIN)
    (entry,) = read_file(path, "mixer")
    assert (entry.name, entry.class_name, entry.path) == ("from_plugin", "Mine", path)
    assert entry.summary == "Does this and that."
    assert entry.paper == "arXiv:0000.00000"
    assert entry.formula == ""  # a user need not declare one
    inherited = {key: getattr(TokenMixer, key) for key in entry.facts if hasattr(TokenMixer, key)}
    assert entry.facts == inherited | {
        "any_grid": True,
        "mixes_prefix": False,
        "not_to_be": False,
        "paper": "arXiv:0000.00000",
        "no_weight_decay": ("table",),
    }
    assert [(o.name, o.annotation, o.default) for o in entry.options] == [
        ("a", "int", MISSING),
        ("b", "float | None", None),
        ("c", "Any", (1, -2)),
    ]


def test_a_plugin_stands_beside_the_built_in_mixers(write):
    catalog = mixer_catalog([write(PLUGIN)])
    assert sorted(catalog) == sorted([*list_mixers(), "from_plugin"])
    assert isinstance(catalog["from_plugin"], Spec)


def test_reading_a_plugin_does_not_run_it(write):
    assert read_file(write("raise RuntimeError('it ran')\n"), "mixer") == []


def test_only_the_asked_kind_is_read(write):
    text = "@register_stem('wide')\nclass A: pass\n@register_mixer('mine')\nclass B: pass\n"
    assert [entry.name for entry in read_file(write(text), "stem")] == ["wide"]
    assert [entry.name for entry in read_file(write(text), "mixer")] == ["mine"]


def test_a_plugin_cannot_take_a_built_in_name(write):
    path = write(PLUGIN.replace("from_plugin", "attention"))
    with pytest.raises(ValueError, match="'attention' is registered twice") as error:
        mixer_catalog([path])
    assert str(path) in str(error.value)
    assert "attention.py" in str(error.value)


def test_two_plugins_cannot_share_a_name(write):
    one, other = write(PLUGIN, "one.py"), write(PLUGIN, "other.py")
    with pytest.raises(ValueError, match=r"registered twice.*one\.py.*other\.py"):
        mixer_catalog([one, other])


def test_a_default_that_is_no_literal_is_refused_with_its_line(write):
    path = write(PLUGIN.replace("b: float | None = None", "b: float = 2 ** 3"))
    with pytest.raises(ValueError, match=r"plugin\.py:18: .*Mine\(b=\.\.\.\) is no literal"):
        read_file(path, "mixer")


@pytest.mark.parametrize("decorator", ["register_mixer(NAME)", "register_mixer()"])
def test_a_name_that_is_no_literal_is_refused_with_its_line(decorator, write):
    path = write(f"@{decorator}\nclass Mine: pass\n")
    with pytest.raises(ValueError, match=r"plugin\.py:\d: @register_mixer takes the name"):
        read_file(path, "mixer")


def test_a_file_that_is_no_python_is_refused_by_name(write):
    with pytest.raises(ValueError, match=r"plugin\.py is not valid Python"):
        read_file(write("class :"), "mixer")


@pytest.mark.parametrize("name", ["absent.py", "notes.txt", ""])
def test_a_plugin_that_is_no_python_file_is_refused(name, write, tmp_path):
    write("", "notes.txt")
    with pytest.raises(ValueError, match="is not a Python file"):
        plugin_path(tmp_path / name)


def test_a_plugin_path_is_made_absolute(write, monkeypatch):
    path = write(PLUGIN)
    monkeypatch.chdir(path.parent)
    assert plugin_path("plugin.py") == path


def test_the_nearest_known_name_comes_first():
    assert nearest("atention", ["patch_ff", "attention"]) == (
        "Did you mean 'attention'? Known: attention, patch_ff."
    )
    assert nearest("xyz", ["b", "a"]) == "Known: a, b."


def test_one_plugin_named_twice_is_read_once_as_it_is_loaded_once(write):
    path = write(PLUGIN)
    assert "from_plugin" in mixer_catalog([path, path])


def test_a_class_attribute_that_cannot_be_evaluated_is_no_fact(write):
    path = write("@register_mixer('mine')\nclass Mine:\n    table = {[]: 1}\n    paper = ''\n")
    assert read_file(path, "mixer")[0].facts == {"paper": ""}
