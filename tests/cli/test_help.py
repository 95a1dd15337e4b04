"""Help, lists, and what the command line says of commands and options that are not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from micro_backbones import SIZES

import mixerbench
from mixerbench import commands
from mixerbench.commands import find_commands
from mixerbench.config.files import config_names
from mixerbench.config.parts import part_catalog
from mixerbench.config.presets import PRESETS
from mixers.core.plan import SCHEDULES

COMMANDS = tuple(find_commands())
ACTIONS = tuple(find_commands("mixerbench.commands.leaderboard"))
Command = Callable[..., Any]


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_names_every_command(arguments: list[str], command: Command) -> None:
    outcome = command(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    for name in COMMANDS:
        assert f"\n  {name} " in outcome.out


def test_the_commands_of_always_are_there() -> None:
    named = {"train", "suite", "eval", "profile", "list", "measure", "leaderboard", "sync",
             "import", "pack", "reproduce"}  # fmt: skip
    assert named <= set(COMMANDS)
    assert {"site", "serve", "publish", "export", "import"} <= set(ACTIONS)


def test_the_commands_stand_in_a_sensible_order(command: Command) -> None:
    out = command().out
    assert out.index("\n  train ") < out.index("\n  eval ") < out.index("\n  leaderboard ")


@pytest.mark.parametrize("name", ACTIONS)
def test_each_action_of_the_leaderboard_is_listed_and_has_help(name: str, command: Command) -> None:
    assert f"\n  {name} " in command("leaderboard", "--help").out
    outcome = command("leaderboard", name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"\n  mixerbench leaderboard {name}" in outcome.out


def test_a_file_in_the_folder_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    (tmp_path / "greet.py").write_text(
        "from mixerbench.commands import Command\n"
        "def _run(options):\n    print('hello', *options.settings)\n"
        "COMMAND = Command('say hello', 'Say hello.', 'examples:\\n  mixerbench greet', _run)\n"
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert "\n  greet         say hello\n" in command("--help").out
    assert "Say hello." in command("greet", "--help").out
    assert command("greet", "you").out == "hello you\n"


@pytest.mark.parametrize("has_browser", [True, False])
def test_open_writes_the_pages_and_says_where_they_are(
    has_browser: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("webbrowser.open", lambda uri: opened.append(uri) or has_browser)
    monkeypatch.setattr(
        "mixerbench.commands.leaderboard._mixer_pages.families_of", lambda *_: {}
    )  # which takes seconds to measure, and pages of mixers have tests of their own
    published = Path(__file__).parents[2] / "leaderboard" / "published" / "digits_micro"
    outcome = command("leaderboard", "open", "--uri", str(published))
    assert (outcome.code, outcome.err) == (0, "")
    (line,) = outcome.out.splitlines()
    page = Path(line.split()[-1])
    assert page.is_file() and page.is_relative_to(tmp_path)
    assert opened == [page.as_uri()]
    assert ("no browser" in line) is not has_browser


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples_of_it(name: str, command: Command) -> None:
    outcome = command(name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert "examples:" in outcome.out
    assert outcome.out.count(f"\n  mixerbench {name}") >= 2


def test_the_version_is_the_packages(command: Command) -> None:
    assert command("--version").out == f"{mixerbench.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], ("'trian'", "'train'", "leaderboard")),
        (["evaluate"], ("'evaluate'", "'eval'")),
        (["mixer=attention"], ("'mixer=attention'", "train")),
        (["--train"], ("'--train'", "train")),
        (["train", "--multi"], ("--multi", "mixerbench train --help")),
        (["list", "mixrs"], ("'mixrs'", "'mixers'")),
        (["sync"], ("mixerbench sync --help",)),
        (["sync", "/nowhere"], ("/nowhere", "run's folder")),
        (["eval"], ("checkpoint=",)),
        (["suite"], ("run", "show")),
        (["suite", "shwo"], ("'shwo'", "'show'")),
        (["suite", "run"], ("suite=NAME", "list suites")),
        (["suite", "show", "suite=sed"], ("'sed'", "'seeds'")),
        (["leaderboard", "--format", "xml"], ("'xml'", "csv", "markdown")),
        (["leaderboard", "--sort", "top-1"], ("'top-1'", "top1")),
        (["leaderboard", "--uri", "sqlite:////nowhere/a.db"], ("/nowhere/a.db",)),
        (["leaderboard", "--explain", "a"], ("--explain", "2")),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    arguments: list[str], expected: tuple[str, ...], refused: Callable[..., str]
) -> None:
    message = refused(*arguments)
    for words in expected:
        assert words in message


def test_list_refuses_a_plugin_that_is_not_there(refused: Callable[..., str]) -> None:
    assert "missing.py" in refused("list", "plugins=[missing.py]")


@pytest.mark.parametrize("wrong", ["foo=1", "plugin=[x.py]", "plugins=[a"])
def test_list_takes_no_setting_but_plugins(wrong: str, refused: Callable[..., str]) -> None:
    refused("list", wrong)


def test_list_names_everything_that_can_be_named(command: Command) -> None:
    out = command("list").out
    for name in (
        *part_catalog("mixer"), *SCHEDULES, *part_catalog("stem"), *part_catalog("backbone"),
        *PRESETS, *(name for sizes in SIZES.values() for name in sizes),
        *part_catalog("channel_mixer"), *part_catalog("merging"),
        *config_names("protocol"), *config_names("recipe"), *config_names("data"),
        *config_names("suite"),
    ):  # fmt: skip
        assert f"\n{name} " in out or f"\n{name}\n" in out


def test_list_shows_options_as_they_are_set(command: Command) -> None:
    out = command("list", "mixers").out
    for option in ("window=7", "border=zero", "hidden_dim=null", "qkv_bias=true"):
        assert f" mixer.{option}" in out
    assert "micro" not in out  # a size


def test_list_shows_where_a_mixer_comes_from(command: Command) -> None:
    out = " ".join(command("list", "mixers").out.split())
    assert "arXiv:1906.05909" in out


def test_list_shows_a_plan_as_it_is_set(command: Command) -> None:
    assert "mixer.plan=[none,none,attention,attention]" in command("list", "mixers").out


def test_list_shows_the_mixers_of_a_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        '@register_mixer("mine")\nclass Mine(TokenMixer):\n    any_grid = True\n'
        "    mixes_prefix = False\n    paper = 'my own'\n"
        "    def __init__(self, dim, grid, heads, *, size: int = 3): ...\n"
    )
    out = command("list", "mixers", "plugins=[mine.py]").out
    assert "mixer.size=3" in out
    assert "my own" in out
    assert "mine" not in command("list", "mixers").out
