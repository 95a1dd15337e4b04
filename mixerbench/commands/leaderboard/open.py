"""``mixerbench leaderboard open``: the boards as pages, in the browser of this machine."""

import argparse
import tempfile
import webbrowser
from pathlib import Path

from mixerbench.commands import Command
from mixerbench.commands._arguments import add_hardware, add_uri, results_address, split_plugins
from mixerbench.commands.leaderboard.site import write


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_hardware(parser)
    add_uri(parser, or_bundle=True)


def _run(options: argparse.Namespace) -> None:
    filters, plugins = split_plugins(options.settings)
    address = results_address(options.uri)
    # It stays: the browser reads it after this process has ended.
    folder = Path(tempfile.mkdtemp(prefix="mixerbench-leaderboard-")) / "site"
    written = write(address, folder, filters=filters, hardware=options.hardware, plugins=plugins)
    if webbrowser.open(written.index.as_uri()):
        print(written.index)
    else:
        print(f"no browser can be opened here; the page is {written.index}")


COMMAND = Command(
    summary="write the pages to a temporary folder and open them in the browser",
    description="Write the leaderboard's pages to a temporary folder and open them in the browser.",
    help="""\
FIELD=VALUE shows only some entries, as in 'mixerbench leaderboard'.

examples:
  mixerbench leaderboard open
  mixerbench leaderboard open protocol=digits --uri leaderboard/published/digits_micro
""",
    run=_run,
    add_flags=_add_flags,
    order=10,
)
