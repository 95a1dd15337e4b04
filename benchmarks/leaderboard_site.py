"""How large the pages of a board of 200 entries are, and how soon a browser shows them from disk.

Peer: the same table and scatter as one file of itables and Plotly's own, if these are installed
(``pip install itables plotly``). The two are opened in turns in one browser.

    python benchmarks/leaderboard_site.py [--entries 200] [--rounds 10]
"""

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import HERE, Benchmark, Turn, compare

sys.path.insert(0, str(HERE.parent / "tests" / "helpers"))  # the generator that the tests use

# Since the address was entered: something is painted; the table stands; the plots are drawn.
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def write_ours(folder: Path, entries: int) -> tuple[Path, float]:
    """The board's page, and the megabytes of all pages."""
    from made_stores import MadeStore, fill

    from leaderboard.ranking.boards import boards
    from leaderboard.reading.mlflow_source import MlflowSource
    from leaderboard.site import board_page, write_site

    store = MadeStore(folder)
    fill(store, entries=entries, seeds=1)
    source = MlflowSource(store.uri)
    reading = source.read()
    (board,) = boards(reading.runs, source=source)
    site = write_site(source, [board], folder / "site")
    board.frame().to_pickle(folder / "frame.pkl")
    return site.folder / board_page(board), site.bytes / 1e6


def write_peer(folder: Path) -> Path | None:
    try:
        import itables
        import pandas
        import plotly.express as px
    except ImportError:
        return None
    frame = pandas.read_pickle(folder / "frame.pkl").reset_index()
    plot = px.scatter(frame, x="gmacs", y="top1", color="mixer").to_html(
        full_html=False, include_plotlyjs=True
    )
    table = itables.to_html_datatable(frame, connected=False, maxBytes=0)
    head = itables.javascript.generate_init_offline_itables_html(itables.options.dt_bundle)
    page = folder / "peer.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{head}{table}{plot}", encoding="utf-8")
    return page


def open_once(browser: Any, path: Path) -> dict[str, Turn]:
    """Until something is painted, and until a plot and the table are there.

    The work is the browser's, so there is no time of this process.
    """
    page = browser.new_page()
    begin = time.perf_counter()
    page.goto(path.absolute().as_uri(), wait_until="commit")
    page.wait_for_selector("svg.main-svg")
    page.wait_for_selector("table.dataTable")
    complete = time.perf_counter() - begin
    while (painted := page.evaluate(PAINTED)) is None:
        time.sleep(0.02)
    page.close()
    return {"painted": Turn(None, float(painted) / 1000), "complete": Turn(None, complete)}


def main() -> None:
    benchmark = Benchmark(__file__, __doc__, rounds=10)
    benchmark.parser.add_argument("--entries", type=int, default=200)
    options = benchmark.options()
    entries = 2 if options.tiny else options.entries
    sys.path.insert(0, str(HERE.parent / "docs"))
    from playwright.sync_api import sync_playwright
    from screenshots import chromium

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        ours, megabytes = write_ours(Path(folder), entries)
        pages, figures = {"ours": ours}, {"megabytes": {"ours": megabytes}}
        if (peer := write_peer(Path(folder))) is not None:
            pages["itables and Plotly"] = peer
            figures["megabytes"]["itables and Plotly"] = peer.stat().st_size / 1e6
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        opened: dict[str, list[dict[str, Turn]]] = {name: [] for name in pages}
        names = list(pages)
        for _ in range(options.rounds + 1):
            random.shuffle(names)
            for name in names:
                opened[name].append(open_once(browser, pages[name]))
        browser.close()
    rows: list[dict[str, Any]] = []
    for kind in ("painted", "complete"):
        turns = {name: [one[kind] for one in own[1:]] for name, own in opened.items()}
        # Without the peer ours are times without a ratio.
        rows += compare(f"{kind}, {entries} entries", turns, list(turns)[-1], **figures)
    benchmark.write(options, rows)


if __name__ == "__main__":
    main()
