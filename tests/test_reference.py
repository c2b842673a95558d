"""The specifications are complete, importable and apart from what they specify."""

import ast
import doctest
import inspect
from pathlib import Path

import pytest
import torch

import fractal_lib
from fractal_lib import RBF, DenseAttention, reference

ROOT = Path(fractal_lib.__file__).parent


def test_every_specification_has_an_example():
    for name in reference.__all__:
        tests = doctest.DocTestFinder().find(getattr(reference, name), name)
        assert tests[0].examples, name


def test_it_uses_nothing_that_it_specifies():
    tree = ast.parse(inspect.getsource(reference))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            assert "fractal_lib.attention" not in ast.unparse(node)


@pytest.mark.parametrize("gaps", [False, True])
def test_dense_attention_is_its_specification(gaps):
    n, kernel = 23, RBF(3.0)
    observed = torch.arange(n) % 4 > 0 if gaps else None
    eye = torch.eye(n, dtype=torch.float64)[None]
    for x in (0.0, 4.25, 22.0):
        out = DenseAttention(kernel)(
            eye, torch.tensor([[x / (n - 1)]], dtype=torch.float64), observed
        )
        expected = reference.dense_weights(x, n, kernel, observed)
        torch.testing.assert_close(out[0, 0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("curves", {"fractal_lib.curves", "fractal_lib.checks"}),
        ("attention", {"fractal_lib.attention", "fractal_lib.curves", "fractal_lib.checks"}),
    ],
)
def test_layers(folder, allowed):
    for path in (ROOT / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                if name.startswith("fractal_lib"):
                    assert ".".join(name.split(".")[:2]) in allowed, f"{path.name}: {name}"


@pytest.mark.parametrize("folder", ["curves", "attention"])
def test_every_module_lists_its_names(folder):
    for path in (ROOT / folder).glob("*.py"):
        assert "__all__" in path.read_text(encoding="utf-8") or path.name == "__init__.py"
