"""The path through the book: its times, what is read next, and the command that counts."""

import os
import re
from pathlib import Path

import bookmap
import index_terms
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
PAGES = bookmap.pages()
READ = [page for page in PAGES if page.read]

# minutes, for a reader who follows the contents
UNTIL_THE_LADDER = 60
UNTIL_THE_LATENT_SDE = 120
WHOLE_BOOK = 420


def text(page):
    """All of a page's Markdown."""
    path = ROOT / f"{page.name}.ipynb"
    if not path.exists():
        return path.with_suffix(".md").read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_the_ladder_comes_within_an_hour_and_the_latent_sde_within_two():
    assert bookmap.reached("book/start/ladder", PAGES) <= UNTIL_THE_LADDER
    assert bookmap.reached("book/posterior/latent_sde", PAGES) <= UNTIL_THE_LATENT_SDE


def test_the_book_is_not_too_long():
    assert sum(page.minutes for page in READ) <= WHOLE_BOOK


@pytest.mark.parametrize("page", [p for p in READ if p.part], ids=lambda p: p.name[5:])
def test_a_page_says_how_long_it_takes(page):
    """Within five minutes; `python tools/bookmap.py times` writes it."""
    assert page.stated is not None
    assert abs(page.stated - page.minutes) <= 5


@pytest.mark.parametrize(
    ("page", "following"),
    [(a, b) for a, b in zip(READ, PAGES[1:], strict=False) if a.part],
    ids=lambda p: p.name[5:],
)
def test_read_next_agrees_with_the_button(page, following):
    assert next_page(text(page), page.name) == following.name


def next_page(markdown, name):
    """The page that the first link after "Read next" leads to."""
    link = re.search(r"Read next[.:]?(?:\*\*)?[.:]? *\[[^\]]*\]\(([^)#]+?)\.(?:ipynb|md)", markdown)
    if link is None:
        return None
    return (ROOT / name).parent.joinpath(link[1]).resolve().relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("**Read next.** [The ladder](ladder.ipynb): four.", "book/start/ladder"),
        ("Read next: [that](../appendix/glossary.md#letters).", "book/appendix/glossary"),
        ("**Read next.** Barnes and Hut, then [the ladder](ladder.ipynb).", None),
        ("[The ladder](ladder.ipynb)", None),
    ],
)
def test_what_is_read_next_is_found(markdown, expected):
    assert next_page(markdown, "book/start/exact_window") == expected


def test_the_terms_of_the_index_are_of_pages_that_exist():
    """`book/index_terms.yml`; the build checks their headings."""
    assert set(index_terms.terms(ROOT)) <= {page.name for page in PAGES}


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def book(tmp_path):
    """A book of three pages: 200 words a page, and one with code."""
    words = " ".join(["word"] * 194)
    intro = f"# One two\n\n**Time**: 3 minutes to read.\n\n{words}"
    lines = "\n".join(f"x = {k}" for k in range(15)) + "\n\n"
    cells = [
        new_markdown_cell(intro),
        new_code_cell(lines),
        *(new_code_cell(lines, metadata={"tags": [tag]}) for tag in bookmap.FOLDED),
    ]
    for folder in ("book/a", "book/b"):
        (tmp_path / folder).mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), tmp_path / "book/a/chapter.ipynb")
    (tmp_path / "book/index.md").write_text(f"# One [two](a-long-address)\n\n{words} a b c d e")
    (tmp_path / "book/b/words.md").write_text(f"---\nx: y\n---\n# One two\n\n{words} {words}\n")
    (tmp_path / "_toc.yml").write_text(
        "root: book/index\nparts:\n  - caption: A\n    chapters:\n      - file: book/a/chapter\n"
        "  - caption: Appendix\n    chapters:\n      - file: book/b/words\n"
    )
    return tmp_path


def test_minutes_are_words_and_visible_lines(book):
    index, chapter, words = bookmap.pages(book)
    assert (index.words, index.minutes, index.stated) == (202, 1.01, None)
    assert (chapter.words, chapter.cells, chapter.stated) == (202, [15], 3)
    assert chapter.minutes == pytest.approx(2.01)
    assert bookmap.reached("book/a/chapter", [index, chapter, words]) == 1.01
    assert (words.read, words.words) == (False, 391)


def test_directives_and_addresses_are_not_read_but_code_is():
    markdown = "one [two](x) three\n\n```{image} a.svg\n:alt: words\n```\n\n```python\nx = 1\n```\n"
    assert bookmap.prose(markdown) == (3, [1])


def test_the_time_line_is_written_once(book):
    assert bookmap.write_times(book) == ["book/a/chapter: 3 -> 2 minutes"]
    assert bookmap.write_times(book) == []
    assert bookmap.pages(book)[1].stated == 2
    assert "book/b/words" not in str(bookmap.write_times(book))


def test_the_table_has_every_page_and_counts_only_what_is_read(book):
    lines = bookmap.table(book).split("\n")
    assert [line.split()[0] for line in lines[1:4]] == ["index", "a/chapter", "b/words"]
    assert "(2)" in lines[3]
    assert lines[-1].split()[-3:] == ["3", "3", "min"]


def test_the_table_says_how_many_outputs_are_cut_if_a_browser_has_looked_since(book):
    build = book / "_build"
    page = build / "html/book/a/chapter.html"
    page.parent.mkdir(parents=True)
    page.write_text("<p>")
    for width, cut in zip(bookmap.WIDTHS, "12", strict=True):
        assert bookmap.outputs_cut(build, "book/a/chapter") is None
        path = bookmap.cut_file(build, "book/a/chapter", width)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(cut)
    assert bookmap.outputs_cut(build, "book/a/chapter") == 3
    head, _, row, *_ = bookmap.table(book).split("\n")
    assert row[: head.index("cut") + 3].split()[-1] == "3"
    os.utime(page, (2e9, 2e9))  # built anew
    assert bookmap.outputs_cut(build, "book/a/chapter") is None


def test_a_page_weighs_what_a_browser_fetches_for_it_once(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x" * 1000)
    (tmp_path / "a.css").write_bytes(b"x" * 100)
    (tmp_path / "mathjax.js").write_bytes(b"x" * 9000)
    html = (
        '<link rel="stylesheet" href="a.css?digest=1"><link rel="next" href="a.png">'
        '<img alt="" src="a.png"><img src="a.png"><img src="data:image/png;base64,AA">'
        '<script src="mathjax.js"></script><script src="gone.js"></script>'
    )
    (tmp_path / "page.html").write_text(html)
    assert bookmap.weight(tmp_path / "page.html") == len(html) + 1100
