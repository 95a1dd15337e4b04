"""Registering a mixer is one decorator; building one is one call.

``Registry`` serves every kind of interchangeable part (mixers here, stems and
backbones in ``mixerbench.models``), so that all of them are named, listed and
refused alike.
"""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from mixers.core.catalog import described, plugin_path, source_digest
from mixers.core.contract import Place, TokenGrid, TokenMixer
from mixers.core.errors import BrokenCodeError, Refusal, is_out_of_memory
from mixers.core.loaded import spec_of
from mixers.core.names import nearest
from mixers.core.plan import PLAN, SCHEDULES, MixerChoice
from mixers.core.spec import Spec

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes of one kind by name.

    Args:
        kind: what the classes are, in messages ("mixer").
        package: the package whose modules register them; imported when a name is looked up.
        facts: class attributes that every registered class must declare.
        reserved: names that mean something else.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        facts: tuple[str, ...] = (),
        reserved: Collection[str] = (),
    ) -> None:
        self.kind = kind
        self._reserved = reserved
        self._package = package
        self._facts = facts
        self._classes: dict[str, type[T]] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._searched: list[str] = []  # sys.path when installed packages were looked for

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """The decorator that makes a class known as ``name``.

        A class of ``__main__`` may be registered again: a notebook's cell runs twice.

        Raises:
            Refusal: the name is taken, a fact is not declared, or an option has no type.
        """

        def decorate(cls: type[T]) -> type[T]:
            if name in self._reserved:
                raise Refusal(f"{name!r} is the name of a plan. Choose another name.")
            taken = self._classes.get(name)
            if taken is not None and not _is_redefined(taken, cls):
                raise Refusal(
                    f"{self.kind} {name!r} is registered already, by "
                    f"{taken.__module__}.{taken.__qualname__}. Choose another name."
                )
            self._check_class(name, cls)
            self._classes[name] = cls
            for listener in self._listeners:
                listener(name)
            return cls

        return decorate

    def _check_class(self, name: str, cls: type[T]) -> None:
        for fact in self._facts:
            if not hasattr(cls, fact):
                raise Refusal(f"{self.kind} {name!r} does not declare its {fact!r}.")
        spec_of(self.kind, name, cls)

    def on_register(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with the name of every class that is registered from now on."""
        self._listeners.append(listener)

    def get(self, name: str) -> type[T]:
        """The class called ``name``.

        Raises:
            Refusal: there is none; the message names the nearest.
        """
        self._import_all()
        if name not in self._classes:
            raise Refusal(f"unknown {self.kind} {name!r}. {nearest(name, self._classes)}")
        return self._classes[name]

    def names(self) -> list[str]:
        self._import_all()
        return sorted(self._classes)

    def spec(self, name: str) -> Spec:
        """What the class called ``name`` says of itself, as its source text says it.

        Raises:
            Refusal: there is no such class.
        """
        return spec_of(self.kind, name, self.get(name))

    def facts(self, name: str) -> Mapping[str, Any]:
        """The class attributes of ``name`` that are plain data."""
        return self.spec(name).facts

    def loaded(self) -> set[str]:
        """The names that are registered at this moment; nothing is imported."""
        return set(self._classes)

    def forget(self, names: Iterable[str]) -> None:
        """Undo the registration of ``names``."""
        for name in names:
            del self._classes[name]

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """What is registered within the block is forgotten after it, and no listener hears it."""
        self._import_all()
        before, listeners = dict(self._classes), self._listeners
        self._listeners = []
        try:
            yield
        finally:
            self._classes, self._listeners = before, listeners

    def create(self, name: str, *args: Any, **options: Any) -> T:
        """Build ``name`` from positional facts and its own options.

        Raises:
            Refusal: an unknown or missing name or option, or a value that the class refuses.
        """
        self.spec(name).check_options(options)
        return self.get(name)(*args, **options)

    def _import_all(self) -> None:
        """Once for each ``sys.path``: looking for packages takes longer than building a model."""
        if self._searched == sys.path:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        for point in entry_points(group=f"mixerbench.{self.kind}s"):
            try:
                importlib.import_module(point.module)
            except (Exception, SystemExit) as error:
                raise broken_code(described(point), error) from error
        self._searched = list(sys.path)


ALONE = Place(block=0, depth=1, block_in_stage=0, stage=0)
"""The place of a mixer that stands in no model."""


class MixerRegistry(Registry[TokenMixer]):
    """Token mixers by name; what is wrong with somebody's own class is said in one line."""

    def __init__(self) -> None:
        facts = ("any_grid", "mixes_prefix", "paper")
        super().__init__("mixer", "mixers", facts, reserved={*SCHEDULES, PLAN})

    def build(
        self,
        choice: MixerChoice,
        dim: int,
        grid: TokenGrid,
        num_heads: int = 1,
        place: Place = ALONE,
        stride: int = 1,
    ) -> TokenMixer:
        """Build a mixer for ``dim`` channels, a grid and heads, as a backbone does.

        Args:
            place: for a mixer that asks for it.
            stride: 2 if the grid is to be halved; of a mixer that does not ask for it, the
                ``stride`` stays 1, and the backbone pools after it.

        Raises:
            Refusal: an unknown or missing name or option, or a value that the class refuses.
            BrokenCodeError: the class raised something else, or is not built as a mixer is.
        """
        spec = self.spec(choice.name)
        spec.check_options(choice.options)
        given = {n: v for n, v in (("place", place), ("stride", stride)) if n in spec.given}
        cls = self.get(choice.name)
        try:
            built = cls(dim, grid, num_heads, **choice.options, **given)
        except Refusal:
            raise
        except (Exception, SystemExit) as error:
            what = f"mixer {choice.name!r}: its __init__"
            raise broken_code(what, error, files_of(cls)) from error
        for attribute, expected in (("dim", dim), ("grid", grid)):
            actual = vars(built).get(attribute)
            if actual != expected:
                raise BrokenCodeError(
                    f"mixer {choice.name!r}: its __init__ must call super().__init__(dim, grid, "
                    f"num_heads) and leave self.{attribute} at {expected}, and not at {actual}."
                )
        built.built_as, built.given = choice, given
        return built

    def create(self, name: str, *args: Any, **options: Any) -> TokenMixer:
        """Build ``name`` for ``dim`` channels, a grid and heads, with its own options.

        Raises:
            Refusal, BrokenCodeError: as `build`.
        """
        return self.build(MixerChoice(name, options), *args)

    def _check_class(self, name: str, cls: type[TokenMixer]) -> None:
        if not (isinstance(cls, type) and issubclass(cls, TokenMixer)):
            raise Refusal(f"mixer {name!r} is no TokenMixer: derive its class from that.")
        super()._check_class(name, cls)
        parameters = inspect.signature(cls.__init__).parameters.values()
        given = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        if len(given) > 4 or (len(given) < 4 and not takes_any):
            raise Refusal(
                f"mixer {name!r}: __init__ takes ({', '.join(p.name for p in given)}) and must "
                "take (self, dim, grid, num_heads, *, option: type = default, ...)."
            )


def broken_code(what: str, error: BaseException, files: Collection[str] = ()) -> BrokenCodeError:
    """``what`` raised ``error``, in a line that ends with the file and the line of code.

    Args:
        files: the place is the innermost one in these, if it is in any of them.

    Raises:
        ``error`` itself, if there was no memory: the code is not to blame.
    """
    if is_out_of_memory(error):
        raise error
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if f.filename in files), frames[-1])
    said = (str(error).strip().splitlines() or [""])[0]
    kind = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return BrokenCodeError(f"{what} raised {kind} ({frame.filename}:{frame.lineno})")


def files_of(cls: type) -> set[str]:
    """The files that define a mixer's class, and those between it and `TokenMixer`."""
    bases = cls.__mro__[: cls.__mro__.index(TokenMixer)]
    methods = [method for base in bases for method in vars(base).values()]
    return {m.__code__.co_filename for m in methods if hasattr(m, "__code__")}


def _is_redefined(old: type, new: type) -> bool:
    return old.__module__ == new.__module__ == "__main__" and old.__qualname__ == new.__qualname__


_SOURCE = "__mixerbench_source__"  # of a plugin's module: the bytes that were run

MIXERS = MixerRegistry()
register_mixer = MIXERS.register


def create_mixer(
    name: str, dim: int, grid: TokenGrid, num_heads: int = 1, **options: Any
) -> TokenMixer:
    """Build the mixer ``name`` for ``dim`` channels on ``grid``.

    Raises:
        Refusal: an unknown name or option, or a combination that the mixer refuses.
    """
    return MIXERS.create(name, dim, grid, num_heads, **options)


def list_mixers() -> list[str]:
    """The names of all registered mixers."""
    return MIXERS.names()


def load_plugin(plugin: str | Path, digests: Collection[str] | None = None) -> bytes:
    """Run a user's Python file, so that its decorators register their classes; once per path.

    Args:
        digests: of source; one of them must be this file's.

    Returns:
        The source that was run, now or before.

    Raises:
        Refusal: there is no such file, it has changed, or a class of it cannot be registered.
        BrokenCodeError: its code raised something else.
    """
    path = plugin_path(plugin)
    # The same in every process, so that what is pickled in one is found in another.
    name = f"mixerbench_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    loaded = sys.modules.get(name)
    source: bytes = path.read_bytes() if loaded is None else vars(loaded)[_SOURCE]
    if digests is not None and source_digest(source) not in digests:
        since = "since the settings were made" if loaded is None else "since it was loaded"
        raise Refusal(
            f"plugin {path} has changed {since}: put back its source (a run keeps a copy in "
            "plugins/), or give the command again."
        )
    if loaded is not None:
        return source
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module)[_SOURCE] = source
    sys.modules[name] = module
    before = MIXERS.loaded()
    try:
        # Not the loader's way, which may take bytecode of the file as it was a moment ago.
        exec(compile(source, str(path), "exec"), vars(module))
    except BaseException as error:  # a plugin is loaded as a whole or not at all
        del sys.modules[name]
        MIXERS.forget(MIXERS.loaded() - before)
        if isinstance(error, Refusal) or not isinstance(error, Exception | SystemExit):
            raise
        raise broken_code(f"plugin {path.name}", error, [str(path)]) from error
    return source
