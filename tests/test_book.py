"""The built book in a real browser: every page, wide and narrow, light and dark, over loopback.

What a page must be is said once, in `faults`; the tests open every page with it, and then spoil a
page in each way it should notice. `make browser` builds the book if need be and runs this file.
"""

import contextlib
import functools
import html
import http.server
import math
import os
import re
import shutil
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import address
import api
import bookmap
import index_terms
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from fractal_lib import plots

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CHAPTERS = [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
PAGES = [f"{name}.html" for name in ["index", "genindex", "search", TOC["root"], *CHAPTERS]]
QUESTIONS = [
    (question, query, f"book/{name}", answer)
    for question, query, name, answer in yaml.safe_load(
        (ROOT / "tests" / "reader_questions.yml").read_text()
    )
]
WITH_SLIDER = "book/gallery/cantor.html"

# what a reader looks for, and the page that should come first
SEARCHED = {
    "hilbert attention": "book/gallery/hilbert",
    "pyramid": "book/start/ladder",
    "ladder": "book/start/ladder",
    "irregular times": "book/posterior/irregular",
    "needle": "book/self_attention/opening",
}
HEAVIEST = 2_000_000  # bytes

# (rule of axe, what its element's HTML starts with): the theme's own, and why we live with each
THEME = {
    # docutils: a list whose items have the role of an entry of a bibliography
    ("aria-required-children", '<div role="list" class="citation-list">'),
}

FAULTS = r"""async () => {
  if (window.MathJax) await MathJax.startup.promise;
  for (const e of document.images) { e.loading = "eager"; await e.decode().catch(() => 0); }
  const found = [], name = (e) => e.outerHTML.slice(0, 120);
  const text = document.body.cloneNode(true);
  text.querySelectorAll("pre, code, script, style, mjx-container").forEach((e) => e.remove());
  const raw = text.textContent.match(/\\\(|\\\[|\$\$|\$[^$\n]+\$|\\(frac|sum|begin)\b/);
  if (raw) found.push("raw maths: " + raw[0]);
  document.querySelectorAll(".math").forEach((e) => {
    if (!e.querySelector("mjx-container")) found.push("maths not typeset: " + name(e));
  });
  document.querySelectorAll("mjx-merror, [data-mjx-error]").forEach((e) => {
    found.push("maths in error: " + name(e));
  });
  document.querySelectorAll("img").forEach((e) => {
    if (!(e.getAttribute("alt") || "").trim()) found.push("picture without alt text: " + name(e));
    if (e.complete && !e.naturalWidth && !e.hidden) found.push("broken picture: " + name(e));
    if (e.closest(".cell_output") && !e.closest("figure, .widget-html"))
      found.push("figure without a caption: " + name(e));
  });
  const page = document.scrollingElement;
  if (page.scrollWidth > window.innerWidth) {
    const scrolls = (e) => e && (getComputedStyle(e).overflowX !== "visible"
      || scrolls(e.parentElement.closest("article *")));
    const wide = [...document.querySelectorAll("article *")]
      .find((e) => e.getBoundingClientRect().right > innerWidth && !scrolls(e));
    const what = wide ? name(wide) : "";
    found.push(`${page.scrollWidth} px wide in a window of ${innerWidth}: ${what}`);
  }
  const column = document.querySelector("article") ?? document.body, reported = [];
  const edge = column.getBoundingClientRect().right
    - parseFloat(getComputedStyle(column).paddingRight);
  const shown = ".cell_output, .cell_output *, article table, article div:has(> table)";
  for (const e of document.querySelectorAll(shown)) {
    const box = e.getBoundingClientRect();
    if (!e.offsetParent || !box.width || e.closest("mjx-container, span.math, .headerlink"))
      continue;
    if (reported.some((outer) => outer.contains(e))) continue;
    const clips = getComputedStyle(e).overflowX !== "visible";
    if (clips && e.scrollWidth > e.clientWidth + 1 && e.clientWidth) {
      reported.push(e);
      found.push(`cut, or to be scrolled by ${e.scrollWidth - e.clientWidth} px: ` + name(e));
    } else if (box.right > (e.matches("img") ? innerWidth : edge) + 1.5) {
      reported.push(e);
      found.push(`${Math.round(box.right - edge)} px over the right edge: ` + name(e));
    }
  }
  const pixels = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  for (const e of document.querySelectorAll(".cell_output img")) {
    if (!e.naturalWidth) continue;
    pixels.drawImage(e, 0, 0, 60, 40);
    const all = new Uint32Array(pixels.getImageData(0, 0, 60, 40).data.buffer);
    if (all.every((pixel) => pixel === all[0])) found.push("empty frame: " + name(e));
  }
  for (const e of document.querySelectorAll(".cell_output, .cell_output figure"))
    if (!e.textContent.trim() && !e.querySelector("img, svg"))
      found.push("empty frame: " + name(e));
  return found;
}"""

# Pixels of the smallest letters in each chart that a browser shows. A PNG of ours has 200 pixels an
# inch, and `plots.SMALLEST` points; of an SVG its text is found below.
LETTERS = """() => [...document.querySelectorAll("article img, article svg text")]
  .filter((e) => e.getBoundingClientRect().width)
  .map((e) => e.matches("img")
    ? [e.src, e.getBoundingClientRect().width, e.naturalWidth]
    : [null, parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a, 0])"""
READABLE = 9  # pixels, on a telephone


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


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


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


def faults(page, trouble):
    """Everything that is wrong with an opened page, one sentence each."""
    return page.evaluate(FAULTS) + trouble


def small_letters(page):
    """Charts with letters too small to be read, as the page is shown now."""
    found = []
    for src, width, natural in page.evaluate(LETTERS):
        if src is None:
            size = width
        elif src.endswith(".svg"):
            size = svg_letters(HTML / urlsplit(src).path.lstrip("/")) * width
        else:
            size = plots.SMALLEST * 200 / 72 * width / natural
        if size < READABLE:
            found.append(f"letters of {size:.1f} px: {(src or 'svg')[-60:]}")
    return found


@functools.cache
def svg_letters(path):
    """The smallest letters of an SVG file, as a share of its width; infinite if it has none."""
    text = path.read_text()
    width = float(re.search(r'viewBox="\S+ \S+ (\S+)', text)[1])
    drawn = re.findall(r"scale\(([\d.]+) -[\d.]+\)", text)  # matplotlib's, of outlines
    sizes = [100 * float(size) for size in drawn]
    sizes += [float(size) for size in re.findall(r'font-size="([\d.]+)"', text)]
    return min(sizes, default=math.inf) / width


def dead_links(page):
    """Links of a page to files or places of the book that do not exist."""
    links = set(page.locator("a[href]").evaluate_all("all => all.map(a => a.href)"))
    found = []
    for link in links:
        url = urlsplit(link)
        if url.hostname != "127.0.0.1":
            continue
        path = HTML / unquote(url.path).lstrip("/")
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            found.append(f"dead link: {link}")
        elif url.fragment and path.suffix == ".html":
            here = page.evaluate("id => !!document.getElementById(id)", unquote(url.fragment))
            if not here and unquote(url.fragment) not in places(path):
                found.append(f"dead link: {link}")
    return found


@functools.cache
def places(path):
    """All ids of a file of HTML."""
    return set(re.findall(r'\bid="([^"]+)"', path.read_text()))


def noticed(look, expected, seconds=10):
    """Whether what is expected stands in what `look` finds, now or within some seconds."""
    until = time.monotonic() + seconds
    while not any(expected in fault for fault in look()):
        if time.monotonic() > until:
            return False
    return True


def test_the_pages_are_those_of_the_table_of_contents(site):
    built = {
        p.relative_to(HTML).as_posix() for p in HTML.rglob("*.html") if "_static" not in p.parts
    }
    assert built == set(PAGES)


def test_the_address_of_the_book_leads_to_its_first_page(browser, site):
    with opened(browser, site) as (page, trouble):
        page.wait_for_url(f"{site}/{TOC['root']}.html")
        assert trouble == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("name", PAGES)
def test_page_is_sound(browser, site, name, width, scheme):
    """In the scheme in which it was opened, and when the reader's system changes to the other."""
    with opened(browser, f"{site}/{name}", width, scheme) as (page, trouble):
        other = {"light": "dark", "dark": "light"}[scheme]
        for now in (scheme, other):
            page.emulate_media(color_scheme=now)
            if name != "index.html":  # a redirection
                page.wait_for_function(f"document.documentElement.dataset.theme === '{now}'")
            assert faults(page, trouble) == []
        assert dead_links(page) == []
        if width < 500:
            assert small_letters(page) == []
        if name in PAGES[3:]:
            assert opens_in_colab(page, Path(name).with_suffix(".ipynb"))
            assert barriers(page) == []  # last: axe asks for style sheets of its own


def opens_in_colab(page, notebook):
    """Whether all of a page's links to Colab, and one at least, lead to its notebook, if any.

    Until the project has a public address there must be none.
    """
    place = address.slug(address.current())
    own = f"https://colab.research.google.com/github/{place}/blob/main/{notebook.as_posix()}"
    links = page.locator("a[href*='colab.research.google.com']")
    found = set(links.evaluate_all("all => all.map(a => a.href)"))
    if not address.is_public(address.current()):
        return found == set()
    return found == {own} or not (ROOT / notebook).is_file()


def barriers(page):
    """axe's serious and critical findings, without those that are the theme's own."""
    found = [
        (violation["id"], node["html"])
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    return [
        (rule, html)
        for rule, html in found
        if not any(rule == r and html.startswith(h) for r, h in THEME)
    ]


# ---- what is looked for is found -----------------------------------------------------------------


def found(browser, site, query):
    """The pages that the book's own search finds, the best first."""
    with opened(browser, f"{site}/search.html?q={quote(query)}") as (page, _):
        first = page.locator("#search-results ul.search li a").first
        first.wait_for()
        page.wait_for_function("!document.querySelector('#search-progress .dots, .search-dots')")
        links = page.locator("#search-results ul.search li > a")
        paths = [urlsplit(link).path for link in links.evaluate_all("all => all.map(a => a.href)")]
        return list(dict.fromkeys(path.lstrip("/") for path in paths))


@pytest.mark.parametrize(("query", "name"), SEARCHED.items())
def test_search_puts_the_right_page_first(browser, site, query, name):
    assert found(browser, site, query)[0] == f"{name}.html"


@pytest.mark.parametrize(("question", "query", "name", "answer"), QUESTIONS)
def test_a_reader_finds_the_answer_in_two_clicks(browser, site, question, query, name, answer):
    """By the search box: one to ask, one on a result among the first five; it is on that page."""
    assert f"{name}.html" in found(browser, site, query)[:5], question
    text = re.sub(r"<[^>]+>", "", (HTML / f"{name}.html").read_text())
    assert " ".join(answer.split()).lower() in " ".join(html.unescape(text).split()).lower()


def test_the_index_leads_to_every_term(site):
    index = html.unescape((HTML / "genindex.html").read_text())
    listed = [term for terms in index_terms.terms(ROOT).values() for term, _ in terms]
    assert len(listed) >= 40
    assert [term for term in listed if f">{term}<" not in index] == []


def test_the_reference_documents_what_is_public_with_its_example_and_complexity(site):
    pages = [name for name in PAGES if name.startswith("book/reference/")]
    text = "".join((HTML / name).read_text() for name in pages)
    documented = set(re.findall(r'<dt class="sig[^>]*id="([\w.]+)"', text))
    public = {api.place(v) for module in api.modules() for _, v in api.exported(module)}
    assert public - documented == set()
    assert len(public) > 80
    for label in ("Complexity", "Source", "Parameters", "Raises"):
        assert text.count(f">{label}<") > 20
    assert text.count("&gt;&gt;&gt; ") > 100


# ---- looks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES[3:])
def test_a_page_describes_itself_and_weighs_at_most_two_megabytes(site, name):
    head = (HTML / name).read_text().partition("</head>")[0]
    told = re.search(r'<meta name="description" content="([^"]*)"', head)
    assert told
    assert 40 <= len(html.unescape(told[1])) <= 210
    for tag in ("og:title", "og:description", "og:site_name"):
        assert f'property="{tag}"' in head
    assert 'rel="icon"' in head
    assert bookmap.weight(HTML / name) <= HEAVIEST


def test_the_weight_is_what_a_browser_fetches(browser, site):
    fetched = {}
    with opened(browser, site) as (page, _):
        page.on("response", lambda r: fetched.update({r.url: len(r.body())}))
        page.goto(f"{site}/{WITH_SLIDER}", wait_until="networkidle")
    own = [n for url, n in fetched.items() if not any(s in url.lower() for s in bookmap.SHARED)]
    assert sum(own) == pytest.approx(bookmap.weight(HTML / WITH_SLIDER), rel=0.15)


def test_llms_txt_lists_every_page_with_what_it_says(site):
    text = (HTML / "llms.txt").read_text()
    for name in PAGES[3:]:
        assert len(re.findall(rf"\({re.escape(name)}\): .{{40,}}", text)) == 1
    assert text.startswith("# Fractal attention\n\n> ")


def test_a_chapter_prints_whole(browser, site):
    with opened(browser, f"{site}/{WITH_SLIDER}", width=720) as (page, _):
        page.emulate_media(media="print")
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        last = page.locator("article h2", has_text="What to remember")
        assert last.is_visible()
        for gone in (".bd-sidebar-primary", ".bd-header-article", ".copybtn", ".bd-footer"):
            assert not any(part.is_visible() for part in page.locator(gone).all())
        shown = [img for img in page.locator("article img").all() if img.is_visible()]
        assert len(shown) >= page.locator("article figure").count() >= 1
        printed = page.pdf(format="A4")
        assert printed.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 5


def test_the_notebooks_lie_beside_the_pages(site):
    with zipfile.ZipFile(HTML / "notebooks.zip") as archive:
        assert archive.testzip() is None
        assert any(name.endswith(".whl") for name in archive.namelist())


# ---- the slider ----------------------------------------------------------------------------------

FIGURE = "figure.fractal-explore"
SHOWN = """figure =>
  [...figure.querySelectorAll('img')].filter(i => i.offsetParent).map(i => [i.src, i.alt])"""


@pytest.mark.parametrize("width", [1280, 390])
def test_every_slider_moves(browser, site, width):
    with opened(browser, f"{site}/{WITH_SLIDER}", width) as (page, trouble):
        figures = page.locator(FIGURE)
        assert figures.count() >= 1
        for figure in figures.all():
            frames = figure.locator("img").count()
            for control in figure.locator("input[type=range]").all():
                steps = int(control.get_attribute("max"))
                control.focus()
                page.keyboard.press("Home")  # it starts where there is most to see
                seen = [figure.evaluate(SHOWN)]
                for _ in range(steps):
                    page.keyboard.press("ArrowRight")
                    seen.append(figure.evaluate(SHOWN))
                assert steps >= 1
                assert steps < frames
                assert all(len(shown) == 1 and shown[0][1].strip() for shown in seen)
                # a new picture at every step
                assert len({shown[0][0] for shown in seen}) == steps + 1
                page.keyboard.press("Home")
                assert figure.evaluate(SHOWN) == seen[0]
                box = control.bounding_box()  # and with the mouse, to the far end
                page.mouse.click(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
                assert figure.evaluate(SHOWN) == seen[-1]
                page.keyboard.press("Home")
        assert trouble == []


def test_without_javascript_the_first_frame_and_its_words_are_there(browser, site):
    with opened(browser, f"{site}/{WITH_SLIDER}", javascript=False) as (page, _):
        for figure in page.locator(FIGURE).all():
            shown = [frame for frame in figure.locator("img").all() if frame.is_visible()]
            assert len(shown) == 1
            assert shown[0].get_attribute("alt").strip()
            assert not any(control.is_visible() for control in figure.locator("input").all())


# ---- the checks themselves -----------------------------------------------------------------------

DOT = "const dot = () => document.createElement('canvas').toDataURL()"  # a picture of nothing


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        ("document.body.append('so $x^2$ it is')", "raw maths"),
        ("document.body.append('so \\\\(x\\\\) it is')", "raw maths"),
        ("document.querySelector('mjx-container').remove()", "maths not typeset"),
        (
            "document.querySelector('mjx-container').append(document.createElement('mjx-merror'))",
            "maths in error",
        ),
        ("document.querySelector('img').alt = ' '", "without alt text"),
        ("document.querySelector('img').src = '/nowhere.png'", "broken picture"),
        (
            "document.querySelector('.cell_output img').closest('figure').replaceWith("
            "document.querySelector('.cell_output img'))",
            "without a caption",
        ),
        (
            "document.querySelector('.cell_output pre').style.whiteSpace = 'pre'",
            "to be scrolled by",
        ),
        (
            "document.querySelector('.cell_output').style.width = '1000px';"
            "document.querySelector('article').style.overflow = 'hidden'",
            "over the right edge",
        ),
        ("document.querySelector('.cell_output img').src = dot()", "empty frame"),
        ("document.querySelector('.cell_output').replaceChildren()", "empty frame"),
        ("document.querySelector('article p').style.width = '2000px'", "px wide in a window"),
        ("console.error('no')", "console: no"),
        ("setTimeout(() => { throw new Error('thrown') })", "script: "),
        ("fetch('/nowhere.html')", "404"),
        ("fetch('https://example.org/').catch(() => 0)", "leaves the machine"),
    ],
)
def test_each_fault_is_noticed(browser, site, spoil, expected):
    with opened(browser, f"{site}/{WITH_SLIDER}") as (page, trouble):
        page.evaluate("() => MathJax.startup.promise")
        page.evaluate(f"() => {{ {DOT}; {spoil} }}")
        assert noticed(lambda: faults(page, trouble), expected)


def test_a_barrier_is_noticed(browser, site):
    with opened(browser, f"{site}/{WITH_SLIDER}") as (page, _):
        page.evaluate(
            "() => document.querySelector('article').insertAdjacentHTML('beforeend', '<input>')"
        )
        assert any(rule == "label" for rule, _ in barriers(page))


@pytest.mark.parametrize("href", ["nowhere.html", "#nowhere", "../start/ladder.html#nowhere"])
def test_a_dead_link_is_noticed(browser, site, href):
    with opened(browser, f"{site}/{WITH_SLIDER}") as (page, _):
        page.evaluate(
            "href => document.querySelector('article').insertAdjacentHTML("
            "'beforeend', `<a href=${href}>so</a>`)",
            href,
        )
        assert len(dead_links(page)) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        "document.querySelector('.cell_output img').style"
        ".setProperty('width', '200px', 'important')",
        "document.querySelector('article').insertAdjacentHTML('beforeend', "
        '\'<svg viewBox="0 0 900 90" width="300"><text y="50" font-size="20">a</text></svg>\')',
    ],
)
def test_small_letters_are_noticed(browser, site, spoil):
    with opened(browser, f"{site}/{WITH_SLIDER}", width=390) as (page, _):
        before = len(small_letters(page))
        page.evaluate(f"() => {{ {spoil} }}")
        assert len(small_letters(page)) == before + 1
