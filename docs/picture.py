"""Draws printed text as a picture: mixerbench leaderboard | python docs/picture.py FILE.svg"""

import re
import sys

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text


def main() -> None:
    text = Text.from_ansi(sys.stdin.read().rstrip())
    width = max(len(line) for line in text.plain.splitlines()) + 1
    console = Console(record=True, width=width, file=open("/dev/null", "w"))
    console.print(text, soft_wrap=True)
    # Without the fonts that rich would load from the network.
    code_format = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(
        sys.argv[1], title="mixerbench leaderboard", theme=MONOKAI, code_format=code_format
    )


if __name__ == "__main__":
    main()
