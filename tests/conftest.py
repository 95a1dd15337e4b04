"""What all tests share: the command line in this process, and MLflow that phones nobody."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported


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
