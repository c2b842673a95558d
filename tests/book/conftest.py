"""The built book on a port of its own, and a browser to open it with."""

import contextlib
import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest
from built import HTML, Quiet
from playwright.sync_api import sync_playwright


@pytest.fixture(scope="module")
def site():
    """The built book's address, on a port that the system picks."""
    if not (HTML / "index.html").is_file():
        pytest.fail("The book is not built: run `make book` first.", pytrace=False)
    handler = functools.partial(Quiet, directory=HTML)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path or not Path(path).exists():
        pytest.fail(
            "Chromium is missing: apt-get install chromium, or set CHROMIUM to its path.",
            pytrace=False,
        )
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with (
        sync_playwright() as playwright,
        contextlib.closing(
            playwright.chromium.launch(executable_path=path, headless=True, args=quiet)
        ) as chromium,
    ):
        yield chromium
