"""Write the generated table of `docs/leaderboard.md` anew: ``python docs/glossary.py``."""

from pathlib import Path

from leaderboard.render import glossary

PAGE = Path(__file__).parent / "leaderboard.md"
BEGIN, END = "<!-- glossary: written by docs/glossary.py -->\n", "<!-- end of the glossary -->\n"


def with_glossary(page: str) -> str:
    """The page with the table as the columns are now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{glossary()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_glossary(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
