"""The built book, and how its pages are opened: what the tests of this folder share."""

import contextlib
import http.server
from pathlib import Path
from urllib.parse import urlsplit

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
HTML = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CHAPTERS = [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
OWN = [f"{name}.html" for name in [TOC["root"], *CHAPTERS]]  # that we write
PAGES = ["index.html", "genindex.html", "search.html", *OWN]  # with those that Sphinx adds
WITH_SLIDER = "book/gallery/cantor.html"


def has_slider(name):
    """Whether a chapter is a notebook in which a slider is made."""
    path = ROOT / f"{name}.ipynb"
    return path.is_file() and "explore(" in path.read_text()


SLIDING = [f"{name}.html" for name in CHAPTERS if has_slider(name)]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def opened(browser, url, width=1280, scheme="light", javascript=True):
    """A page, and the list in which everything that goes wrong while it is open is written down."""
    trouble = []
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        java_script_enabled=javascript,
    )

    def watch(route):
        address = urlsplit(route.request.url)
        if address.scheme in ("data", "blob") or address.hostname == "127.0.0.1":
            route.continue_()
        else:
            trouble.append(f"a request leaves the machine: {route.request.url}")
            route.abort()

    context.route("**/*", watch)
    context.on(
        "response", lambda r: trouble.append(f"{r.status} {r.url}") if r.status >= 400 else None
    )
    context.on(
        "console",
        lambda m: trouble.append(f"console: {m.text}") if m.type in ("error", "warning") else None,
    )
    context.on("weberror", lambda e: trouble.append(f"script: {e.error}"))
    with contextlib.closing(context):
        context.set_default_timeout(120_000)  # a busy machine is no fault of the page
        page = context.new_page()
        page.goto(url, wait_until="networkidle")
        yield page, trouble
