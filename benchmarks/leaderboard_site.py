"""How large the pages of a board of 200 entries are, and how soon a browser shows them from disk.

Peer: the same table and scatter as one file of itables and Plotly's own, if these are installed
(``pip install itables plotly``). The two are opened in turns in one browser.

    python benchmarks/leaderboard_site.py [--entries 200] [--rounds 10] [--out FILE]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "helpers"))  # the generator that the tests use

# Since the address was entered: something is painted; the table stands; the plots are drawn.
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def write_ours(folder: Path, entries: int) -> tuple[Path, dict[str, Any]]:
    from made_stores import MadeStore, fill

    from leaderboard.board import boards
    from leaderboard.site import board_page, write_site
    from leaderboard.store import Store

    store = MadeStore(folder)
    fill(store, entries=entries, seeds=1)
    begin = time.perf_counter()
    source = Store(store.uri)
    reading = source.read()
    (board,) = boards(reading.runs, source=source)
    site = write_site(source, [board], folder / "site")
    figures = {"megabytes": site.bytes / 1e6, "seconds_to_write": time.perf_counter() - begin}
    board.frame().to_pickle(folder / "frame.pkl")
    return site.folder / board_page(board), figures


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


def open_once(browser: Any, path: Path) -> tuple[float, float]:
    """Milliseconds to the first paint, and until a plot and the table are there."""
    page = browser.new_page()
    begin = time.perf_counter()
    page.goto(path.absolute().as_uri(), wait_until="commit")
    page.wait_for_selector("svg.main-svg")
    page.wait_for_selector("table.dataTable")
    complete = 1000 * (time.perf_counter() - begin)
    while (painted := page.evaluate(PAINTED)) is None:
        time.sleep(0.02)
    page.close()
    return float(painted), complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "leaderboard_site.json")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "docs"))
    from playwright.sync_api import sync_playwright
    from screenshots import chromium

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        ours, figures = write_ours(Path(folder), options.entries)
        peer = write_peer(Path(folder))
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
        for _ in range(options.rounds + 1):
            for name, path in (("ours", ours), ("peer", peer)):
                if path is not None:
                    times[name].append(open_once(browser, path))
        browser.close()
    result: dict[str, Any] = {
        "what": f"pages of a board of {options.entries} entries, opened from the disk",
        "rounds": options.rounds,
        "hardware": f"{os.cpu_count()} cores",
        **figures,
    }
    for name, both in times.items():
        for kind, milliseconds in zip(
            ("painted", "complete"), zip(*both[1:], strict=True), strict=False
        ):
            quartiles = statistics.quantiles(milliseconds, n=4)
            result[f"{name}_ms_{kind}"] = {
                "median": statistics.median(milliseconds),
                "quartiles": [quartiles[0], quartiles[2]],
            }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
