"""Reads registered classes from the text of Python files, base classes included. No torch here."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from mixers.core.errors import Refusal
from mixers.core.spec import MISSING, Spec, last_name, split_parameters, summary_of

_ROOT = Path(__file__).parents[2]
_OWN = ("mixers", "mixerbench")


def read_file(path: Path, kind: str) -> list[Spec]:
    """The classes of one Python file that are registered as ``kind``.

    Raises:
        Refusal: the file is no Python, or what must be a literal is none.
    """
    source = _Source(path)
    return [
        _spec(_Class(node, source), call, kind)
        for node in source.tree.body
        if isinstance(node, ast.ClassDef)
        for call in node.decorator_list
        if isinstance(call, ast.Call) and last_name(call.func) == f"register_{kind}"
    ]


_parse = lru_cache(maxsize=256)(ast.parse)
"""A file is read once for each kind; by its text, so that a plugin may change."""


@dataclass(frozen=True)
class _Source:
    """A Python file, and where its names come from."""

    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        try:
            return _parse(self.path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError) as error:
            raise Refusal(f"{self.path} is not valid Python: {error}") from None

    @cached_property
    def _root(self) -> Path:
        """The folder that the file's own package, or the file itself, is imported from."""
        folder = self.path.parent
        while (folder / "__init__.py").is_file():
            folder = folder.parent
        return folder

    @cached_property
    def _names(self) -> dict[str, ast.ClassDef | str]:
        """Name -> the class of this file, or the dotted path of what was imported."""
        names: dict[str, ast.ClassDef | str] = {}
        package = [*self.path.parent.relative_to(self._root).parts]
        for node in _statements(self.tree.body):
            if isinstance(node, ast.ClassDef):
                names[node.name] = node
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    names[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                parents = package[: len(package) - node.level + 1] if node.level else []
                base = [*parents, *(node.module or "").split(".")]
                for alias in node.names:
                    names[alias.asname or alias.name] = ".".join(filter(None, [*base, alias.name]))
        return names

    def find(self, name: str) -> "_Class | None":
        """The class that the dotted ``name`` means in this file, if its source may be read."""
        first, _, rest = name.partition(".")
        meant = self._names.get(first)
        if isinstance(meant, ast.ClassDef):
            return None if rest else _Class(meant, self)
        return None if meant is None else self._imported(f"{meant}.{rest}" if rest else meant)

    def _imported(self, name: str) -> "_Class | None":
        module, _, attribute = name.rpartition(".")
        path = self._file_of(module)
        return None if path is None or path == self.path else _Source(path).find(attribute)

    def _file_of(self, module: str) -> Path | None:
        """The file of a module of ours, of the file's own package, or beside the file."""
        parts = module.split(".")
        own = self.path.relative_to(self._root).parts
        root = _ROOT if parts[0] in _OWN else self._root
        if root == self._root and len(own) > 1 and parts[0] != own[0]:
            return None  # another package, such as torch
        path = root.joinpath(*parts)
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        package = path / "__init__.py"
        return package if package.is_file() and (root == _ROOT or len(own) > 1) else None

    def value_of(self, name: str) -> ast.expr | None:
        """What a module-level ``name = ...`` of this file stands for."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and name in map(last_name, node.targets):
                return node.value
        return None


@dataclass(frozen=True)
class _Class:
    node: ast.ClassDef
    source: _Source

    @cached_property
    def line(self) -> "list[_Class]":
        """The class, then its bases whose source may be read: the order in which Python looks."""
        bases = [self.source.find(ast.unparse(base)) for base in self.node.bases]
        known = [base for base in bases if base and base.node is not self.node]
        classes = [self, *(cls for base in known for cls in base.line)]
        last = {id(cls.node): i for i, cls in enumerate(classes)}  # a base common to two comes once
        return [cls for i, cls in enumerate(classes) if last[id(cls.node)] == i]

    @property
    def is_abstract(self) -> bool:
        return "ABC" in map(last_name, self.node.bases)

    @cached_property
    def assignments(self) -> list[tuple[str, ast.expr]]:
        """Class attributes and their values, in order."""
        pairs = []
        for statement in self.node.body:
            if isinstance(statement, ast.AnnAssign) and statement.value is not None:
                pairs += _pairs(statement.target, statement.value)
            elif isinstance(statement, ast.Assign):
                for target in statement.targets:
                    pairs += _pairs(target, statement.value)
        return pairs

    @cached_property
    def declared(self) -> set[str]:
        """Names that are annotated ``ClassVar``: facts that the classes below must declare."""
        return {
            last_name(statement.target)
            for statement in self.node.body
            if isinstance(statement, ast.AnnAssign) and "ClassVar" in ast.dump(statement.annotation)
        }


def _spec(cls: _Class, call: ast.Call, kind: str) -> Spec:
    name = call.args[0] if call.args else None
    if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
        raise Refusal(
            f"{cls.source.path}:{cls.node.lineno}: @register_{kind} takes the name as a literal."
        )
    documented = [c for c in cls.line if not c.is_abstract and ast.get_docstring(c.node)]
    parameters = next((own for own in map(_parameters, cls.line) if own is not None), {})
    options, given = split_parameters(parameters)
    return Spec(
        kind=kind,
        name=name.value,
        class_name=cls.node.name,
        summary=summary_of(ast.get_docstring(documented[0].node) if documented else None),
        facts=_facts(cls),
        options=options,
        given=given,
        path=cls.source.path,
    )


def _facts(cls: _Class) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    declared = set().union(*(base.declared for base in cls.line))
    for base in reversed(cls.line):
        for name, value in base.assignments:
            if name.startswith("_"):
                continue
            try:
                facts[name] = ast.literal_eval(value)
            except (ValueError, TypeError):
                if name in declared:
                    raise Refusal(
                        f"{base.source.path}:{value.lineno}: {base.node.name}.{name} is no "
                        "literal: write the number, string or tuple itself."
                    ) from None
                facts.pop(name, None)  # computed: nothing that is read without running the class
    return facts


def _parameters(cls: _Class) -> dict[str, tuple[str, Any]] | None:
    """The keyword-only parameters of the class's own ``__init__``; None if it has none."""
    for statement in cls.node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            arguments = statement.args
            pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            return {
                argument.arg: (
                    _annotation(argument.annotation, cls.source),
                    MISSING if default is None else _literal(default, argument.arg, cls),
                )
                for argument, default in pairs
            }
    return None


def _annotation(node: ast.expr | None, source: _Source) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.Name):
        named = source.value_of(node.id)  # Border = Literal["zero", "masked"]
        if isinstance(named, ast.Subscript):
            node = named
    return ast.unparse(node) if node else "Any"


def _literal(default: ast.expr, argument: str, cls: _Class) -> Any:
    try:
        return ast.literal_eval(default)
    except ValueError:
        raise Refusal(
            f"{cls.source.path}:{default.lineno}: the default of {cls.node.name}({argument}=...) "
            "is no literal: write the number, string, tuple or None itself."
        ) from None


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[str, ast.expr]]:
    """``a, b = 1, 2`` as two pairs."""
    if isinstance(target, ast.Name):
        return [(target.id, value)]
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        parts = zip(target.elts, value.elts, strict=False)
        return [pair for part in parts for pair in _pairs(*part)]
    return []


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module, inside ``if`` and ``try`` too."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
            yield from _statements(node.orelse)
