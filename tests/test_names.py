"""The project speaks the field's language: names that were retired stand nowhere any more.

CHANGELOG.md has the table old -> new. What is read is source, prose and cells, not recorded results
and not outputs.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# the sketch's own names, the table of what was renamed, and tests that name them
ALLOWED = {
    "book/appendix/from_the_sketch.ipynb",
    "CHANGELOG.md",
    "tests/test_glossary.py",
    "tests/test_names.py",
}
NAMES = """
    LinearObservation PowerLaw fractal_attention get_paths hilbert_order inverse_order morton_order
    raster_order telescope_bound telescope_levels telescope_reads touching_order
"""
# These are words of prose too: what is gone is the call, the import, the name set as code.
WORDS = "Cauchy Cells Exponential Gaussian Paths Plan Terms"
MODULES = """
    attention.cells attention.checks attention.reads attention.self_attention attention.telescope
    data.exact data.scores data.smoothers posterior.context posterior.generative
    posterior.posteriors posterior.sde_matching posterior.tasks posterior.train
"""
ARGUMENTS = "anneal centres clock dm ds log_weight reading shocks"
IDIOMS = [
    "worked off",
    "hangs? together",
    "tak(es?|ing) no notice",
    "(is|are) no numbers?",
    "held to be",
    "mended",
    "dear",
    "hears",
    "seconds of the processor",
    "telescop(es?|ed|ing|ic)",
    "rungs?",
]
RETIRED = [
    *(rf"\b{name}\b" for name in NAMES.split()),
    *(rf"(?<![\w.]){word}\(|import [^\n]*\b{word}\b|`{word}[`(.]" for word in WORDS.split()),
    *(rf"\bfractal_lib[./]{name.replace('.', '[./]')}\b" for name in MODULES.split()),
    *(rf"(?<=[(,\s]){name}=(?!=)" for name in ARGUMENTS.split()),
    *(rf"(?i)\b{idiom}\b" for idiom in IDIOMS),
    r"(?<![\w/])benchmarks/",
    r"fractal_lib\.posterior[^\n]* import [^\n]*\bClock\b",  # the benchmark's timer has one
]
PATTERNS = [re.compile(pattern) for pattern in RETIRED]


def words_of(path):
    """(line number or cell, text) of all that somebody wrote in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return list(enumerate(text.split("\n"), 1))
    cells = json.loads(text)["cells"]
    return [
        (cell["id"], "".join(cell["source"]) + json.dumps(cell["metadata"].get("mystnb", {})))
        for cell in cells
    ]


def files(root=ROOT):
    """Library, tests, tools, book, and the pages at the root."""
    found = [p for p in root.glob("*.*") if p.suffix in (".md", ".toml", ".yml", ".cff", ".txt")]
    for folder in ("fractal_lib", "tests", "tools", "_ext", "book"):
        found += [p for p in (root / folder).rglob("*") if p.suffix in (".py", ".md", ".ipynb")]
    return [p for p in sorted(found) if ".ipynb_checkpoints" not in p.parts]


def findings(path):
    """Every retired name of a file, with its place."""
    return [
        f"{path.name} {place}: {match[0].strip()}"
        for place, text in words_of(path)
        for pattern in PATTERNS
        for match in pattern.finditer(text)
    ]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_retired_name(path):
    if path.relative_to(ROOT).as_posix() not in ALLOWED:
        assert findings(path) == []


def test_the_allowed_places_are_there():
    assert all((ROOT / name).is_file() for name in ALLOWED)


@pytest.mark.parametrize(
    "line",
    [
        "kernel = PowerLaw(1.0)",
        "from fractal_lib.data.scores import scores",
        "see fractal_lib/attention/telescope.py",
        "reader = WindowAttention(Gaussian(3.0))",
        "fit(model, Plan(3))",
        "kalman_smoother(a, shocks=q)",
        "python benchmarks/text_task.py",
        "`benchmarks/results/heads-cpu.json`",
        "chunks are worked off in turn",
        "It takes no notice of gaps.",
        "Mended, it is right.",
        "A level hears four rows.",
        "a telescoped ladder",
    ],
)
def test_a_retired_name_is_noticed(tmp_path, line):
    (path := tmp_path / "page.md").write_text(f"A line.\n{line}\n")
    assert len(findings(path)) >= 1
    cell = {"id": "a", "cell_type": "code", "source": [line], "metadata": {}, "outputs": []}
    (path := tmp_path / "page.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert len(findings(path)) >= 1


@pytest.mark.parametrize(
    "line",
    [
        "A Gaussian kernel (Cauchy's is wider). Cells of a tree. Paths of an SDE.",
        "fractal_self_attention(query, key, value)",
        "book/start/ladder.ipynb",
        "TrainingPlan(steps=3)",
        "ElboTerms(a, b, c)",
        "fractal_lib/benchmark/results/heads-cpu.json",
        "image_width == 3",
        "No number of levels can help.",
    ],
)
def test_other_words_are_not_taken_for_it(tmp_path, line):
    (path := tmp_path / "page.md").write_text(line)
    assert findings(path) == []
