"""A page's head, its weight, its print, and what lies beside the pages."""

import html
import re
import zipfile

import bookmap
import pytest
from built import HTML, OWN, WITH_SLIDER, opened

HEAVIEST = 2_000_000  # bytes


@pytest.mark.parametrize("name", OWN)
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
    for name in OWN:
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
