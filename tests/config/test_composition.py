"""From a command line to the three groups of settings."""

import dataclasses
import functools
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixerbench.config.compose import compose, compose_sweep
from mixerbench.config.files import CONFIGS, config_names
from mixerbench.config.parts import part_catalog
from mixerbench.config.schema import Recipe, Run, Settings, Tracking, build, flatten
from mixerbench.config.sizes import read_size, size_settings
from mixers.core.plan import SCHEDULES

ROOT = Path(__file__).parents[2]
MIXERS = [*part_catalog("mixer"), *SCHEDULES]
SIZES = part_catalog("backbone")["vit"].facts["sizes"]


@functools.cache
def _default() -> Settings:
    return compose([])


def _get(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return value


# --- what is composed -----------------------------------------------------------------------


def test_without_a_word_it_is_attention_micro_on_digits() -> None:
    settings = compose([])
    assert settings.label == "attention_micro"
    parts = {part: content["name"] for part, content in settings.model.items()}
    assert parts == {"backbone": "vit", "size": "micro", "stem": "patch", "mixer": "attention"}
    assert settings.protocol.name == "digits"
    assert (settings.run, settings.tracking, settings.plugins) == (Run(), Tracking(), [])


@pytest.mark.slow
@pytest.mark.parametrize("protocol", config_names("protocol"))
def test_every_protocol_composes_with_every_mixer(protocol: str) -> None:
    for mixer in MIXERS:
        settings = compose([f"protocol={protocol}", f"mixer={mixer}"])
        assert settings.protocol.name == protocol
        assert settings.model["mixer"]["name"] == mixer
        assert settings.model["stem"]["patch_size"] == settings.protocol.patch_size


@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_that_of_the_table(size: str) -> None:
    assert compose([f"size={size}"]).model["size"] == {
        "name": size,
        **size_settings(SIZES[size]),
    }


@pytest.mark.parametrize(("kind", "name"), [("stem", s) for s in part_catalog("stem")])
def test_every_stem_composes(kind: str, name: str) -> None:
    assert compose([f"{kind}={name}"]).model[kind]["name"] == name


@pytest.mark.parametrize("mixer", part_catalog("mixer"))
def test_a_mixers_defaults_are_those_of_its_class(mixer: str) -> None:
    content = compose([f"mixer={mixer}"]).model["mixer"]
    options = {option.name: option.default for option in part_catalog("mixer")[mixer].options}
    assert content == {"name": mixer, **options}


def _said(recipe: str) -> set[str]:
    """The fields that the recipe's file states."""
    content = yaml.safe_load((CONFIGS / "recipe" / f"{recipe}.yaml").read_text())
    return {key for key, _ in flatten(content)} - {"defaults"}


def test_deits_recipe_says_each_field_and_no_other() -> None:
    assert _said("deit") == set(_fields_without_default(Recipe))


@pytest.mark.parametrize("name", [name for name in config_names("recipe") if name != "deit"])
def test_a_recipe_that_follows_deits_says_its_differences_and_no_more(name: str) -> None:
    composed = [compose(["protocol=imagenet_deit", f"recipe={own}"]) for own in (name, "deit")]
    own, deit = (dict(flatten(dataclasses.asdict(c.protocol.recipe))) for c in composed)
    assert _said(name) == {key for key, value in own.items() if value != deit[key]}


def _fields_without_default(cls: type, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _fields_without_default(hints[field.name], f"{prefix}{field.name}.")
        elif field.default is dataclasses.MISSING:
            yield prefix + field.name


# --- overrides ------------------------------------------------------------------------------

OVERRIDES: list[tuple[str, str, Any]] = [
    ("recipe.epochs=7", "protocol.recipe.epochs", 7),
    ("protocol.recipe.epochs=7", "protocol.recipe.epochs", 7),
    ("recipe.optimizer.lr=5e-4", "protocol.recipe.optimizer.lr", 5e-4),
    ("recipe.optimizer.betas=[0.8,0.9]", "protocol.recipe.optimizer.betas", [0.8, 0.9]),
    ("recipe.augmentation.color_jitter=0.3", "protocol.recipe.augmentation.color_jitter", 0.3),
    ("recipe=deit3", "protocol.recipe.optimizer.name", "lamb"),
    ("protocol.recipe=deit3", "protocol.recipe.optimizer.name", "lamb"),
    ("data=cifar10", "protocol.data.source", "cifar10"),
    ("protocol.data=cifar10", "protocol.data.source", "cifar10"),
    ("data.root=/data/imagenet", "protocol.data.root", "/data/imagenet"),
    ("protocol.data.root=/data/imagenet", "protocol.data.root", "/data/imagenet"),
    ("evaluation.image_size=48", "protocol.evaluation.image_size", 48),
    ("protocol.evaluation.crop_ratio=0.9", "protocol.evaluation.crop_ratio", 0.9),
    ("protocol.image_size=64", "protocol.image_size", 64),
    ("protocol.patch_size=8", "model.stem.patch_size", 8),
    ("stem.patch_size=8", "model.stem.patch_size", 8),
    ("mixer=local_attention mixer.window=5", "model.mixer.window", 5),
    ("mixer.window=5 mixer=local_attention", "model.mixer.window", 5),
    ("mixer=local_attention mixer.border=masked", "model.mixer.border", "masked"),
    ("mixer=patch_ff mixer.hidden_dim=96", "model.mixer.hidden_dim", 96),
    ("mixer=lit mixer.plan=[none,attention]", "model.mixer.plan", ["none", "attention"]),
    ("backbone.pool=token", "model.backbone.pool", "token"),
    ("size=base size.depth=2", "model.size", {"name": "base", "dim": 768, "depth": 2,
                                             "num_heads": 12}),
    ("run.seed=3", "run.seed", 3),
    ("run.compile=true", "run.compile", True),
    ("run.workers=2", "run.workers", 2),
    ("tracking.uri=http://127.0.0.1:5000", "tracking.uri", "http://127.0.0.1:5000"),
    ("tracking.uri=sqlite:////tmp/a.db", "tracking.uri", "sqlite:////tmp/a.db"),
    ("run.resume=auto", "run.resume", "auto"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "path", "value"), OVERRIDES)
def test_an_override_arrives(line: str, path: str, value: Any) -> None:
    assert _get(_default(), path) != value
    assert _get(compose(line.split()), path) == value


def test_recipe_of_another_protocol_keeps_what_the_protocol_itself_says() -> None:
    recipe = compose(["protocol=digits", "recipe=deit3"]).protocol.recipe
    assert recipe.name == "deit3"
    assert recipe.epochs == _default().protocol.recipe.epochs


def _documented() -> list[str]:
    """Every complete train and profile command of the documentation, the help and configs/."""
    from mixerbench import cli, commands

    texts = [path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))]
    texts += [path.read_text() for path in CONFIGS.rglob("*.yaml")]
    texts += [Path(cli.__file__).read_text(), (ROOT / "Makefile").read_text()]
    texts += [path.read_text() for path in Path(commands.__path__[0]).rglob("*.py")]
    joined = "\n".join(texts).replace("\\\n", " ")
    lines = re.findall(r"mixerbench ((?:train|profile) [^\n`#]*=[^\n`#]*)", joined)
    return sorted({line.strip() for line in lines if "..." not in line and "SETTING" not in line})


@pytest.mark.slow
@pytest.mark.parametrize("line", _documented())
def test_a_documented_command_composes(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = re.search(
        r"```python\n(# my_mixer.py\n.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    assert plugin is not None
    name = re.search(r"mixer=(\w+)", line)
    assert name is not None or "my_mixer" not in line
    mine = (
        plugin[1].replace('mixer("pooling")', f'mixer("{name[1]}")')
        if name and "my_mixer" in line
        else ""
    )
    (tmp_path / "my_mixer.py").write_text(mine)
    source = re.search(
        r"```python\n(# my_data.py\n.*?)```", (ROOT / "docs" / "data.md").read_text(), re.S
    )
    assert source is not None
    (tmp_path / "my_data.py").write_text(source[1])
    monkeypatch.chdir(tmp_path)
    _, *arguments = shlex.split(line)
    settings = [argument for argument in arguments if not argument.startswith("-")]
    named = lambda settings, target: read_size(size_settings(SIZES[settings.model["size"]["name"]]))  # noqa: E731
    compose_it = compose_sweep if "-m" in arguments else compose
    assert compose_it(settings, named)


def test_documented_commands_are_found() -> None:
    found = " ".join(_documented())
    for expected in ("plugins=[my_mixer.py]", "protocol=imagenet_deit", "train -m", "profile"):
        assert expected in found
    assert found.count("{cycle:[") >= 3  # pairs, local and global in turn, inside a stage


# --- sweeps ---------------------------------------------------------------------------------


def test_a_sweep_is_the_product_in_the_order_of_the_command_line() -> None:
    runs = compose_sweep(["mixer=patch_ff,attention", "size.depth=2", "run.seed=0,1,2"])
    assert [(run.model["mixer"]["name"], run.run.seed) for run in runs] == [
        ("patch_ff", 0), ("patch_ff", 1), ("patch_ff", 2),
        ("attention", 0), ("attention", 1), ("attention", 2),
    ]  # fmt: skip
    assert {run.model["size"]["depth"] for run in runs} == {2}


@pytest.mark.parametrize(
    ("override", "seeds"),
    [("run.seed=range(1,4)", [1, 2, 3]), ("run.seed=choice(4,2)", [4, 2]), ("run.seed=5", [5])],
)
def test_a_sweep_takes_hydras_notations(override: str, seeds: list[int]) -> None:
    assert [run.run.seed for run in compose_sweep([override])] == seeds


def test_a_sweep_over_protocol_fields_takes_the_short_names() -> None:
    runs = compose_sweep(["recipe=deit,deit3", "recipe.epochs=1,2"])
    found = [(run.protocol.recipe.name, run.protocol.recipe.epochs) for run in runs]
    assert found == [("deit", 1), ("deit", 2), ("deit3", 1), ("deit3", 2)]


def test_a_list_is_one_value_and_lists_can_be_swept() -> None:
    (one,) = compose_sweep(["mixer=lit", "mixer.plan=[none,attention]"])
    assert one.model["mixer"]["plan"] == ["none", "attention"]
    two = compose_sweep(["mixer=lit", "mixer.plan=[none,attention],[attention,none]"])
    plans = [run.model["mixer"]["plan"] for run in two]
    assert plans == [["none", "attention"], ["attention", "none"]]


@pytest.mark.parametrize(
    ("argument", "jobs"),
    [("launcher.jobs=3", 3), ("launcher.jobs=null", None), ("run.seed=1", None)],
)
def test_launcher_jobs(argument: str, jobs: int | None) -> None:
    assert compose([argument]).launcher.jobs == jobs


# --- labels ---------------------------------------------------------------------------------

LABELS = [
    ("", "attention_micro"),
    ("mixer=patch_ff size=base", "patch_ff_base"),
    ("stem=conv", "attention_micro_conv"),
    ("mixer=local_attention mixer.window=5", "local_attention_micro_window=5"),
    ("mixer=local_attention mixer.window=7", "local_attention_micro"),
    ("stem.patch_size=8", "attention_micro_patch_size=8"),
    ("protocol.patch_size=8", "attention_micro"),
    ("protocol=imagenet_deit", "attention_micro"),
    ("backbone.pool=token", "attention_micro_pool=token"),
    ("size.depth=2", "attention_micro_depth=2"),
    ("mixer=lit", "lit_micro"),
    ("mixer=lit mixer.plan=[none,attention]", "lit_micro_plan=none-attention"),
    ("mixer=patch_ff mixer.hidden_dim=9 stem=conv size.dim=96",
     "patch_ff_micro_conv_hidden_dim=9_dim=96"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "label"), LABELS)
def test_a_label_says_how_a_model_differs_from_the_plain_one(line: str, label: str) -> None:
    assert compose(line.split()).label == label


def test_a_label_says_nothing_of_protocol_and_run() -> None:
    changed = compose(["recipe.epochs=3", "run.seed=4", "run.precision=bf16", "recipe=deit3"])
    assert changed.label == _default().label


# --- the schema -----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", config_names("protocol"))
def test_build_is_the_inverse_of_asdict_also_through_yaml(protocol: str) -> None:
    line = f"protocol={protocol} mixer=lit mixer.plan=[{{name:local_attention,window:3}},none]"
    settings = compose([*line.split(), "run.seed=2", "tracking.uri=http://127.0.0.1:1"])
    content = dataclasses.asdict(settings)
    assert build(Settings, content) == settings
    assert build(Settings, yaml.safe_load(yaml.safe_dump(content))) == settings


def test_build_refuses_unknown_and_missing_fields() -> None:
    content = dataclasses.asdict(_default())
    content["run"]["sed"] = 1
    with pytest.raises(TypeError, match="sed"):
        build(Settings, content)
    content = dataclasses.asdict(_default())
    del content["protocol"]["recipe"]["epochs"]
    with pytest.raises(TypeError, match="epochs"):
        build(Settings, content)
