"""Text that anybody may have written, as it may be shown."""


def plain(text: str) -> str:
    """One line without control, bidirectional and other invisible characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
