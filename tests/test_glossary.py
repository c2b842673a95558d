"""The glossary names all that is public, and nothing that is not."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fractal_lib
import fractal_lib.curves
import fractal_lib.data

GLOSSARY = Path(__file__).resolve().parent.parent / "book" / "appendix" / "glossary.md"
PARTS = ["attention", "self_attention", "posterior", "inference", "data"]


def modules(package):
    """All modules of a package, imported."""
    return [
        importlib.import_module(f"{package.__name__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
    ]


def exported(module):
    """Names in ``__all__``; without it, functions and classes that the module itself defines."""
    defined = [name for name in dir(module) if name in importable([module])]
    return {*getattr(module, "__all__", defined)}


def importable(found):
    """Names without an underscore that are defined in one of the modules."""
    return {
        name
        for module in found
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
        and hasattr(value, "__qualname__")  # a function or a class, and no type variable
    }


def public():
    """What must be in the glossary."""
    names = set(fractal_lib.__all__)
    for part in PARTS:
        names |= set(importlib.import_module(f"fractal_lib.{part}").__all__)
    return names.union(*map(exported, modules(fractal_lib.curves)))


def first_column(text):
    """The names in code font in the first column of every table, in order."""
    cells = re.findall(r"^\|([^|]*)\|", text, flags=re.M)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def findings(text):
    """What is wrong with a glossary, one sentence each."""
    listed, expected = first_column(text), public()
    allowed = expected | importable(modules(fractal_lib.curves))
    return [
        *(f"not in the glossary: {name}" for name in sorted(expected - set(listed))),
        *(f"not public: {name}" for name in sorted(set(listed) - allowed)),
        *(f"twice: {name}" for name in sorted({n for n in listed if listed.count(n) > 1})),
    ]


def test_the_glossary_covers_what_is_public_and_nothing_else():
    assert findings(GLOSSARY.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[`ElboTerms`]", "[terms]", ["not in the glossary: ElboTerms"]),
        ("[`stencil`]", "[stencil]", ["not in the glossary: stencil"]),
        (
            "[`scores`](../posterior/real_series.ipynb) | RMSE",
            "scores | RMSE",
            ["not in the glossary: scores"],
        ),
        ("[`Marginals`]", "[`Paths`]", ["not in the glossary: Marginals", "not public: Paths"]),
        ("[`read`]", "[`read`, `_pick`]", ["not public: _pick"]),
        ("[`co2`]", "[`co2`, `mri`]", ["twice: mri"]),
    ],
)
def test_a_name_that_is_missing_retired_private_or_doubled_is_noticed(old, new, expected):
    text = GLOSSARY.read_text(encoding="utf-8")
    assert text.count(old) == 1
    assert findings(text.replace(old, new)) == expected
