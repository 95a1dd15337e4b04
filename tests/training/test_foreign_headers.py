"""A checkpoint's header is data, whoever wrote it: nothing in it is run or looked up."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mixerbench.commands._checkpoint import evaluate_place
from mixerbench.config.plugins import load_plugins
from mixerbench.config.schema import Protocol
from mixerbench.data import source
from mixerbench.data.images import Splits
from mixerbench.data.source import open_images
from mixerbench.errors import Refusal
from mixerbench.models.build import build_model
from mixerbench.training import checkpoint

CANARY = """
from pathlib import Path
from mixers import TokenMixer, register_mixer
Path({place!r}).touch()

@register_mixer("canary")
class Canary(TokenMixer):
    any_grid, mixes_prefix, paper = True, True, "none"

    def forward(self, x, grid):
        return x + x.mean(dim=1, keepdim=True)
"""


@pytest.fixture
def written(plain: Any, tmp_path: Path) -> Callable[..., str]:
    """A file with the weights of a run, under a header with changed settings."""

    def write(change: Callable[[dict[str, Any]], Any] = lambda settings: None) -> str:
        about = copy.deepcopy(checkpoint.header(plain.folder / "model.safetensors"))
        change(about["settings"])
        path = tmp_path / "theirs.safetensors"
        checkpoint.save(path, plain.weights, about)
        return str(path)

    return write


def refusal(place: str, *given: str) -> str:
    with pytest.raises(Refusal) as error:
        evaluate_place(place, list(given), ema=False, predictions=None)
    message = str(error.value)
    assert len(message.splitlines()) == 1 and message.isprintable()
    assert place in message
    return message


def test_a_plugin_is_run_only_when_this_command_line_names_it(
    tiny: Callable[..., Any], tmp_path: Path, forget_plugins: Callable[[], None]
) -> None:
    canary, plugin = tmp_path / "was_run", tmp_path / "theirs.py"
    plugin.write_text(CANARY.format(place=str(canary)))
    settings = tiny("mixer=canary", f"plugins=[{plugin}]")
    load_plugins(settings)
    model = build_model(settings, len(open_images(settings.protocol).train.classes))
    file = tmp_path / "theirs.safetensors"
    checkpoint.save(file, model.state_dict(), {"settings": dataclasses.asdict(settings)})
    forget_plugins()
    canary.unlink()
    message = refusal(str(file))
    assert "mixer 'canary'" in message and "'plugins=[theirs.py]'" in message
    assert not canary.exists()
    assert "top-1" in evaluate_place(str(file), [f"plugins=[{plugin}]"], False, None)
    assert canary.exists()


def test_a_plugin_that_the_model_does_not_need_is_left_alone(
    written: Callable[..., str], tmp_path: Path
) -> None:
    canary, plugin = tmp_path / "was_run", tmp_path / "theirs.py"
    plugin.write_text(CANARY.format(place=str(canary)))
    place = written(lambda settings: settings.update(plugins=[str(plugin)]))
    assert "top-1" in evaluate_place(place, [], False, None)
    hidden = written(lambda settings: settings["model"].update(plugins=f"[{plugin}]"))
    assert "top-1" in evaluate_place(hidden, [], False, None)
    assert not canary.exists()


LOOKED_UP = {
    "a value": lambda s: s["protocol"]["data"].update(root="${oc.env:SECRET}"),
    "a name": lambda s: s["model"]["stem"].update(name="${oc.env:SECRET}"),
    "a part": lambda s: s["model"].update(stem="${oc.env:SECRET}"),
    "in a list": lambda s: s["protocol"]["data"].update(mean=["${oc.env:SECRET}", 0, 0]),
    "in a plan": lambda s: s["model"].update(
        mixer={"name": "plan", "plan": [{"name": "attention", "x": "${oc.env:SECRET}"}]}
    ),
    "escaped": lambda s: s["protocol"]["data"].update(root=r"\\${oc.env:SECRET}"),
    "a key": lambda s: s["protocol"].update({"${oc.env:SECRET}": 1}),
    "another setting": lambda s: s["protocol"].update({"data.root=/x protocol.data.root": 1}),
}


@pytest.mark.parametrize("change", LOOKED_UP.values(), ids=LOOKED_UP)
def test_nothing_in_a_header_is_looked_up(
    change: Callable[[dict[str, Any]], Any],
    written: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    assert "hunter2" not in refusal(written(change))


def test_a_header_cannot_ask_for_a_download(
    written: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def opened(protocol: Protocol) -> Splits:
        asked.append(protocol.data.download)
        return open_images(protocol)

    monkeypatch.setattr(source, "open_images", opened)
    evaluate_place(written(lambda s: s["protocol"]["data"].update(download=True)), [], False, None)
    assert asked == [False]


MALFORMED = {
    "a list": lambda s: [1],
    "a text": lambda s: "settings",
    "a number": lambda s: 7,
    "empty": lambda s: {},
    "no protocol": lambda s: {**s, "protocol": None},
    "no mixer": lambda s: {**s, "model": {k: v for k, v in s["model"].items() if k != "mixer"}},
    "mixer is a number": lambda s: {**s, "model": {**s["model"], "mixer": 3}},
    "mixer has no name": lambda s: {**s, "model": {**s["model"], "mixer": {}}},
    "unknown mixer": lambda s: {**s, "model": {**s["model"], "mixer": {"name": "nobodys"}}},
    "unknown field": lambda s: {**s, "protocol": {**s["protocol"], "later": 1}},
    "wrong type": lambda s: {**s, "protocol": {**s["protocol"], "image_size": "large"}},
    "nested": lambda s: {**s, "protocol": {**s["protocol"], "image_size": [[[[[[[[[[[1]]]]]]]]]]]}},
    "many blocks": lambda s: {
        **s, "model": {**s["model"], "size": {**s["model"]["size"], "depth": 10**12}}
    },
    "wide": lambda s: {
        **s, "model": {**s["model"], "size": {**s["model"]["size"], "dim": 2 * 10**9}}
    },
    "beyond 64 bits": lambda s: {
        **s, "model": {**s["model"], "size": {**s["model"]["size"], "dim": 10**30}}
    },
    "control characters": lambda s: {**s, "protocol": {**s["protocol"], "\x1b[31m\n": 1}},
    "plugins": lambda s: {**s, "plugins": {"a": 1}},
    "label": lambda s: {**s, "label": 1},
}  # fmt: skip


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_malformed_settings_are_one_line(
    change: Callable[[dict[str, Any]], Any], plain: Any, tmp_path: Path
) -> None:
    settings = checkpoint.header(plain.folder / "model.safetensors")["settings"]
    path = tmp_path / "theirs.safetensors"
    checkpoint.save(path, plain.weights, {"settings": change(settings)})
    refusal(str(path))


@pytest.mark.parametrize(
    "text",
    ["[]", "7", "null", '"x"', "{", "[" * 100_000, "NaN", " " * 16_000_001],
    ids=lambda text: text[:6],
)
def test_a_header_that_is_no_object_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"mixerbench": text})
    refusal(str(path))


def test_a_header_of_an_earlier_version_is_completed(written: Callable[..., str]) -> None:
    def older(settings: dict[str, Any]) -> None:
        for key in ("pixels", "packed"):
            del settings["protocol"]["data"][key]
        del settings["launcher"], settings["plugins"]

    assert "top-1" in evaluate_place(written(older), [], False, None)


def test_what_a_header_says_is_shown_without_control_characters(
    written: Callable[..., str],
) -> None:
    place = written(lambda s: s.update(label="mine\x1b[31m\nand more"))
    text = evaluate_place(place, [], False, None)
    assert text.startswith("mine [31m and more on ") and text.isprintable()
