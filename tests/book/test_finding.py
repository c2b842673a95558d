"""What a reader looks for is found: by the search box, in the index, in the reference."""

import html
import re
from urllib.parse import quote, urlsplit

import api
import index_terms
import pytest
import yaml
from built import HTML, PAGES, ROOT, opened

QUESTIONS = [
    (question, query, f"book/{name}", answer)
    for question, query, name, answer in yaml.safe_load(
        (ROOT / "tests" / "book" / "reader_questions.yml").read_text()
    )
]

# what a reader looks for, and the page that should come first
SEARCHED = {
    "hilbert attention": "book/gallery/hilbert",
    "pyramid": "book/start/ladder",
    "ladder": "book/start/ladder",
    "irregular times": "book/posterior/irregular",
    "needle": "book/self_attention/opening",
}


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
