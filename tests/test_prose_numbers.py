"""Figures in prose: what is one, what backs it, and that a wrong one is found."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from notebooks import BOOK
from prose_figures import figures, prose
from prose_numbers import Listed, Page, attack, unbacked

PRINTED = "reader   rows  error\nladder     48  0.461\nwindow     11  2.83"


def ran(source, said=""):
    """A cell of code that has put something out."""
    outputs = [new_output("stream", name="stdout", text=said)] if said else []
    return new_code_cell(source, outputs=outputs)


def chapter(text, said=PRINTED, code="table(readers, weeks=2284)"):
    """A page of three sections; the text stands in the second, beside its only output."""
    cells = [
        new_markdown_cell("# Title\n\nWords."),
        new_markdown_cell("## One"),
        new_markdown_cell(text),
        ran(code, said),
        new_markdown_cell("## Two\n\nWords."),
        ran("pass"),
        new_markdown_cell("More of it."),
        new_markdown_cell("## Three"),
    ]
    return Page("page", cells)


@pytest.fixture
def listed(tmp_path):
    """Make a list of a text."""

    def make(text="{}", pages=None):
        (file := tmp_path / "listed.yml").write_text(text)
        return Listed(file, pages or {})

    return make


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("An error of .48 ppm, 3.4 times the 17 % of `x = 99`.", [".48", "3.4", "17"]),
        ("From 2 to 4 percent, in 3 s, with 10,000 rows and 50 000 more.", "2 4 3 10,000 50 000"),
        ("Mandelbrot, Science 156, 1967; Mathematics 30 (1999-2000); third edition 2014.", []),
        ("Since 1985 ([Nadaraya](https://a.b/17.3), 1964), in chapter 14, Exercise 12.", []),
        ("| a | 41 of 9 |\n|---|---|\n| b | -290 |", ["41", "290"]),
        ("Below $3 \\cdot 10^{-14}$, $n = 4096$, $n^{0.631}$, $10^5$.", ["3e-14", "0.631", "1e5"]),
        ("**Time**: 17 minutes to read.\n\n```python\nx = 128\n```\n", []),
        ("At 2000 rows; in 2000, and in 1958 to 2001.", ["2000"]),
    ],
)
def test_what_a_figure_is(markdown, expected):
    found = [figure.text for sentence in prose(markdown) for figure in figures(sentence)]
    if isinstance(expected, str):
        expected = ["2", "4", "3", "10,000", "50 000"]
    assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        "The ladder's error is 0.461 with 48 rows.",
        "The ladder errs by 0.46, the window by 2.83 or 2.8.",
        "There are 2284 weeks.",
    ],
)
def test_what_is_printed_or_set_is_backed(text, listed):
    assert unbacked({"page": chapter(text)}, listed()) == []


@pytest.mark.parametrize(
    "text",
    [
        "The ladder's error is 0.471 with 48 rows.",
        "The ladder errs by 0.47.",
        "There are 2248 weeks.",
        "The ladder's error is 0.4610.",
        "The window's error is 461 %.",
        "The window's error is 283.",
    ],
)
def test_what_is_not_is_found(text, listed):
    assert len(unbacked({"page": chapter(text)}, listed())) == 1


def test_a_share_may_be_said_in_percent(listed):
    said = "share of the ladder 0.183"
    assert unbacked({"page": chapter("The ladder has 18 % of the share.", said)}, listed()) == []
    assert unbacked({"page": chapter("The ladder has 19 % of the share.", said)}, listed())


def test_an_output_of_another_section_backs_nothing(listed):
    text = "The ladder's error is 0.461."
    cells = chapter(text).cells
    cells[2].source, cells[6].source = "", text
    assert len(unbacked({"page": Page("page", cells)}, listed())) == 1
    cells[6].source, cells[0].source = "", text  # the first section may quote all
    assert unbacked({"page": Page("page", cells)}, listed()) == []


def test_where_anything_would_be_backed_nothing_is(listed):
    """The figure is printed, but so is nearly every other of two digits, in lines as alike."""
    said = "\n".join(f"error of the ladder {k}" for k in range(10, 60))
    text = "The error of the ladder is 48."
    assert len(unbacked({"page": chapter(text, said)}, listed())) == 1
    assert unbacked({"page": chapter(text, "error of the ladder 48\n50 51 52")}, listed()) == []


def test_a_listed_figure_must_be_the_value_of_its_expression(listed):
    text, entry = "A step takes 5.2 GB in all.", "page:\n  - {says: 'takes 5.2 GB', is: '%s'}"
    pages = {"page": chapter(text)}
    assert len(unbacked(pages, listed())) == 1
    assert unbacked(pages, listed(entry % "4 * 1.31")) == []
    assert len(unbacked(pages, listed(entry % "4 * 1.35"))) == 1
    assert unbacked(pages, listed(entry % "near(2.7, 5.2)")) == []
    assert len(unbacked(pages, listed(entry % "near(2.5, 5.2)"))) == 1
    assert len(unbacked(pages, listed(entry % "near(2.7, 5.3)"))) == 1
    assert "KeyError" in unbacked(pages, listed(entry % 'load("hilbert-cpu")["gone"]'))[-1]


def test_where_a_place_is_listed_the_page_has_no_say(listed):
    """48 is printed beside it, but the list says what must stand here."""
    entry = "page:\n  - {says: The ladder has 40 rows, is: 8 * 5}"
    assert unbacked({"page": chapter("The ladder has 40 rows.")}, listed(entry)) == []
    assert len(unbacked({"page": chapter("The ladder has 48 rows.")}, listed())) == 0
    assert len(unbacked({"page": chapter("The ladder has 48 rows.")}, listed(entry))) == 1
    reason = "page:\n  - {says: The ladder has 40 rows, because: it is a setting}"
    assert len(unbacked({"page": chapter("The ladder has 48 rows.")}, listed(reason))) == 1


def test_an_entry_may_name_a_line(listed):
    entry = "page:\n  - {says: read by 11 rows, line: %s}"
    pages = {"page": chapter("It is read by 11 rows.")}
    assert unbacked(pages, listed(entry % "window 11", pages)) == []
    assert len(unbacked(pages, listed(entry % "ladder 48", pages))) == 1
    assert "LookupError" in unbacked(pages, listed(entry % "dragon", pages))[-1]
    elsewhere = entry % "11 rows, in: tests/test_prose_numbers.py"
    assert unbacked(pages, listed(elsewhere, pages)) == []


def test_an_entry_whose_words_are_gone_is_found(listed):
    entry = "page:\n  - {says: takes 5.2 GB, because: it is a definition}"
    assert unbacked({"page": chapter("A step takes 5.2 GB.")}, listed(entry)) == []
    found = unbacked({"page": chapter("A step takes little.")}, listed(entry))
    assert found == ["page: listed, but not there: takes 5.2 GB"]


def test_an_entry_may_name_an_output_of_another_page(listed):
    pages = {"page": chapter("It takes 2.8 ppm."), "other": chapter("", "left: 2.83 ppm")}
    entry = 'page:\n  - {says: takes 2.8 ppm, is: \'printed(r"left: (\\S+)", "%s")\'}'
    assert unbacked(pages, listed(entry % "other", pages)) == []
    assert "LookupError" in unbacked(pages, listed(entry % "page", pages))[-1]


def test_a_wrong_figure_planted_in_a_chapter_is_found(listed):
    """Its compared outputs are stored, so that it need not run."""
    file = Path(BOOK / "start" / "dense_attention.ipynb")
    notebook = nbformat.read(file, as_version=4)

    def reported(cells):
        return [line for line in unbacked({"page": Page("page", cells)}, listed()) if "[7]" in line]

    text = notebook.cells[7].source
    assert "4.31" in text and not any("4.31" in line for line in reported(notebook.cells))
    notebook.cells[7].source = text.replace("4.31", "4.13")
    assert any("4.13" in line for line in reported(notebook.cells))


def test_the_attack_counts_what_passes(listed):
    text = "The ladder's error is 0.461 ppm."
    count = attack({"page": chapter(text)}, listed())
    assert count["tried", 3] > 10 and count["passed", 3] == 0
    lax = "\n".join(f"error of the ladder {k / 1000}" for k in (461, 231, 599, 922, 641, 416, 323))
    assert 0 < attack({"page": chapter(text, lax)}, listed())["passed", 3]
