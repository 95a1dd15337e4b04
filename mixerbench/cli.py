"""The command line: ``mixerbench <command> ...``. Nothing heavy is imported before it is needed."""

import os
import sys
from collections.abc import Sequence

from mixerbench import process, streams
from mixerbench.commands import find_commands, run_command, summaries
from mixerbench.errors import Refusal, exit_code
from mixerbench.stopping import Stop

HELP = """\
mixerbench: does your token mixer beat attention, fairly?

Usage: mixerbench COMMAND [SETTING=VALUE ...]

Commands
{commands}

Settings are of three groups
  model         free to vary: mixer, size, stem, backbone, or a preset of them
  protocol      identical in one leaderboard: data, recipe, evaluation
  run           without influence on the result: run.device, run.precision, tracking.uri, ...

Examples
  mixerbench train mixer=patch_ff size=base
  mixerbench train -m mixer=patch_ff,attention,local_attention run.seed=0,1,2
  mixerbench train preset=lit_s protocol=imagenet_lit protocol.data.root=/data/imagenet
  mixerbench leaderboard

'mixerbench COMMAND --help' shows more of each. MIXERBENCH_DEBUG=1 shows tracebacks.
"""


def main() -> None:
    process.prepare()
    streams.prepare()
    with Stop(at_once=True):
        code = exit_code(lambda: _dispatch(sys.argv[1:]))
    sys.exit(code)


def _dispatch(arguments: Sequence[str]) -> None:
    commands = find_commands()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.replace("{commands}", summaries()), end="")
    elif arguments[0] == "--version":
        from mixerbench import __version__

        print(__version__)
    elif arguments[0] in commands:
        _check_text(arguments)
        run_command(arguments[0], commands[arguments[0]], arguments[1:])
    else:
        from mixers.core.names import nearest

        raise Refusal(f"unknown command {arguments[0]!r}. {nearest(arguments[0], commands)}")


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse names of files that no setting, store or page can be written with.

    Raises:
        Refusal: an argument or the working folder's name is no UTF-8, or the folder is gone.
    """
    try:
        folder = os.getcwd()
    except OSError:
        raise Refusal("the working folder is gone: change to one that is there.") from None
    for kind, text in [("the working folder", folder), *(("the argument", a) for a in arguments)]:
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(text).decode(errors="backslashreplace")
            raise Refusal(
                f"{kind} {shown} is no UTF-8, in which settings, stores and pages are written: "
                "give it another name."
            ) from None


if __name__ == "__main__":
    main()
