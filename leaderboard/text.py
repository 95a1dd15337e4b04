"""From runs to boards: one per protocol fingerprint, never mixed; spread over seeds."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: known words near this one, or the first of all."""
    known = list(dict.fromkeys(known))
    if close := get_close_matches(word, known):
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known[:20]) or 'none'}{', …' if len(known) > 20 else ''}"


def plain(text: str) -> str:
    """One line without control, bidirectional and other invisible characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
