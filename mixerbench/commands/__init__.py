"""The commands: each file of this folder that has no underscore is one, called like its file.

It exports `COMMAND`, and nothing lists it. Whatever is slow to load (torch, MLflow, hydra, rich)
is imported where the work begins: help and a mistyped flag must not wait for it. Work that is long
stands in a file with an underscore beside the command. A folder is a command with actions: its
``__init__.py`` is the command, its files are the actions.
"""

import argparse
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from mixerbench.errors import Done, Refusal


def _no_flags(parser: argparse.ArgumentParser) -> None:
    """A command without flags of its own."""


@dataclass(frozen=True)
class Command:
    """What a file declares of its command."""

    summary: str
    """One line in the list of commands."""
    description: str
    """The first lines of its own help."""
    help: str
    """What follows the flags there: explanations, then ``examples:``; ``{actions}`` lists them."""
    run: Callable[[argparse.Namespace], None]
    """Does the work, with the flags and, as ``settings``, what was given as SETTING=VALUE."""
    add_flags: Callable[[argparse.ArgumentParser], None] = _no_flags
    settings: str = "*"
    """How many SETTING=VALUE it takes, as argparse's ``nargs``; empty: none."""
    order: int = 1000
    """Where it stands in the list of commands: small numbers first, equal ones by name."""


def find_commands(package: str = __name__) -> dict[str, str]:
    """Name -> module of the commands in a package; none of them is imported.

    A name that Python reserves has an underscore behind it: ``import_.py`` is ``import``.
    """
    return {
        module.name.rstrip("_"): f"{package}.{module.name}"
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
        if not module.name.startswith("_")
    }


def load(module: str) -> Command:
    """The command that a module declares."""
    command: Command = importlib.import_module(module).COMMAND
    return command


def summaries(package: str = __name__) -> str:
    """A line for each command of a package, for help."""
    commands = {name: load(module) for name, module in find_commands(package).items()}
    names = sorted(commands, key=lambda name: (commands[name].order, name))
    width = max(map(len, names), default=0) + 3
    return "\n".join(f"  {name:{width}}{commands[name].summary}" for name in names)


def run_command(name: str, module: str, arguments: Sequence[str]) -> None:
    """Run the command ``name`` of ``module``, or the action of it that comes first.

    Raises:
        Done: help was asked for and has been printed.
        Refusal: the arguments are wrong.
    """
    is_folder = hasattr(importlib.import_module(module), "__path__")
    actions = find_commands(module) if is_folder else {}
    if arguments and arguments[0] in actions:
        run_command(f"{name} {arguments[0]}", actions[arguments[0]], arguments[1:])
        return
    command = load(module)
    parser = _Parser(
        prog=f"mixerbench {name}",
        description=command.description,
        epilog=command.help.replace("{actions}", summaries(module) if actions else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if command.settings:
        parser.add_argument(
            "settings", nargs=command.settings, metavar="SETTING=VALUE", help=argparse.SUPPRESS
        )
    command.add_flags(parser)
    command.run(parser.parse_intermixed_args(arguments))


class _Parser(argparse.ArgumentParser):
    """Does not end the process itself."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Done  # only --help ends here: errors are refusals

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message}. See '{self.prog} --help'.")
