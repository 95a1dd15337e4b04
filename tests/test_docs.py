"""What the documentation says of the code is true: tables, folders and links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_pages_that_are_read_from_the_code_are_up_to_date() -> None:
    script = [sys.executable, str(ROOT / "docs/generate.py"), "--check"]
    checked = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


def test_the_readme_names_the_folders_that_there_are() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("## The tree")[1].split("```")[1]
    named = {line.split("/")[0] for line in tree.strip().splitlines()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    folders = {name.split("/")[0] for name in tracked.stdout.split() if "/" in name}
    assert named == {folder for folder in folders if not folder.startswith(".")}
    (rooms,) = re.findall(r"the bench: (.*)", tree)
    assert {room.strip() for room in rooms.split(",")} == {
        path.parent.name for path in (ROOT / "mixerbench").glob("*/__init__.py")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
