"""What is registered, read from source text: no module is imported, torch least of all.

A registered class is found by its decorator ``@register_<kind>("name")``, its options by the
keyword-only arguments of ``__init__``, its facts by the class attributes. All of them must
therefore be literals, which is also what a reader wants. Base classes are followed within
``mixers``, ``mixerbench`` and whatever the file itself belongs to.
"""

import hashlib
import importlib.util
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from mixers.core.errors import Refusal
from mixers.core.source import read_file
from mixers.core.spec import Spec

_HOME = Path(__file__).parents[1]
"""The folder of this package, a file per family."""


def read_files(paths: Iterable[Path], kind: str) -> dict[str, Spec]:
    """The registered classes of several files, by name, in the order of the files.

    Raises:
        Refusal: two classes have one name.
    """
    specs: dict[str, Spec] = {}
    for path in dict.fromkeys(paths):  # a plugin may be named twice
        for spec in read_file(path, kind):
            if spec.name in specs:
                raise Refusal(
                    f"{kind} {spec.name!r} is registered twice: in {specs[spec.name].path} "
                    f"and in {path}. Rename one of them."
                )
            specs[spec.name] = spec
    return specs


def mixer_catalog(plugins: Iterable[str | Path] = ()) -> dict[str, Spec]:
    """Every mixer that can be named: built-in, from installed packages, from plugin files."""
    return read_files([*installed_files(), *map(plugin_path, plugins)], "mixer")


def plugin_path(plugin: str | Path) -> Path:
    """The absolute path of a plugin file, links resolved.

    Raises:
        Refusal: there is no such Python file.
    """
    path = Path(plugin).expanduser().resolve()
    if path.suffix != ".py" or not path.is_file():
        raise Refusal(f"plugin {plugin} is not a Python file: give the path of a .py file.")
    return path


def source_digest(source: bytes) -> str:
    """16 hex digits of a file's source: another byte, another mixer."""
    return hashlib.sha256(source).hexdigest()[:16]


def is_built_in(path: Path) -> bool:
    """Is it a file of this package, and not of a plugin or of another installed package?"""
    return path.parent == _HOME


@cache
def installed_files() -> tuple[Path, ...]:
    """Those of this package and of installed packages that offer mixers; looked for once.

    Raises:
        Refusal: names a package whose file is not there.
    """
    files = sorted(_HOME.glob("*.py"))
    for point in entry_points(group="mixerbench.mixers"):
        try:
            spec = importlib.util.find_spec(point.module)  # imports the packages around it
        except (Exception, SystemExit) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise Refusal(f"{described(point)} cannot be found ({said}). {_MEND}") from None
        if spec is None or spec.origin is None or not Path(spec.origin).is_file():
            raise Refusal(f"{described(point)} is not there. {_MEND}")
        files.append(Path(spec.origin))
    return tuple(files)


_MEND = "Mend that package, or uninstall it."


def described(point: EntryPoint) -> str:
    """Which package offers mixers, and in which module."""
    package = "an installed package" if point.dist is None else f"package {point.dist.name!r}"
    return f"entry point {point.name!r}, module {point.module} of {package},"
