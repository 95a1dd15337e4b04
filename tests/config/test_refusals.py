"""What is refused on the command line, and what is said then: one table."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixerbench.config import checks
from mixerbench.config.compose import compose_sweep
from mixerbench.errors import Refusal

# Words that a message must hold: what came, the nearest name or what fits, what to do.
TABLE: list[tuple[str, tuple[str, ...]]] = [
    # unknown names
    ("mixer=pach_ff", ("mixer 'pach_ff'", "'patch_ff'", "local_attention")),
    ("size=mciro", ("size 'mciro'", "'micro'", "base")),
    ("stem=cnv", ("stem 'cnv'", "'conv'", "patch")),
    ("backbone=vti", ("backbone 'vti'", "'vit'")),
    ("protocol=digts", ("protocol 'digts'", "'digits'", "imagenet_deit")),
    ("recipe=deit4", ("recipe 'deit4'", "'deit'")),
    ("protocol.recipe=deit4", ("recipe 'deit4'", "'deit'")),
    ("data=cifra10", ("data 'cifra10'", "'cifar10'")),
    ("mixer=", ("mixer ''", "attention")),
    ("size=micro mixer=pach_ff run.seed=1", ("'pach_ff'", "'patch_ff'")),
    ("mixer=lit mixer.plan=[attention,nonee]", ("mixer 'nonee'", "'none'")),
    # unknown settings
    ("recipe.epocs=3", ("'epocs'", "'epochs'")),
    ("protocol.recipe.optimizer.nesterov=3", ("protocol.recipe.optimizer", "'nesterov'", "betas")),
    ("epochs=3", ("'epochs'", "'protocol.recipe.epochs'")),
    ("lr=3", ("'lr'", "'protocol.recipe.optimizer.lr'")),
    ("run.sed=3", ("run", "'sed'", "'seed'")),
    ("run.seed.x=3", ("run.seed", "'x'", "single value")),
    ("tracking.urri=x", ("'urri'", "'uri'")),
    ("mixer.window=3", ("mixer", "'window'", "qkv_bias")),
    ("mixer=local_attention mixer.windw=3", ("'windw'", "'window'")),
    ("size.width=3", ("size", "'width'", "dim")),
    ("backbone.pol=avg", ("backbone", "'pol'", "'pool'")),
    ("protocol=imagenet_deit mixer.foo=1 data.root=/nowhere", ("mixer", "'foo'")),
    # values of another type
    ("run.seed=abc", ("run.seed=abc", "whole number")),
    ("run.seed=1.5", ("run.seed=1.5", "whole number")),
    ("run.seed=", ("run.seed=", "whole number")),
    ("recipe.epochs=abc", ("protocol.recipe.epochs=abc", "whole number")),
    ("recipe.optimizer.lr=high", ("protocol.recipe.optimizer.lr=high", "number")),
    ("recipe.optimizer.betas=3", ("protocol.recipe.optimizer.betas=3", "list")),
    ("run.compile=maybe", ("run.compile=maybe", "true or false")),
    ("mixer=local_attention mixer.window=a", ("mixer.window=a", "whole number")),
    ("launcher.jobs=x", ("launcher.jobs=x", "whole number")),
    ("recipe.optimizer=3", ("protocol.recipe.optimizer", "group", "optimizer.name=")),
    ("run=3", ("run", "group", "run.seed=")),
    ("evaluation=3", ("protocol.evaluation", "group")),
    # values out of range
    ("run.precision=fp8", ("run.precision=fp8", "fp32", "bf16", "fp16")),
    ("data.source=imagnet", ("protocol.data.source=imagnet", "folder")),
    ("recipe.augmentation.crop=centre", ("augmentation.crop=centre", "resized", "padded")),
    ("recipe.loss.name=mse", ("loss.name=mse", "cross_entropy")),
    ("recipe.mixup.mode=half", ("mixup.mode=half", "batch")),
    ("recipe.distillation.kind=firm", ("distillation.kind=firm", "soft", "hard")),
    ("recipe.epochs=0", ("protocol.recipe.epochs=0", "1 or more")),
    ("run.threads=0", ("run.threads=0", "1 or more")),
    ("run.log_every_steps=-1", ("run.log_every_steps=-1", "1 or more")),
    ("protocol.image_size=0", ("protocol.image_size=0", "1 or more")),
    # settings that do not fit each other
    ("recipe.batch.size=63", ("63", "micro", "recipe.batch.micro_batch_size")),
    ("recipe.batch.micro_batch_size=1", ("odd", "1", "recipe.batch.micro_batch_size")),
    ("protocol.image_size=33", ("33 x 33", "4 x 4", "32")),
    ("stem.patch_size=5", ("5 x 5", "multiple of 5")),
    ("mixer=patch_ff evaluation.image_size=48", ("'patch_ff'", "6 x 6", "12 x 12",
                                                 "evaluation.image_size")),
    ("mixer=local_attention backbone.pool=token", ("'local_attention'", "class token",
                                                   "backbone.pool=avg")),
    ("mixer=none backbone.pool=token", ("'none'", "class token", "backbone.pool=avg")),
    ("mixer=lit size.depth=2", ("4", "2 blocks")),
    ("mixer=lit mixer.plan=[]", ("plan", "at least one")),
    # what is no setting at all
    ("patch_ff", ("'patch_ff'", "name=value", "mixer=patch_ff")),
    ("+foo=1", ("'+foo=1'", "name=value")),
    ("~mixer", ("'~mixer'", "name=value")),
    ("mixer==attention", ("mixer==attention", "name=value")),
    ("data.root=a=b", ("quote",)),
    ("run.root=${foo}", ("'foo'", "run.root=${foo}")),
    # sweeps without -m
    ("mixer=attention,patch_ff", ("mixer=attention,patch_ff", "-m")),
    ("run.seed=range(0,3)", ("run.seed=range(0,3)", "-m")),
    # plugins
    ("plugins=[missing.py]", ("missing.py", ".py file")),
    ("plugins=[a", ("'plugins=[a'", "quote")),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), TABLE)
def test_a_refusal_says_what_came_and_what_fits(
    line: str, expected: tuple[str, ...], refused: Callable[..., str]
) -> None:
    message = refused("train", "--cfg", *line.split())
    for words in expected:
        assert words in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mixer=attention,patch_ff recipe.epocs=1", ("'epocs'", "'epochs'")),
        ("mixer=attention,pach_ff", ("'pach_ff'", "'patch_ff'")),
        ("run.seed=interval(0,1)", ("run.seed=interval(0,1)", "a,b,c")),
        ("run.seed=0,x", ("run.seed=x", "whole number")),
    ],
)
def test_a_sweep_is_refused_whole(line: str, expected: tuple[str, ...]) -> None:
    with pytest.raises(Refusal) as refusal:
        compose_sweep(line.split())
    for words in expected:
        assert words in str(refusal.value)


# --- what once slipped through ----------------------------------------------------------------

TRACEBACKS = {
    "mixer=3": "mixer",
    "size=1": "size",
    "recipe=null": "recipe",
    "plugins=": "plugins",
    "plugins=null": "plugins",
    "plugins=3": "plugins",
    "stem.patch_size=0": "patch_size",
    "size.depth=abc": "size.depth",
    "mixer=lit mixer.plan=3": "plan",
    "mixer=lit mixer.plan=[3]": "plan",
    "mixer.name=local_attention": "mixer.name",
    "size.name=foo": "size.name",
}
TAKEN_WITHOUT_A_WORD = {
    "size.num_heads=0": "num_heads",  # ZeroDivisionError later, after torch is loaded
    "size.dim=32.5": "size.dim",
    "stem.patch_size=-4": "patch_size",
    "evaluation.image_size=-32": "image_size",  # a traceback after the first epoch
    "evaluation.crop_ratio=0": "crop_ratio",  # timm takes 0 for its own default, 0.875
    "recipe.augmentation.scale=[]": "scale",  # and an empty list too
    "recipe.optimizer.betas=[0.9]": "betas",
    "recipe.optimizer.lr=nan": "lr",
    "recipe.optimizer.lr=-1": "lr",
    "recipe.ema.decay=2": "decay",
    "recipe.mixup.prob=2": "prob",
    "recipe.regularization.drop_path=1": "drop_path",
    "data.mean=[0.5]": "mean",
    "data.std=[0,0,0]": "std",
    "run.seed=-1": "run.seed",
    "run.workers=-1": "run.workers",
    "run.measure_seconds=-1": "measure_seconds",
    "run.device=gpu": "run.device",  # refused, but only after torch is loaded
    "hydra.run.dir=x": "hydra",
    "checkpoint=x": "checkpoint",
}
BEYOND_ALL_MACHINES = {
    "recipe.augmentation.color_jitter=inf": "color_jitter=inf: give a number between",
    "recipe.augmentation.scale=[0.1,nan]": "scale=[0.1, nan]: give [low, high]",
    "recipe.regularization.layer_scale=nan": "layer_scale=nan: give a number between",
    "mixer=local_attention mixer.window=10000000000000000": "mixer.window=10000000000000000: give",
    "mixer=plan mixer.plan=[{name:attention,attn_drop:inf}]": "'attn_drop': inf}]: give a number",
    "tracking.flush_seconds=inf": "tracking.flush_seconds=inf: give",  # after training, no upload
    "tracking.timeout_seconds=1e10": "give a number above 0, up to 86400",
    "run.workers=1000000000": "run.workers=1000000000: give 0 or more, up to 1024",
    "run.threads=1000000": "run.threads=1000000: give 1 or more, up to 1024",
    "run.devices=1000000": "run.devices=1000000: give 1 or more, up to 1024",
    "recipe.epochs=1000000000000": "epochs=1000000000000: give 1 or more, up to 1000000",
    "protocol.image_size=1000000": "image_size=1000000: give 1 or more, up to 16384",
    "recipe.batch.size=4000000000": "batch.size=4000000000: give 1 or more, up to 1048576",
    "run.evaluation_batch_size=4000000000": "give 1 or more, up to 1048576",
    "size.depth=1000000": "size.depth=1000000: give 1 or more, up to 65536",
    "launcher.devices=[-1]": "launcher.devices=[-1]: give the numbers of GPUs, from 0",
    "data=synthetic data.val_images=0": "data.val_images=0: give 1 or more",
    "data=synthetic data.train_images=0": "data.train_images=0: give 1 or more",
    "data=synthetic data.num_classes=0": "data.num_classes=0: give 1 or more",
    "protocol.patch_size=0": "patch_size=0: give 1 or more",
}
WRONG_REASON = {
    "mixer='patch_ff' run.sed=1": "'sed'",  # blames the quoted, correct mixer
    "data.root=a=b": "data.root=a=b",  # does not say which argument
}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        *TRACEBACKS.items(),
        *TAKEN_WITHOUT_A_WORD.items(),
        *BEYOND_ALL_MACHINES.items(),
        *WRONG_REASON.items(),
    ],
)
def test_what_once_slipped_through_is_refused(
    line: str, expected: str, refused: Callable[..., str]
) -> None:
    assert expected in refused("train", "--cfg", *line.split())


def test_a_level_whose_library_is_missing_is_refused(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], command: Callable[..., Any]
) -> None:
    line = ("train", "--cfg", "data.pixels=same-law-opencv")
    assert command(*line).code == 0
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert "pip install 'mixerbench[opencv]'" in refused(*line)


# --- plugins --------------------------------------------------------------------------------

PLUGIN = '''
from mixers import TokenMixer, register_mixer

@register_mixer("{name}")
class Mine(TokenMixer):
    """Nothing."""
    any_grid = {any_grid}
    mixes_prefix = False
    paper = "none"
    def __init__(self, dim, grid, num_heads, *, size: int = {default}, mode: str = "a"):
        super().__init__(dim, grid, num_heads)
    def forward(self, x, grid):
        return x
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a plugin into the current folder, which is the test's own."""
    monkeypatch.chdir(tmp_path)

    def write(name: str = "mine", any_grid: bool = True, default: str = "3") -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(PLUGIN.format(name=name, any_grid=any_grid, default=default))
        return path

    return write


def test_a_plugins_mixer_is_composed_like_any_other(plugin: Callable[..., Path]) -> None:
    path = plugin()
    line = "mixer=mine,attention mixer.size=5 plugins=[mine.py]"
    with pytest.raises(Refusal, match="no setting 'size'"):
        compose_sweep(line.split())  # attention has no size
    (settings,) = compose_sweep(shlex.split("mixer=mine mixer.size=5 plugins=[mine.py]"))
    assert settings.model["mixer"] == {"name": "mine", "size": 5, "mode": "a"}
    assert settings.label == "mine_micro_size=5"
    assert settings.plugins == [str(path)]


def test_of_two_lists_of_plugins_the_last_one_counts(
    plugin: Callable[..., Path], refused: Callable[..., str]
) -> None:
    plugin()
    last = plugin("other")
    line = ["plugins=[mine.py]", "plugins=[other.py]"]
    (settings,) = compose_sweep(["mixer=other", *line])
    assert settings.plugins == [str(last)]
    assert "unknown mixer 'mine'" in refused("train", "--cfg", "mixer=mine", *line)


def test_a_plugin_is_gone_with_its_command(
    plugin: Callable[..., Path], refused: Callable[..., str]
) -> None:
    plugin()
    assert compose_sweep(["mixer=mine", "plugins=[mine.py]"])
    assert "unknown mixer 'mine'" in refused("train", "--cfg", "mixer=mine")


def test_a_plugins_facts_are_held_against_the_settings(
    plugin: Callable[..., Path], refused: Callable[..., str]
) -> None:
    plugin(any_grid=False)
    train = ["train", "--cfg", "mixer=mine", "plugins=[mine.py]"]
    assert "class token" in refused(*train, "backbone.pool=token")
    assert "12 x 12" in refused(*train, "evaluation.image_size=48")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["mixer=mine", "mixer.siz=5"], ("'siz'", "'size'")),
        (["mixer=mine", "mixer.size=big"], ("mixer.size=big", "whole number")),
        (["mixer=mien"], ("'mien'", "'mine'")),
    ],
)
def test_refusals_know_the_plugins_names(
    settings: list[str],
    expected: tuple[str, ...],
    plugin: Callable[..., Path],
    refused: Callable[..., str],
) -> None:
    plugin()
    message = refused("train", "--cfg", *settings, "plugins=[mine.py]")
    assert all(words in message for words in expected), message


def test_a_name_that_is_taken_is_refused(
    plugin: Callable[..., Path], refused: Callable[..., str]
) -> None:
    plugin("attention")
    message = refused("train", "--cfg", "plugins=[attention.py]")
    assert "'attention' is registered twice" in message
    assert "attention.py" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def (:", "not valid Python"),
        (PLUGIN.format(name="mine", any_grid=True, default="2 ** n"), "no literal"),
    ],
)
def test_a_broken_plugin_is_refused_with_its_place(
    text: str, expected: str, plugin: Callable[..., Path], refused: Callable[..., str]
) -> None:
    path = plugin()
    path.write_text(text)
    message = refused("train", "--cfg", "mixer=mine", "plugins=[mine.py]")
    assert expected in message
    assert str(path) in message
