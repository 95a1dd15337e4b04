"""A headless Chromium that says what it asked of the network."""

import atexit
import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass
class Browser:
    context: Any  # playwright's
    blocked: list[str] = field(default_factory=list)
    """Addresses beyond this machine that a page asked for; none was let through."""
    errors: list[str] = field(default_factory=list)
    """Exceptions that no script caught, and what pages wrote to the console as an error."""

    def open(self, url: str) -> Any:
        """A new page at this address, loaded."""
        page = self.context.new_page()
        page.goto(url)
        return page


@contextmanager
def open_browser(**options: Any) -> Iterator[Browser]:
    """A browser for some tests; ``options`` are those of playwright's ``new_context``.

    Skips the test where there is no playwright or no Chromium.
    """
    options = {"viewport": {"width": 1500, "height": 1000}, **options}
    browser = Browser(_chromium().new_context(**options))
    browser.context.route("**/*", lambda route: _let_through(browser, route))
    browser.context.on("weberror", lambda one: browser.errors.append(str(one.error)))
    browser.context.on("console", lambda one: _note_error(browser, one))
    try:
        yield browser
    finally:
        browser.context.close()


@functools.cache
def _chromium() -> Any:
    """One process for all tests, until this one ends: playwright wants no second driver."""
    import pytest

    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium here")
    driver = playwright.sync_playwright().start()
    # Its own sandbox needs rights that containers lack.
    process = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
    atexit.register(driver.stop)
    atexit.register(process.close)
    return process


def _let_through(browser: Browser, route: Any) -> None:
    url = route.request.url
    parts = urlsplit(url)
    if parts.scheme in ("file", "data", "blob", "about") or parts.hostname in LOCAL:
        route.continue_()
    else:
        browser.blocked.append(url)
        route.abort()


def _note_error(browser: Browser, message: Any) -> None:
    if message.type == "error":
        browser.errors.append(message.text)
