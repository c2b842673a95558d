"""What can be wrong with an opened page of the book, each thing in one sentence."""

import functools
import math
import re
import time
from urllib.parse import unquote, urlsplit

import bookmap
from axe_playwright_python.sync_playwright import Axe
from built import HTML

from fractal_lib import plots

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
    pixels.clearRect(0, 0, 60, 40);  // or an empty frame shows the one before
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


def faults(page, trouble):
    """Everything that is wrong with an opened page, one sentence each."""
    return page.evaluate(FAULTS) + trouble


def note_cut(name, width, found):
    """Leave the number of outputs that are cut at a width where `make map` looks for it."""
    cut = sum(fault.startswith("cut, ") or "over the right edge" in fault for fault in found)
    path = bookmap.cut_file(HTML.parent, name.removesuffix(".html"), width)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(cut))


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
