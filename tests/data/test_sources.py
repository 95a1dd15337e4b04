"""A data source is one class with one decorator, in this repository or in a user's own file."""

import re
import sys
from pathlib import Path

import pytest

from mixerbench.config.compose import compose
from mixerbench.config.schema import protocol_fingerprint
from mixerbench.config.sources import check_data, has_fact, known_classes, source_catalog
from mixerbench.data.source import SOURCES, DataSource, open_images, register_data
from mixerbench.training.folder import complete
from mixers.core.registry import load_plugin

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
STRIPES = re.search(r"```python\n(# my_data.py\n.*?)```", DOCS, re.S)[1]


@pytest.fixture
def stripes(tmp_path):
    """A plugin file with a source of its own; gone again after the test."""
    path = tmp_path / "stripes.py"
    path.write_text(STRIPES)
    before, modules = SOURCES.loaded(), set(sys.modules)
    yield path
    SOURCES.forget(SOURCES.loaded() - before)
    for name in set(sys.modules) - modules:
        if name.startswith("mixerbench_plugin_"):
            del sys.modules[name]


def settings_with(path: Path, *overrides: str):
    return compose([f"plugins=[{path}]", "data.source=stripes", "data.num_classes=2", *overrides])


def test_the_source_text_and_the_loaded_classes_name_the_same_sources():
    assert sorted(source_catalog()) == SOURCES.names()


@pytest.mark.parametrize("name", sorted(source_catalog()))
@pytest.mark.parametrize("fact", ["class_folders", "is_noise", "generator_version"])
def test_the_source_text_and_the_loaded_classes_tell_the_same_facts(name, fact):
    loaded = getattr(SOURCES.get(name), fact)
    assert source_catalog()[name].facts.get(fact, getattr(DataSource, fact)) == loaded
    assert has_fact(name, fact) == bool(loaded)


@pytest.mark.parametrize("name", sorted(source_catalog()))
def test_every_source_says_what_it_is(name):
    assert source_catalog()[name].summary.endswith(".")


def test_a_source_of_a_users_own_file_is_opened_like_any_other(stripes):
    settings = settings_with(stripes, "data.val_images=8")
    check_data(settings.protocol.data)
    assert known_classes(settings.protocol.data) == 2
    load_plugin(stripes)
    splits = open_images(settings.protocol)
    assert (len(splits.train.targets), len(splits.val.targets)) == (512, 8)
    assert splits.train.load(1).shape == (settings.protocol.image_size,) * 2 + (3,)


def test_a_source_that_nobody_registered_is_refused_with_the_known_ones(stripes, refusal):
    message = refusal(lambda: compose(["data.source=stripes"]))
    for name in ("stripes", *SOURCES.names()):
        assert name in message
    message = refusal(lambda: settings_with(stripes, "data.source=strips"))
    assert "stripes" in message


def test_a_source_may_ask_for_settings_only(refusal):
    def register() -> None:
        @register_data("with_a_typo")
        class Source(DataSource):
            def __init__(self, *, rooot: str) -> None: ...

            def open(self):
                raise NotImplementedError

    message = refusal(register)
    assert "with_a_typo" in message
    assert "'rooot'" in message
    assert "root" in message.replace("rooot", "")
    assert "with_a_typo" not in SOURCES.loaded()


# --- what the images are: part of the fingerprint -----------------------------------------------


def completed(protocol) -> str:
    complete(protocol, open_images(protocol))
    return protocol_fingerprint(protocol)


def test_other_files_under_the_same_names_are_another_fingerprint(folder, tree):
    before = completed(folder())
    assert completed(folder()) == before
    for split in ("train", "val"):
        image = tree.root / split / "flower" / "0.JPEG"
        original = image.read_bytes()
        image.write_bytes(original + b"\0")
        assert completed(folder()) != before
        image.write_bytes(original)
    assert completed(folder()) == before


def test_more_files_than_one_chunk_keep_their_order(folder, tree, monkeypatch):
    content = open_images(folder()).content
    monkeypatch.setattr("mixerbench.data.sources.folder._PATHS_AT_ONCE", 1)
    assert open_images(folder()).content == content


def test_a_link_to_nowhere_is_opened_and_counted(folder, tree):
    (tree.root / "train/flower/9.JPEG").symlink_to("missing")
    assert completed(folder()) == completed(folder())


def test_generated_images_say_what_generated_them(small, monkeypatch):
    splits = open_images(small())
    assert splits.content == (
        "synthetic version=1 image_size=32 num_classes=5 train_images=24 val_images=7"
    )
    before = completed(small())
    monkeypatch.setattr(SOURCES.get("synthetic"), "generator_version", 2)
    assert completed(small()) != before


def test_digits_keep_the_fingerprint_that_they_always_had(protocol):
    assert open_images(protocol("digits")).content is None
