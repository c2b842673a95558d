"""Which reader for which data: the choice that the book's decision page explains."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from fractal_lib.attention.base import PATTERNS, ContextAttention
from fractal_lib.attention.fractal import FractalAttention
from fractal_lib.attention.kernels import Kernel, as_kernel
from fractal_lib.attention.multilevel import MultilevelAttention
from fractal_lib.attention.window import WindowAttention
from fractal_lib.checks import as_int, as_positive

__all__ = ["CELLS", "SMOOTH", "Choice", "choose_reader", "multilevel_candidates", "window_reads"]

CELLS = (4, 8, 16, 32, 64)
"""Cells of the `MultilevelAttention` that are tried, with means alone and with first moments."""

SMOOTH = 1e-9
"""Tail of a window whose jumps do not matter to a derivative: they are below float32's rounding."""

MOST = 10**7  # rows, where bounds are computed


@dataclass(frozen=True)
class Choice:
    """A reader, and what it costs.

    Attributes:
        name: in `PATTERNS`.
        options: of its class, beside the kernel.
        reads: rows, or nodes, that a query touches.
        prepared: rows read and written once, before the first query.
        bound: proven limit of the error, over the rows' largest magnitude, rounding aside; None
            where there is none: for a kernel that is learned, and at irregular times.
        why: in one sentence.
        kernel: that is read, or None if the reader learns its own.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    reads: int = 0
    prepared: int = 0
    bound: float | None = None
    why: str = ""
    kernel: Kernel | None = None

    def make(self) -> ContextAttention:
        """The reader.

        >>> choose_reader(None, 1000).make()
        FractalAttention(depth=32, source='sample')
        """
        kernel = {} if self.kernel is None else {"kernel": self.kernel}
        return PATTERNS[self.name](**kernel, **self.options)

    @property
    def code(self) -> str:
        """The lines that import and make it.

        >>> print(choose_reader(None, 1000, causal=True).code)
        from fractal_lib import FractalAttention
        attention = FractalAttention(causal=True)
        """
        made = PATTERNS[self.name].__name__
        given = [f"{key}={value!r}" for key, value in self.options.items()]
        imports = [made]
        if self.kernel is not None:
            imports.append(type(self.kernel).__name__)
            given.insert(0, repr(self.kernel))
        return (
            f"from fractal_lib.attention import {', '.join(imports)}\n"
            if self.kernel is not None
            else f"from fractal_lib import {made}\n"
        ) + f"attention = {made}({', '.join(given)})"

    def num_bytes(self, hidden: int = 64, itemsize: int = 4) -> int:
        """Bytes of rows that one query moves, for rows of ``hidden`` numbers."""
        return self.reads * hidden * itemsize


def choose_reader(
    kernel: Kernel | None,
    n: int,
    *,
    queries: int = 1,
    tolerance: float = 0.01,
    derivative: bool = False,
    gap: int = 0,
    irregular: bool = False,
    causal: bool = False,
    noisy: bool = False,
) -> Choice:
    """The reader that touches fewest rows, of those that fulfil what is asked.

    Args:
        kernel: that is to be read, or None if the weights are to be learned.
        n: number of rows; with a kernel at most 10**7, since its bounds look at every distance.
        queries: asked of one context before it changes. What is prepared once pays from some number
            on.
        tolerance: largest error of the result, over the largest magnitude of the rows.
        derivative: whether the result is differentiated in t.
        gap: longest run of missing rows; 0 if none is missing.
        irregular: whether rows stand at uneven times.
        causal: whether no row after t may be read.
        noisy: whether rows are noisy: then means are read rather than samples, where that is open.

    Returns:
        the `Choice`. With a kernel, dense attention, a window and multilevel summation compete by
        ``prepared + queries * reads``; without one, or if it must be causal, the ladder is the
        answer, whose kernel is its own.

    Raises:
        TypeError, ValueError: for a kernel that is none, and numbers that are not as said.

    Complexity: that of `MultilevelAttention.error_bound` for each number of cells, O(n log n), once
    for each kernel and n. Source: chapter ``measure/choose``.

    >>> from fractal_lib.attention import OriginalKernel, RationalQuadratic
    >>> choose_reader(OriginalKernel(), 10_000).reads
    5
    >>> one = choose_reader(RationalQuadratic(10.0), 10_000, queries=1000)
    >>> one.name, one.reads, one.bound < 0.01
    ('multilevel', 931, True)
    """
    n, queries = as_int(n, "n", least=1), as_int(queries, "queries", least=1)
    tolerance, gap = float(as_positive(tolerance, "tolerance")), as_int(gap, "gap", least=0)
    if kernel is None or causal:
        return _ladder(n, causal, noisy or gap > 0 or irregular, kernel is not None)
    n = as_int(n, "n", most=MOST)  # a bound looks at the kernel at every distance
    kernel = as_kernel(kernel)
    found = [Choice("dense", reads=n, bound=0.0, kernel=kernel, why="every row is read")]
    if not irregular:
        found += _window(kernel, n, min(tolerance / 2, SMOOTH if derivative else 1.0), gap)
    found += _multilevel(kernel, n, tolerance, gap > 0, irregular)
    return min(found, key=lambda one: one.prepared + queries * one.reads)  # the first, if alike


def _ladder(n: int, causal: bool, pooled: bool, given: bool) -> Choice:
    options: dict[str, Any] = {"causal": True} if causal else {}
    if pooled:
        options["source"] = "pyramid"
    reader = FractalAttention(**options)
    why = "its weights are learned, a share for each scale"
    if causal:
        why = "no other reader sees the past alone" + "; its kernel is its own" * given
    reads = reader.reads(torch.zeros(1, 1), n).indices.shape[-1]
    return Choice("ladder", options, reads, 2 * n * pooled, None, why)


def window_reads(kernel: Kernel, n: int, tail: float, gap: int = 0) -> int:
    """Rows that a window reads of a context of n rows.

    >>> window_reads(as_kernel(None), 10_000, 1e-9)
    11
    """
    return 2 * WindowAttention(kernel, tail=tail, gap=gap).radius(n) + 1


def _window(kernel: Kernel, n: int, tail: float, gap: int) -> list[Choice]:
    reads = window_reads(kernel, n, tail, gap)
    if reads >= n:
        return []
    options: dict[str, Any] = {"tail": tail} | ({"gap": gap} if gap else {})
    why = "the kernel ends, and so does what is read"
    return [Choice("window", options, reads, 0, 2 * tail, why, kernel)]


def multilevel_candidates(
    kernel: Kernel, n: int, gaps: bool = False
) -> Iterator[tuple[int, int, int, float]]:
    """Cells, expansion, reads and bound of every `MultilevelAttention` that is tried.

    >>> list(multilevel_candidates(as_kernel(None), 100))[0][:3]
    (4, 0, 61)
    """
    for cells in CELLS:
        for expansion in (0, 1):
            reads, bound = _of_multilevel(_Same(kernel), n, cells, expansion, gaps)
            yield cells, expansion, reads, bound


class _Same:
    """A kernel that equals another of the same state, so that what follows from it is kept."""

    def __init__(self, kernel: Kernel):
        self.kernel, self.state = kernel, kernel.state()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.state == other.state

    def __hash__(self) -> int:
        return hash(self.state)


@lru_cache(maxsize=4096)
def _of_multilevel(
    same: _Same, n: int, cells: int, expansion: int, gaps: bool
) -> tuple[int, float]:
    reader = MultilevelAttention(same.kernel, cells=cells, expansion=expansion)
    reads = reader.reads(torch.zeros(1, 1), n).indices.shape[-1]
    return reads, reader.error_bound(n, gaps)


def _multilevel(
    kernel: Kernel, n: int, tolerance: float, gaps: bool, irregular: bool
) -> list[Choice]:
    why = "far rows are read by means over cells that grow with distance"
    return [
        Choice(
            "multilevel",
            {"cells": cells, "expansion": expansion},
            reads,
            2 * n,
            None if irregular else bound,
            why + "; at uneven times without a bound" * irregular,
            kernel,
        )
        for cells, expansion, reads, bound in multilevel_candidates(kernel, n, gaps)
        if bound <= tolerance and reads < n
    ]
