"""The bibliography: every entry is whole, cited and told of; pages cite what stands in it."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parent.parent / "book"
TEXT = (BOOK / "references.bib").read_text()
LINK = re.compile(r"\[([^\][]+)\]\((https?://(?:[^()\s]|\([^()\s]*\))+)\)")
PAPER = re.compile(r"https?://(?:arxiv\.org/(?:abs|pdf)/|(?:dx\.)?doi\.org/)(.+)")


def entries(text):
    """Key to fields, "type" among them, of a file with one entry a line."""
    found = {}
    for kind, key, rest in re.findall(r"^@(\w+)\{([^,]+),(.*)\}$", text, re.M):
        assert key not in found, f"{key} stands twice"
        fields = re.findall(r"(\w+)=\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}", rest)
        found[key] = {"type": kind} | dict(fields)
    return found


def plain(tex):
    """Without braces and accents of TeX, in small letters."""
    return re.sub(r"\\\W|[{}\\]", "", tex).lower()


def lacks(entry):
    """Fields that an entry of its type must have and does not, or that are not of their form."""
    where = {"article": "journal", "inproceedings": "booktitle", "book": "publisher"}
    needed = {"author", "title", "year", where.get(entry["type"], "howpublished")}
    missing = [name for name in sorted(needed) if not entry.get(name)]
    missing += ["year"] * (not re.fullmatch(r"1[89]\d\d|20\d\d", entry.get("year", "")))
    missing += ["doi"] * (not re.fullmatch(r"(10\.\d{4,}/\S+)?", entry.get("doi", "")))
    if not {"pages", "url", "doi", "publisher"} & entry.keys():
        missing.append("pages, url or doi")
    arxiv = re.search(r"arXiv:(\S+)", entry.get("journal", ""))
    if arxiv and entry.get("url") != f"https://arxiv.org/abs/{arxiv[1]}":
        missing.append("url of its arXiv number")
    return missing


def pages():
    """Every page's prose, by name."""
    found = {path.name: path.read_text() for path in BOOK.rglob("*.md")}
    for path in BOOK.rglob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        found[path.name] = "\n\n".join(prose)
    return found


def wrongly_linked(text, known):
    """Links to a paper that no entry has, or that name it or its year otherwise than its entry."""
    works = {}
    for entry in known.values():
        works |= {entry[name].removeprefix("https://doi.org/"): entry for name in ("doi", "url")
                  if name in entry}  # fmt: skip
    found = []
    for link in LINK.finditer(text):
        words, address = link[1], link[2]
        paper = PAPER.match(address)
        entry = works.get(address) or (works.get(paper[1]) if paper else None)
        if entry is None:
            found += [f"{address} has no entry"] * bool(paper)
            continue
        called = re.fullmatch(r"\*(.+)\*", words)
        if called:
            strange = [w for w in called[1].lower().split() if w not in plain(entry["title"])]
            found += [f"{words} is not {entry['title']}"] * bool(strange)
        after = re.match(r"[^.:;\n\[]*", text[link.end() :])
        years = re.findall(r"\b(?:1[89]\d\d|20\d\d)\b", words + (after[0] if after else ""))
        if years and entry["year"] not in years:
            found.append(f"{words} is of {entry['year']}, not {', '.join(years)}")
    return found


def cited(text):
    return re.findall(r"\{cite(?::\w)?\}`([^`]+)`", text)


@pytest.mark.parametrize("key", entries(TEXT))
def test_an_entry_is_whole(key):
    assert lacks(entries(TEXT)[key]) == []
    first, year = re.match(r"[a-z]+?(?=\d)", key), re.search(r"\d{4}", key)
    entry = entries(TEXT)[key]
    assert first and year, "a key is made of a name, a year and a word"
    assert year[0] == entry["year"]
    letters = re.sub(r"[^a-z]", "", plain(entry["author"].split(",")[0]))
    assert letters == first[0]


def test_every_line_is_an_entry():
    assert len(entries(TEXT)) == len(TEXT.splitlines()) > 30


def test_each_is_told_of_once_and_none_is_unknown():
    told = Counter(cited(pages()["bibliography.md"]))
    assert set(told) == set(entries(TEXT))
    assert set(told.values()) == {1}
    everywhere = {key for text in pages().values() for key in cited(text)}
    assert everywhere <= set(entries(TEXT))


@pytest.mark.parametrize("name", pages())
def test_papers_that_a_page_links_stand_in_the_bibliography(name):
    assert wrongly_linked(pages()[name], entries(TEXT)) == []


KNOWN = entries(
    "@article{doe2001x, author={Doe, J.}, title={On {T}rees of means}, journal={arXiv:1.2}, "
    "year={2001}, url={https://arxiv.org/abs/1.2}}"
)


def test_faults_are_found():
    good = "[*On trees*](https://arxiv.org/abs/1.2) (2001): trees. [More](https://x.org)"
    assert wrongly_linked(good, KNOWN) == []
    assert wrongly_linked(good.replace("2001", "2002"), KNOWN)
    assert wrongly_linked(good.replace("On trees", "On stars"), KNOWN)
    assert wrongly_linked(good.replace("1.2", "1.3"), KNOWN)
    assert lacks(KNOWN["doe2001x"]) == []
    assert lacks(KNOWN["doe2001x"] | {"year": "201"}) == ["year"]
    assert lacks(KNOWN["doe2001x"] | {"journal": "arXiv:1.3"}) == ["url of its arXiv number"]
    assert lacks({"type": "book", "title": "t", "year": "2001"}) == [
        "author",
        "publisher",
        "pages, url or doi",
    ]
