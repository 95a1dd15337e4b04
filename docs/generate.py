"""The pages that say what is in the code, read from the code: ``python docs/generate.py``.

house.md shows every file with its first sentence, mixers.md every part of a model. With
``--check`` nothing is written, and it fails where a page is out of date.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from mixerbench.config.parts import KINDS, part_catalog
from mixers.core.plan import SCHEDULES
from mixers.core.spec import Spec

HERE = Path(__file__).parent
ROOT = HERE.parent
PACKAGES = ("mixers", "mixerbench", "leaderboard")

HOUSE = """\
# The house

Every file by the first sentence of its docstring, written by `python docs/generate.py`. Imports
point one way: cli → commands → launching → training → {models, objectives, recipe, data, tracking,
measure} → config → mixers. `mixers` knows nothing of the rest, `leaderboard` reads only what runs
have recorded; `tests/test_arrows.py` holds these arrows.

"""


MIXERS = """\
# Mixers, and the parts around them

Read from the classes themselves by `python docs/generate.py`; `mixerbench list` shows the same in
the terminal, with plugins if you name them. Any mixer goes into any backbone, block by block or
stage by stage, behind any stem; what does not fit is refused in one line before anything is
trained.

A mixer's class declares what others must know of it: its `family`; `any_grid`, whether it runs on
another grid than the one it was built for; `mixes_prefix`, whether it carries the image to a class
token; `mixes_channels`, whether it is its own channel mixer; `batch_statistics`, whether an image's
output in training depends on its batch; `complexity`, how its cost grows with the N tokens; and
`operators`, multiply-adds of operators that no counter knows. A mixer that asks for `place: Place`
is told its block and stage, one that asks for `stride: Stride` halves the grid itself.

A plan is a list, spread over the blocks or, in a backbone of several stages, over the stages.
`{cycle: [...]}` stands in it, or alone, for mixers that take turns block by block:

```sh
mixerbench train 'mixer={cycle:[local_attention,{name:local_attention,window:3}]}'   # pairs
mixerbench train 'mixer={cycle:[local_attention,attention]}' size=small   # local, global
mixerbench train backbone=pyramid protocol=imagenet_lit data.root=/data/imagenet \\
    mixer=plan 'mixer.plan=[none,convolution,{cycle:[local_attention,attention]},attention]'
```

"""

NAMED_BY = {"merging": "backbone.merging", "channel_mixer": "backbone.channel_mixer"}
"""The settings that name a part which another part holds."""


def house() -> str:
    """Every file with its first sentence."""
    return HOUSE + "\n".join("\n".join(_section(ROOT / name)) for name in PACKAGES)


def _section(package: Path) -> Iterator[str]:
    yield f"## {package.name}\n"
    yield "| file | what |"
    yield "|---|---|"
    for path in sorted(package.rglob("*.py"), key=_order):
        name = path.relative_to(ROOT)
        sentence = _first_sentence(path)
        if path.name == "__init__.py":
            yield f"| **{name.parent}/** | {sentence} |"
        else:
            yield f"| `{name}` | {sentence} |"
    yield ""


def _order(path: Path) -> tuple[str, str]:
    """A folder before its files, and its files before its folders."""
    return str(path.parent), path.name.replace("__init__.py", "")


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return _text(" ".join(docstring.split("\n\n")[0].split()))


def mixers() -> str:
    """Every mixer, schedule and other part, with its settings."""
    lines = [
        "| mixer | family | what it does | settings | grows as | paper |",
        "|---|---|---|---|---|---|",
    ]
    for name, spec in sorted(part_catalog("mixer").items()):
        facts = [str(spec.facts.get(fact, "")) for fact in ("family", "complexity")]
        cells = [f"`{name}`", facts[0], _text(spec.summary), _settings(spec), facts[1], spec.paper]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| schedule | what it does | paper |", "|---|---|---|"]
    lines += [f"| `{name}` | {one.summary} | {one.paper} |" for name, one in SCHEDULES.items()]
    for kind in KINDS:
        if kind != "mixer":
            lines += ["", f"| `{NAMED_BY.get(kind, kind)}` | what it is | settings | paper |"]
            lines.append("|---|---|---|---|")
            lines += [
                f"| `{name}` | {_text(spec.summary)} | {_settings(spec)} | {spec.paper} |"
                for name, spec in sorted(part_catalog(kind).items())
            ]
    return MIXERS + "\n".join(lines) + "\n"


def _settings(spec: Spec) -> str:
    return ", ".join(f"`{option.name}`" for option in spec.options)


def _text(docstring: str) -> str:
    return docstring.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    outdated = []
    for page, text in {"house.md": house(), "mixers.md": mixers()}.items():
        path = HERE / page
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            outdated.append(page)
            if sys.argv[1:] != ["--check"]:
                path.write_text(text, encoding="utf-8")
    if sys.argv[1:] == ["--check"] and outdated:
        sys.exit(f"{' and '.join(outdated)} out of date: run python docs/generate.py")
