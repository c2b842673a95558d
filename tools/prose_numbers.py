"""Figures in prose that nothing backs: no cell prints them, no code sets them, no record has them.

    python tools/prose_numbers.py             report them; needs executed notebooks (`make book`)
    python tools/prose_numbers.py --attack    how many wrong figures would pass if one wrote them

What a figure is, `prose_figures` says. Looked at are Markdown, captions and alt texts, README.md
and DESIGN.md. A figure is backed if

1. an output of its section, or of the cell before or after, prints it, rounded as the prose rounds
   (in a page's first section and its last: any output of the page), or the page's code sets it; and
   few other figures of its length would be backed as well. Every number is given a score, the words
   that its line shares with the sentence, and two more if it stands next to it, one more in its
   section: those that score as much as the figure's own may be no more than a twentieth of all
   figures of that length, else the prose could say anything;
2. or `prose_numbers.yml` lists the words around it: with an expression of the same value (`is`),
   computed from records, outputs or what the sentence shows; with the text of a `line` of code or
   output that has it, here or `in` another file; or with a reason (`because`) where it is neither
   measured nor computed.
"""

import argparse
import json
import math
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from html import unescape
from pathlib import Path

import nbformat
import yaml
from executed import CACHE
from jupyter_cache import get_cache
from notebooks import BOOK, pages
from prose_figures import Figure, anywhere, figures, parsed, prose, words, wrong

ROOT = BOOK.parent
RESULTS = ROOT / "fractal_lib" / "benchmark" / "results"
LISTED = Path(__file__).with_suffix(".yml")
TEXTS = [ROOT / "README.md", ROOT / "DESIGN.md", *sorted(BOOK.rglob("*.md"))]
CONFUSABLE = 0.05  # of the other figures of its length, how many may be backed as well

# ---- what backs them -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A number that a cell prints or sets, and the words of its line."""

    value: float
    step: float  # the place of its last digit; 0 if it is exact
    words: frozenset[str]
    cell: int
    code: bool


def numbers(line: str, code: bool) -> list[tuple[float, float]]:
    """The numbers of a line of output or code, each with the place of its last digit."""
    found = re.findall(r"(?<![A-Za-z_\d.])(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?", line)
    plain = [parsed(text.rstrip(",_")) for text in found]
    if not code:
        return plain
    powers = re.findall(r"(?<![\w.])(\d+) ?\*\* ?(\d+)", line)
    return [(value, 0.0) for value, _ in plain] + [(float(a) ** int(b), 0.0) for a, b in powers]


def lines(output) -> list[tuple[str, str]]:
    """The lines of an output, each with the head above it."""
    data = output.get("data", {})
    text = output.get("text") or data.get("text/html") or data.get("text/plain") or ""
    text = "".join(text)
    if "text/html" in data:
        text = re.sub(r"<(script|style|svg)\b.*?</\1>|data:[^\"']*", "", text, flags=re.S)
        heads = re.findall(r"<caption.*?</caption>|<thead.*?</thead>", text, flags=re.S)
        head = re.sub("<[^>]+>", " ", " ".join(heads))
        rows = re.findall(r"<tr.*?</tr>|<p.*?</p>|<li.*?</li>", text, flags=re.S) or [text]
        return [(unescape(re.sub("<[^>]+>", " ", row)), unescape(head)) for row in rows]
    return [(line, text.split("\n", 1)[0]) for line in text.split("\n")]


def said(cells) -> list[tuple[str, str, int, bool]]:
    """Every line that the cells put out or are made of, its head, its cell, whether it is code."""
    found = []
    for index, cell in enumerate(cells):
        if cell.cell_type == "code":
            found += [(*line, index, False) for out in cell.outputs for line in lines(out)]
            found += [(line, "", index, True) for line in cell.source.split("\n")]
    return found


class Page:
    """A page, executed: its figures, and what backs them."""

    def __init__(self, name: str, cells):
        self.name, self.cells, self.said = name, cells, said(cells)
        self.sources = [
            Source(*number, words(f"{line} {head}"), index, code)
            for line, head, index, code in self.said
            for number in numbers(line, code)
        ]
        starts = (
            c.cell_type == "markdown" and bool(re.search("^##", c.source, re.M)) for c in cells
        )
        self.section, count = [], 0
        for start in starts:
            count += start
            self.section.append(count)

    def figures(self):
        """Each figure with the index of its cell."""
        for index, cell in enumerate(self.cells):
            shown = cell.metadata.get("mystnb", {})
            texts = [shown.get("figure", {}).get("caption"), shown.get("image", {}).get("alt")]
            for text in [cell.source] if cell.cell_type == "markdown" else filter(None, texts):
                for sentence in prose(text):
                    yield from ((index, figure) for figure in figures(sentence))

    def nearness(self, index: int) -> list[int]:
        """Of each cell, seen from this one: 2 next to it, 1 in its section, else 0.

        From the first section and the last, which sum up, every cell is in the section.
        """
        here = self.section[index]
        near = [int(s == here or here in (0, self.section[-1])) for s in self.section]
        codes = [i for i, cell in enumerate(self.cells) if cell.cell_type == "code"]
        around = [i for i in codes if i < index][-1:] + [i for i in codes if i > index][:1]
        for i in [index] if index in codes else around:
            near[i] = 2
        return near

    def backed(self, index: int, figure: Figure) -> Source | None:
        """The source of a figure on its page, if few other figures would do as well."""
        near, about = self.nearness(index), words(figure.sentence)
        fits: dict[int, tuple[int, Source]] = {}  # by what they would let the prose say
        for source in self.sources:
            if not source.code and not near[source.cell]:
                continue
            score = len(about & source.words) + near[source.cell]
            for key in figure.read_as(source.value, source.step, source.code):
                if key not in fits or fits[key][0] < score:
                    fits[key] = score, source
        if (own := fits.get(figure.key)) is None:
            return None
        lower = 10 ** (len(str(figure.key)) - 1)
        rivals = [k for k, (s, _) in fits.items() if lower <= k < 10 * lower and s >= own[0]]
        return own[1] if len(rivals) - 1 <= CONFUSABLE * 9 * lower else None


# ---- what is listed, and the whole -----------------------------------------------------------


class Listed:
    """The figures that `prose_numbers.yml` accounts for."""

    def __init__(self, file: Path, book: dict[str, Page]):
        self.book, self.entries, self.used, self.faults = book, [], set(), []
        for name, entries in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            for entry in entries:
                says, values = " ".join(prose(entry["says"])), entry.get("because")
                try:
                    if "is" in entry:
                        printed = lambda pattern, page=name: self.printed(pattern, page)  # noqa: E731
                        values = eval(str(entry["is"]), KNOWN | {"printed": printed})
                    elif "line" in entry:
                        values = set(self.line(name, entry["line"], entry.get("in")))
                except Exception as error:
                    self.faults.append(f"{name}: {says}: {type(error).__name__}: {error}")
                    values = []
                values = [values] if isinstance(values, (int, float)) else values
                self.entries.append((name, says, anywhere(says), values))

    def line(self, name: str, text: str, file: str | None) -> list[tuple[float, float, bool]]:
        """The numbers of the lines that have this text, of a page's cells or of a file."""
        where = [(line, code) for line, _, _, code in self.book[name].said]
        if file:
            where = [(line, True) for line in (ROOT / file).read_text("utf-8").split("\n")]
        hits = [(line, code) for line, code in where if text in " ".join(line.split())]
        if not hits:
            raise LookupError(f"no line has {text}")
        return [(*number, code) for line, code in hits for number in numbers(line, code)]

    def printed(self, pattern: str, name: str) -> float:
        """The number that an output of a page prints where a pattern has its group."""
        for cell in self.book[name].cells:
            for output in cell.get("outputs", []):
                text = "\n".join(f"{head}\n{line}" for line, head in lines(output))
                if match := re.search(pattern, text):
                    return float(match[1].replace(",", ""))
        raise LookupError(f"no output of {name} has {pattern}")

    def verdict(self, page: str, figure: Figure) -> bool | None:
        """Whether the entry for this place has this figure; None if there is no such entry."""
        for name, says, pattern, values in self.entries:
            for match in pattern.finditer(figure.sentence) if name == page else ():
                places = [match.span(group + 1) for group in range(pattern.groups)]
                if figure.span not in places:
                    continue
                self.used.add((name, says))
                if isinstance(values, str):
                    return match[0] == says
                if isinstance(values, set):
                    return any(figure.key in figure.read_as(*number) for number in values)
                value = values[places.index(figure.span)] if len(values) == len(places) else 0
                return figure.key in figure.read_as(value)
        return None

    def trouble(self) -> list[str]:
        """Entries that cannot be computed, and entries whose words stand nowhere any more."""
        unused = (e[:2] for e in self.entries if e[:2] not in self.used)
        return self.faults + [f"{name}: listed, but not there: {says}" for name, says in unused]


def accepted(page: Page, index: int, figure: Figure, listed: Listed) -> bool:
    """Whether something backs a figure: its entry in the list, or its page where it has none."""
    verdict = listed.verdict(page.name, figure)
    return page.backed(index, figure) is not None if verdict is None else verdict


def near(value: float, figure: float) -> float:
    """The figure, if a number that machines differ in is within a factor of two."""
    return figure if figure / 2 < value < 2 * figure else value


@cache
def load(name: str) -> dict:
    """A record by its name."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


KNOWN = {"load": load, "near": near, "math": math}


def book(folder: Path = CACHE) -> dict[str, Page]:
    """Every page and text by its path; raises KeyError for a notebook that was not executed."""
    store, found = get_cache(folder), {}
    for path in pages():
        _, done = store.merge_match_into_notebook(nbformat.read(path, as_version=4))
        found[str(path.relative_to(ROOT))] = Page(str(path.relative_to(ROOT)), done.cells)
    for path in TEXTS:
        cell = nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))
        found[str(path.relative_to(ROOT))] = Page(str(path.relative_to(ROOT)), [cell])
    return found


def unbacked(pages: dict[str, Page], listed: Listed) -> list[str]:
    """A line for each figure that nothing backs, and for each entry of the list that is stale."""
    found = []
    for name, page in pages.items():
        for index, figure in page.figures():
            if not accepted(page, index, figure, listed):
                start, end = figure.span
                around = figure.sentence[max(0, start - 40) : end + 40]
                found.append(f"{name} [{index}]: {figure.text} in: ... {around} ...")
    return found + listed.trouble()


def attack(pages: dict[str, Page], listed: Listed, times: int = 20) -> Counter:
    """Make each figure wrong so often; how many were tried and how many passed, by digits."""
    rng, count = random.Random(0), Counter()
    for page in pages.values():
        for index, figure in page.figures():
            for text in filter(None, (wrong(figure, rng) for _ in range(times))):
                start, end = figure.span
                sentence = figure.sentence[:start] + text + figure.sentence[end:]
                new = next((f for f in figures(sentence) if f.span[0] == start), None)
                count["tried", len(str(figure.key))] += 1
                if new is None or accepted(page, index, new, listed):
                    count["passed", len(str(figure.key))] += 1
    return count


def main() -> int:
    """Report, or attack; 1 if a figure has nothing behind it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--attack", action="store_true", help="count the wrong figures that pass")
    args = parser.parse_args()
    every = book()
    listed = Listed(LISTED, every)
    if args.attack:
        count = attack(every, listed)
        for digits in sorted({d for _, d in count}):
            tried, passed = count["tried", digits], count["passed", digits]
            print(f"{digits} digits: {passed:5} of {tried:5} wrong ones pass, {passed / tried:.1%}")
        tried, passed = (
            sum(v for (w, _), v in count.items() if w == what) for what in ("tried", "passed")
        )
        print(f"in all:   {passed:5} of {tried:5}, {passed / tried:.1%}")
        return 0
    found, count = unbacked(every, listed), sum(len(list(p.figures())) for p in every.values())
    print("\n".join(found) or f"{count} figures, all backed")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
