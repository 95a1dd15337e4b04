"""Pictures of a site's main pages, to be looked at: ``python docs/screenshots.py SITE FOLDER``.

The README's is FOLDER/board-top.png of the published board, as docs/leaderboard.png.
Needs Playwright and a Chromium: that of $CHROMIUM, else the first of the usual names.
"""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDE, NARROW = {"width": 1360, "height": 900}, {"width": 390, "height": 844}


def chromium() -> str:
    """Its path. SystemExit: there is none."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    return found or sys.exit("no Chromium found: install one, or set CHROMIUM to its path.")


def take(site: Path, folder: Path) -> list[Path]:
    """One PNG a page: wide in light and dark, narrow in light."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"index": "index.html", "board": "board-*.html", "entry": "entry-*.html",
             "compare": "compare-*.html", "mixer": "mixer-attention.html"}  # fmt: skip
    taken = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for name, size, scheme in (
            ("light", WIDE, "light"),
            ("dark", WIDE, "dark"),
            ("narrow", NARROW, "light"),
        ):
            context = browser.new_context(viewport=size, color_scheme=scheme)
            page = context.new_page()
            page.on("pageerror", lambda error: print(f"error on a page: {error}"))
            for kind, pattern in kinds.items():
                file = next(iter(sorted(site.glob(pattern))), None)
                if file is None:
                    continue
                page.goto(file.absolute().as_uri())
                if kind == "compare":
                    for box in page.locator("input.pick").all()[:3]:
                        box.check()
                page.wait_for_timeout(700)  # plots that animate
                taken.append(folder / f"{kind}-{name}.png")
                page.screenshot(path=taken[-1], full_page=True)
                if (kind, name) == ("board", "light"):
                    page.set_viewport_size({"width": WIDE["width"], "height": 1185})
                    page.wait_for_timeout(700)
                    page.screenshot(path=folder / "board-top.png")
            context.close()
        browser.close()
    return taken


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for path in take(Path(sys.argv[1]), Path(sys.argv[2])):
        print(path)
