"""How to train a run again, from what it recorded of its settings."""

from collections.abc import Sequence

from leaderboard.claims.of_settings import settings_of
from leaderboard.reading.results import TrainedRun
from mixerbench.tracking.keys import Param


def command_of(run: TrainedRun, plugins: Sequence[str] = ()) -> str | None:
    """A command that composes to the run's settings; what it recorded as one is not looked at.

    None: its settings have a text that nobody should paste into a shell.
    """
    from mixerbench.config.repeat import command  # Hydra, which takes a second

    model, protocol = (
        settings_of(prefix, run.params.get(prefix.removesuffix("."), {}))
        for prefix in (Param.MODEL, Param.PROTOCOL)
    )
    return command(model, protocol, run.seed, plugins)
