"""Text that every Python brings along: the documentation strings of its standard library."""

import ast
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fractal_lib.checks import as_int

__all__ = ["byte_batch", "docstrings"]


@lru_cache(maxsize=1)
def docstrings() -> bytes:
    """The docstrings of the standard library's modules, classes and functions, one after another,
    as UTF-8.

    Returns:
        well over a million bytes; how many depends on the version of Python. Files in order of
        their names, each docstring once, an empty line between two. Tests and packages that were
        installed later are left out.

    Raises:
        FileNotFoundError: if this Python comes without the sources of its library.

    Complexity: parses the library, a few seconds, once a process. Source: the Python Software
    Foundation, under its licence; chapter ``self_attention/near_in_content``.

    >>> text = docstrings()
    >>> len(text) > 500_000, b"Return" in text
    (True, True)
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "lib2to3",
    }
    found: dict[str, None] = {}  # a set that keeps its order
    for file in sorted(root.rglob("*.py")):
        if skipped.isdisjoint(file.relative_to(root).parts):
            try:
                tree = ast.parse(file.read_bytes())
            except (
                SyntaxError,
                ValueError,
            ):  # some files of the library hold old syntax on purpose
                continue
            owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            found |= dict.fromkeys(
                doc
                for node in ast.walk(tree)
                if isinstance(node, owners)
                if (doc := ast.get_docstring(node))
            )
    if not found:
        raise FileNotFoundError(f"no source of Python's standard library under {root}")
    return "\n\n".join(found).encode(errors="replace")


def byte_batch(text: bytes, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Random stretches of a text: (batch, length) int64, values in [0, 256).

    Args:
        text: at least ``length`` bytes.
        batch, length: how many stretches, and how long.
        generator: of the places where they begin, each as likely as any other.

    Raises:
        TypeError: if the text is not bytes, or a size is no whole number.
        ValueError: if the text is too short, or a size is below 1.

    Complexity: O(len(text) + batch length).

    >>> byte_batch(b"abcdef", 2, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    if not isinstance(text, bytes | bytearray):
        raise TypeError(f"expected text as bytes, got {type(text).__name__}: text.encode()")
    batch = as_int(batch, "batch", least=1)
    length = as_int(length, "length", least=1, most=len(text))
    table = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    start = torch.randint(len(text) - length + 1, (batch, 1), generator=generator)
    return table[start + torch.arange(length)].long()
