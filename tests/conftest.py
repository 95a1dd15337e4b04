"""What all tests share: the command line in this process, and MLflow that phones nobody."""

import copy
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from mixerbench.config.compose import compose
from mixerbench.config.schema import Protocol
from mixerbench.stopping import SIGNALS

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported
# Read when torch is imported: small models on shared cores only wait for a second thread.
os.environ["OMP_NUM_THREADS"] = "1"
# Where Python may not keep bytecode next to its sources, every process that a test starts would
# compile all of torch again, which takes longer than importing it.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parents[1] / ".pytest_cache/bytecode")
    sys.dont_write_bytecode, sys.pycache_prefix = False, os.environ["PYTHONPYCACHEPREFIX"]

# Who starts the tests in the background of a script, or with nohup, ignores signals that they send.
for _number in SIGNALS:
    if signal.getsignal(_number) == signal.SIG_IGN:
        _is_ctrl_c = _number == signal.SIGINT
        signal.signal(_number, signal.default_int_handler if _is_ctrl_c else signal.SIG_DFL)


# Test modules and fixtures that use these take seconds: 'make quick' leaves them out.
_HEAVY_MODULES = {
    *("subprocess", "multiprocessing", "processes", "browser", "slurm", "postgres", "small_disks"),
    *("tiny_runs", "made_stores", "mixerbench.training.run", "mixerbench.launching.forks"),
}
_HEAVY_FIXTURES = {
    *("command", "server", "store", "store_at", "store_uri"),
    *("tiny", "train", "trained"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        assert isinstance(item, pytest.Function)
        if _HEAVY_FIXTURES.intersection(item.fixturenames) or _is_heavy(item.module):
            item.add_marker("heavy")


@functools.cache
def _is_heavy(module: ModuleType) -> bool:
    """Does a test module import what starts processes, trains or fills stores?"""
    origins = (
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        for value in vars(module).values()
    )
    return any(origin in _HEAVY_MODULES for origin in origins)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the leaderboard remembers of a store is not the user's, nor another test run's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="module")
def forget_plugins() -> Iterator[Callable[[], None]]:
    """What a module's tests and fixtures load as plugins, no other module's tests see.

    A test may call it, to go on as if in another process.
    """
    yield _forget_plugins
    _forget_plugins()


def _forget_plugins() -> None:
    from mixers import MIXERS

    loaded = [name for name in sys.modules if name.startswith("mixerbench_plugin_")]
    MIXERS.forget(n for n in MIXERS.loaded() if MIXERS.get(n).__module__ in loaded)
    for name in loaded:
        del sys.modules[name]


@pytest.fixture
def clean_registry() -> Iterator[None]:
    """What a test registers in the global registry is forgotten after it; timm hears nothing."""
    from mixers import MIXERS

    with MIXERS.forgetting():
        yield


@functools.cache
def _composed(name: str) -> Protocol:
    return compose([f"protocol={name}"]).protocol


@pytest.fixture(scope="session")
def protocol() -> Callable[..., Protocol]:
    """The protocol of that name, with fields set by path; the test's own copy."""

    def get(name: str = "imagenet_deit", **fields: object) -> Protocol:
        result = copy.deepcopy(_composed(name))
        for path, value in fields.items():
            *groups, field = path.split("__")
            group = functools.reduce(getattr, groups, result)
            assert hasattr(group, field), f"no field {path}"
            setattr(group, field, value)
        return result

    return get


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """``mixerbench ARGUMENTS`` without a new process; an exception passes through as it is."""
    from mixerbench import cli

    monkeypatch.delenv("MIXERBENCH_DEBUG", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mixerbench", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        code = stopped.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), *captured)

    return run


@pytest.fixture
def refused(command: Callable[..., Outcome]) -> Callable[..., str]:
    """Run a command that must be refused as bad input; returns what it says."""

    def run(*arguments: str) -> str:
        outcome = command(*arguments)
        assert outcome.code == 2, f"exit code {outcome.code}: {outcome.out}{outcome.err}"
        assert outcome.out == ""
        assert outcome.err.startswith("mixerbench: ")
        assert len(outcome.err.splitlines()) <= 2, outcome.err
        assert "Traceback" not in outcome.err
        return outcome.err

    return run
