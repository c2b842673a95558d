"""Every page of the built book in a real browser, wide and narrow, light and dark, over loopback.

What a page must be is said once, in `faults`; `test_faults.py` spoils a page in each way that it
should notice. `make browser` builds the book if need be and runs this folder.
"""

from pathlib import Path

import address
import pytest
from built import HTML, OWN, PAGES, ROOT, TOC, opened
from faults import barriers, dead_links, faults, note_cut, small_letters


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
            found = faults(page, trouble)
            note_cut(name, width, found)
            assert found == []
        assert dead_links(page) == []
        if width < 500:
            assert small_letters(page) == []
        if name in OWN:
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
