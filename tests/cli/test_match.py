"""``match=...`` on the command line: real models, counted as the leaderboard counts them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import DATA

from mixerbench.config.compose import compose, compose_sweep
from mixerbench.config.schema import Settings, build, fingerprint
from mixerbench.launching.size_matching import Matcher
from mixerbench.launching.suite import read_suite
from mixerbench.measure.flops import count_macs
from mixerbench.measure.model_costs import count_parameters
from mixerbench.models.build import build_model
from mixerbench.tracking.journal import FILE_NAME, read
from mixerbench.tracking.keys import Metric, Tag
from mixerbench.training.folder import identity_of, read_settings
from mixers import load_plugin

Command = Callable[..., Any]
Refused = Callable[..., str]
Find = Callable[..., Settings]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def find(said: list[str]) -> Find:
    """Compose a line whose match is searched; what is said goes to ``said``."""
    return lambda line: compose(line.split(), Matcher(said.append))


def _within(value: float, target: float) -> bool:
    return abs(value - target) <= 0.01 * target


# --- what is found ----------------------------------------------------------------------------

MIXERS = ("attention", "patch_ff", "local_attention", "convolution", "identity", "none", "lit")


def _parameters(settings: Settings) -> int:
    return count_parameters(build_model(settings, 10))


def _macs(settings: Settings) -> int:
    return count_macs(build_model(settings, 10), settings.protocol.image_size).total


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit", "pyramid", "resnet"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_lands_in_every_backbone(mixer: str, backbone: str, find: Find) -> None:
    line = f"mixer={mixer} backbone={backbone}"
    target = round(1.2 * _parameters(compose(line.split())))
    found = find(f"{line} match=params:{target}")
    assert _within(_parameters(found), target)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "mixer=local_attention",
        "mixer=patch_ff stem=conv",
        "mixer=attention mixer.rel_pos_bias=true backbone.pool=token",
        "mixer=lit backbone=pyramid",
        "mixer=plan mixer.plan=[{name:local_attention,window:3},none]",
        "backbone.channel_mixer=feature_attention",
        "mixer=convolution backbone=resnet stem=attention",
    ],
)
def test_multiply_adds_are_those_of_the_board(line: str, find: Find) -> None:
    target = round(2 * _macs(compose(line.split())))
    found = find(f"{line} match=flops:{target}")
    assert _within(_macs(found), target)


@pytest.mark.slow
def test_papers_sizes_are_found_from_each_other(find: Find, said: list[str]) -> None:
    settings = find("preset=deit_tiny protocol=imagenet_deit match=params:22.1M")
    assert settings.model["size"] | {"name": "small"} == compose(["size=small"]).model["size"]
    assert settings.label == "deit_tiny_dim=384_num_heads=6"
    assert said == [
        "match=params:22.1M: attention dim 384 (from 192), depth 12, num_heads 6 (from 3): "
        "22,050,664 parameters, -0.22 % of 22,100,000"
    ]


def test_what_the_recipe_adds_to_a_model_is_counted(find: Find) -> None:
    settings = find("recipe=deit3 recipe.regularization.layer_scale=1e-4 match=params:250k")
    assert _within(_parameters(settings), 250_000)


PLUGIN = """
import torch
from mixers import TokenMixer, register_mixer

@register_mixer("choosy")
class Choosy(TokenMixer):
    any_grid = True
    mixes_prefix = False
    paper = "none"

    def __init__(self, dim, grid, num_heads, *, share: float = 0.5):
        super().__init__(dim, grid, num_heads)
        if dim % 8:
            raise ValueError("choosy takes multiples of 8.")
        self.gain = float(torch.ones(1).item())  # which the meta device refuses
        self.fc = torch.nn.Linear(dim, dim)

    def forward(self, x, grid):
        return self.gain * self.fc(x)
"""


def test_a_plugin_may_look_at_values_and_refuse_widths(tmp_path: Path, find: Find) -> None:
    (tmp_path / "choosy.py").write_text(PLUGIN)
    load_plugin(tmp_path / "choosy.py")
    line = "mixer=choosy plugins=[choosy.py]"
    wanted = compose([*line.split(), "size.dim=96", "size.num_heads=6"])
    for target in (f"params:{_parameters(wanted)}", f"flops:{_macs(wanted)}"):
        assert find(f"{line} match={target}").model["size"] == wanted.model["size"]


@pytest.mark.slow
def test_classes_are_those_of_the_folders(tmp_path: Path, find: Find) -> None:
    for split in ("train", "val"):
        for label in range(200):
            folder = tmp_path / "images" / split / f"{label:03}"
            folder.mkdir(parents=True)
    line = f"protocol=folder data.root={tmp_path / 'images'} match=params:400k"
    assert _within(count_parameters(build_model(find(line), 200)), 400_000)


def test_without_the_data_the_number_of_classes_is_asked_for(refused: Refused) -> None:
    assert "has no root" in refused("train", "--cfg", "protocol=folder", "match=params:1M")


def test_what_cannot_be_reached_is_refused_with_the_nearest(refused: Refused) -> None:
    message = refused(
        "train", "--cfg", "mixer=patch_ff", "protocol.image_size=224", "match=params:1k"
    )
    for words in ("match=params:1k", "within 1 %", "nearest found is patch_ff dim ", "size="):
        assert words in message


def test_a_start_that_does_not_fit_is_refused_as_without_a_match(refused: Refused) -> None:
    assert "65" in refused("train", "--cfg", "size.dim=65", "match=params:1M")


# --- the commands -----------------------------------------------------------------------------

TINY = [
    *DATA, "recipe.epochs=1", "recipe.batch.size=16", "recipe.batch.micro_batch_size=8",
    "recipe.schedule.warmup_epochs=1", "tracking.offline=true", "run.device=cpu",
    "run.progress=false", "run.measure_seconds=0.05", "run.measure_batch_size=2",
]  # fmt: skip


def test_a_matched_run_trains_and_is_recorded_as_its_size(command: Command, tmp_path: Path) -> None:
    outcome = command("train", "mixer=patch_ff", "size.depth=2", "match=params:100k", *TINY)
    assert (outcome.code, outcome.err) == (0, "")
    first, *rest = outcome.out.splitlines()
    assert first.startswith("match=params:100k: patch_ff dim ")
    assert rest[0].startswith("patch_ff_micro_dim=")
    (path,) = tmp_path.glob("runs/*/*/config.yaml")
    settings = read_settings(path.parent)
    size = settings.model["size"]
    by_hand = compose([*settings.overrides, f"size.dim={size['dim']}"])
    assert identity_of(settings)["model_fingerprint"] == fingerprint(by_hand.model)
    records = [
        record["values"] for record, _ in read(path.parent / FILE_NAME) if "values" in record
    ]
    (parameters,) = [v[Metric.PARAMETERS] for v in records if Metric.PARAMETERS in v]
    assert _within(parameters, 100_000)
    (repeat,) = {v[Tag.COMMAND] for v in records if Tag.COMMAND in v}
    assert f"size.dim={size['dim']}" in repeat
    assert "match" not in repeat


def test_printed_settings_are_yaml_with_the_choice_in_front(command: Command) -> None:
    outcome = command("train", "--cfg", "mixer=patch_ff", "match=params:300k")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("# match=params:300k: patch_ff dim ")
    settings = build(Settings, yaml.safe_load(outcome.out))
    assert settings == compose(settings.overrides)


@pytest.mark.parametrize("as_json", [True, False])
def test_profile_shows_the_matched_model(as_json: bool, command: Command) -> None:
    line = "mixer=none match=flops:5M run.measure_seconds=0.05 run.measure_batch_size=2"
    outcome = command("profile", *line.split(), *(["--json"] if as_json else []))
    assert outcome.code == 0
    assert (outcome.err if as_json else outcome.out).startswith("match=flops:5M: none dim ")
    if as_json:
        assert _within(json.loads(outcome.out)["gmacs"], 0.005)


@pytest.mark.slow
def test_a_sweep_matches_each_mixer_once_for_all_its_seeds(said: list[str]) -> None:
    line = "mixer=patch_ff,attention match=params:300k run.seed=0,1,2"
    runs = compose_sweep(line.split(), Matcher(said.append))
    assert len(said) == 2
    assert len({run.label for run in runs}) == 2
    for run in runs:
        assert _within(_parameters(run), 300_000)


@pytest.mark.slow
def test_a_suite_may_ask_for_a_match(tmp_path: Path, said: list[str]) -> None:
    runs = {"mixer": ["patch_ff", "attention"], "match": "params:300k", "run.seed": [0, 1]}
    (tmp_path / "equal.yaml").write_text(yaml.safe_dump({"runs": runs}))
    suite = read_suite("equal.yaml", match=Matcher(said.append))
    assert len(suite.runs) == 4
    for run in suite.runs.values():
        assert _within(_parameters(run), 300_000)
    assert suite.runs.keys() == read_suite("equal.yaml", match=Matcher(said.append)).runs.keys()


def test_eval_does_not_look_for_a_size(tmp_path: Path, refused: Refused) -> None:
    from mixerbench.training import checkpoint

    model = build_model(compose([]), 10)
    checkpoint.save(tmp_path / "model.safetensors", model.state_dict(), {})
    message = refused("eval", "checkpoint=model.safetensors", "match=params:1M")
    assert "train, profile and suite" in message


def test_data_that_is_not_there_is_said_before_anything_is_searched(refused: Refused) -> None:
    line = "protocol=imagenet_deit data.root=/nowhere match=params:22M"
    assert "/nowhere" in refused("train", *line.split())
