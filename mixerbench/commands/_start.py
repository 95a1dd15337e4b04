"""What is checked before a training starts, or several, and before torch is loaded."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixerbench.config.schema import Settings


def with_data(settings: "Settings") -> "Settings":
    """The settings themselves, whose data is there.

    Raises:
        Refusal: it is not.
    """
    from mixerbench.config.sources import check_data

    check_data(settings.protocol.data)
    return settings


def check_store(settings: "Settings") -> None:
    """Ask the tracking server whether it is there.

    Raises:
        Refusal: it does not answer.
    """
    tracking = settings.tracking
    if not tracking.offline:
        from mixerbench.tracking.store import check_reachable, resolve_uri

        check_reachable(resolve_uri(tracking.uri), tracking.timeout_seconds)
