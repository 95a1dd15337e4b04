"""What is registered, read from source text: no module is imported, torch least of all.

A registered class is found by its decorator ``@register_<kind>("name")``, its
configuration by the keyword-only arguments of ``__init__``, its facts by the class
attributes. All of them must therefore be literals, which is also what a reader wants.
"""

import ast
import difflib
import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mixers.core.errors import Refusal

_HOME = Path(__file__).parents[1]
"""The folder of this package, a file per family."""

MISSING: Any = object()
"""The default of an option that has none."""


@dataclass(frozen=True)
class Option:
    """One keyword-only argument of a registered class."""

    name: str
    annotation: str
    default: Any


@dataclass(frozen=True)
class Entry:
    """One registered class, as its source text tells it."""

    kind: str
    name: str
    class_name: str
    summary: str
    facts: Mapping[str, Any]
    options: tuple[Option, ...]
    path: Path

    @property
    def paper(self) -> str:
        return str(self.facts.get("paper", ""))

    @property
    def formula(self) -> str:
        return str(self.facts.get("formula", ""))


def read_file(path: Path, kind: str) -> list[Entry]:
    """The classes of one Python file that are registered as ``kind``.

    Raises:
        Refusal: the file is no Python, or a decorator's name is no string literal.
    """
    try:
        tree = _parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} is not valid Python: {error}") from None
    return [
        _entry(node, call, kind, path)
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for call in node.decorator_list
        if isinstance(call, ast.Call) and _last_name(call.func) == f"register_{kind}"
    ]


_parse = lru_cache(maxsize=256)(ast.parse)
"""A file is read once for each kind; by its text, so that a plugin may change."""


def read_files(paths: Iterable[Path], kind: str) -> dict[str, Entry]:
    """The registered classes of several files, by name, in the order of the files.

    Raises:
        Refusal: two classes have one name.
    """
    found: dict[str, Entry] = {}
    for path in paths:
        for entry in read_file(path, kind):
            if entry.name in found:
                raise Refusal(
                    f"{kind} {entry.name!r} is registered twice: in {found[entry.name].path} "
                    f"and in {path}. Rename one of them."
                )
            found[entry.name] = entry
    return found


def mixer_catalog(plugins: Iterable[str | Path] = ()) -> dict[str, Entry]:
    """Every mixer that can be named: built-in, from installed packages, from plugin files."""
    files = [*_built_in_files(), *map(plugin_path, plugins)]
    return read_files(dict.fromkeys(files), "mixer")  # a plugin may be named twice


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


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the known names, the nearest one first."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names)}."


@cache
def _built_in_files() -> tuple[Path, ...]:
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


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _entry(node: ast.ClassDef, call: ast.Call, kind: str, path: Path) -> Entry:
    name = call.args[0] if call.args else None
    if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
        raise Refusal(f"{path}:{node.lineno}: @register_{kind} takes the name as a literal.")
    doc = ast.get_docstring(node) or ""
    return Entry(
        kind=kind,
        name=name.value,
        class_name=node.name,
        summary=" ".join(doc.split("\n\n")[0].split()),
        facts=_facts(node),
        options=_options(node, path),
        path=path,
    )


def _facts(node: ast.ClassDef) -> dict[str, Any]:
    facts = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name):
                try:
                    facts[target.id] = ast.literal_eval(value)
                except (ValueError, TypeError):
                    continue  # computed: no fact that can be read without running the class
    return facts


def _options(node: ast.ClassDef, path: Path) -> tuple[Option, ...]:
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            arguments = statement.args
            return tuple(
                Option(
                    argument.arg,
                    ast.unparse(argument.annotation) if argument.annotation else "Any",
                    MISSING if default is None else _literal(default, node, argument.arg, path),
                )
                for argument, default in zip(
                    arguments.kwonlyargs, arguments.kw_defaults, strict=True
                )
            )
    return ()


def _literal(default: ast.expr, node: ast.ClassDef, argument: str, path: Path) -> Any:
    try:
        return ast.literal_eval(default)
    except ValueError:
        raise Refusal(
            f"{path}:{default.lineno}: the default of {node.name}({argument}=...) is no literal: "
            "write the number, string, tuple or None itself."
        ) from None
