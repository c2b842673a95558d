"""What a page says of itself: its card has a picture as soon as there is an address for it."""

import html
import re
from types import SimpleNamespace

import address
import card
import page_meta
import pytest
from docutils import nodes
from docutils.utils import new_document
from PIL import Image

NOBODY = f"https://github.com/{address.NOBODY}/name"
RAW = "https://raw.githubusercontent.com/a/b/main/_static/card.png"


def tags(monkeypatch, baseurl, repository):
    """name -> content of what a page of one paragraph gets in its head."""
    monkeypatch.setattr(address, "current", lambda: repository)
    doctree = new_document("page")
    doctree += nodes.paragraph("", 'Every row is read, and "near" ones are read by themselves.')
    config = SimpleNamespace(html_title="The book", html_baseurl=baseurl)
    titles = {"book/a": nodes.title("", "A & B")}
    app = SimpleNamespace(config=config, env=SimpleNamespace(titles=titles), described={})
    page_meta.add_tags(app, "book/a", "page.html", context := {}, doctree)
    found = re.findall(r'<meta (?:property|name)="([^"]+)" content="([^"]*)"', context["metatags"])
    assert len(found) == context["metatags"].count("<meta ")
    return {name: html.unescape(content) for name, content in found}


@pytest.mark.parametrize(
    ("baseurl", "repository", "picture"),
    [
        ("", NOBODY, None),
        ("", "https://github.com/a/b", RAW),
        ("https://example.org/x/", NOBODY, "https://example.org/x/_static/card.png"),
        (
            "https://example.org/x",
            "https://github.com/a/b",
            "https://example.org/x/_static/card.png",
        ),
    ],
)
def test_a_card_has_its_picture_once_there_is_an_address(monkeypatch, baseurl, repository, picture):
    found = tags(monkeypatch, baseurl, repository)
    assert found.get("og:image") == picture
    assert ("og:image:alt" in found) == (picture is not None)
    assert found["twitter:card"] == ("summary_large_image" if picture else "summary")
    assert found.get("og:url") == ("https://example.org/x/book/a.html" if baseurl else None)
    assert found["og:title"] == "A & B"
    assert found["og:description"] == found["description"]
    assert found["description"].startswith('Every row is read, and "near" ones')


def test_the_picture_has_the_size_that_is_told_and_is_light(monkeypatch):
    found = tags(monkeypatch, "", "https://github.com/a/b")
    told = int(found["og:image:width"]), int(found["og:image:height"])
    path = address.ROOT / page_meta.CARD
    with Image.open(path) as picture:
        assert picture.size == told == card.SIZE
    assert path.stat().st_size < 60_000


def test_the_picture_is_drawn_from_the_books_own_title_question_and_logo():
    page = card.page()
    assert "<h1>Fractal attention</h1>" in page
    question = (address.ROOT / "book/index.md").read_text().split("\n")[0].removeprefix("# ")
    assert f"<p>{question}</p>" in page
    assert page.count("<svg") == 2
    read = page.count('r="9"')
    assert read == 5 * 4  # four points on each of five levels
