"""What the decision page's form looks up: reads, bounds and measured errors of every candidate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fractal_lib.attention import (
    RBF,
    ContextAttention,
    DenseAttention,
    FractalAttention,
    Kernel,
    Matern12,
    MultilevelAttention,
    OriginalKernel,
    RationalQuadratic,
    WindowAttention,
)
from fractal_lib.attention.choose import SMOOTH, multilevel_candidates, window_reads
from fractal_lib.benchmark.registry import case
from fractal_lib.progress import progress_bar

__all__ = ["GAPS", "KERNELS", "SIZES", "TOLERANCES", "choices"]

KERNELS: dict[str, Kernel] = {
    "original, 0.7 rows": OriginalKernel(),
    "Gaussian, 3 rows": RBF(3.0),
    "Gaussian, 30 rows": RBF(30.0),
    "Gaussian, 300 rows": RBF(300.0),
    "exponential, 3 rows": Matern12(3.0),
    "exponential, 30 rows": Matern12(30.0),
    "tail 1/d², 1 row": RationalQuadratic(1.0),
    "tail 1/d², 10 rows": RationalQuadratic(10.0),
    "tail 1/d, 1 row": RationalQuadratic(1.0, alpha=0.5),
    "tail 1/d, 10 rows": RationalQuadratic(10.0, alpha=0.5),
}
"""Kernels that the form offers, by what it calls them."""

SIZES = (100, 1_000, 10_000, 100_000)
TOLERANCES = (0.1, 0.01, 0.001, 0.0001)
GAPS = (0, 10, 100)
QUERIES, HIDDEN = 16, 4  # of which errors are measured


@case("choices", records="choices", choices={"kernels": list(KERNELS)})
def choices(
    sizes: Sequence[int] = SIZES,
    kernels: Sequence[str] = tuple(KERNELS),
    progress: bool = True,
) -> list[dict]:
    """Count the reads of every candidate of `choose_reader`, with its bound and a measured error.

    Args:
        sizes: numbers of rows n.
        kernels: by name in `KERNELS`.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        one record for each kernel, size and candidate ``method``: ``reads``; ``bound``, and
        ``bound_gaps`` where rows may be missing, None for infinity; ``error``, the largest of 16
        queries from float64 dense attention over the largest magnitude of standard normal rows,
        None for a window that has room for a gap. The ladder has reads alone: its kernel is its
        own.

    Source: chapter ``measure/choose``.
    """
    found = []
    with progress_bar(len(sizes) * len(kernels), "choices", progress) as step:
        for n in sizes:
            values = torch.randn(1, n, HIDDEN, generator=torch.Generator().manual_seed(0)).double()
            for source in ("sample", "pyramid"):
                for causal in (False, True):
                    reader = FractalAttention(source=source, causal=causal)
                    name = f"ladder, {source}{', causal' * causal}"
                    reads = reader.reads(torch.zeros(1, 1), n).indices.shape[-1]
                    found.append({"name": "", "n": n, "method": name, "reads": reads})
            for kernel in kernels:
                rows = _of(KERNELS[kernel], n, values)
                found += [{"name": kernel, "n": n} | row for row in rows]
                step(kernel)
            print(f"n = {n:,}: {len(found)} rows", flush=True)
    return found


def _of(kernel: Kernel, n: int, values: Tensor) -> list[dict]:
    t = torch.rand(1, QUERIES, generator=torch.Generator().manual_seed(1)).double()
    exact = DenseAttention(kernel)(values, t)

    def error(reader: ContextAttention) -> float:
        return ((reader(values, t) - exact).abs().max() / values.abs().max()).item()

    rows = []
    for tail in dict.fromkeys((*(tolerance / 2 for tolerance in TOLERANCES), SMOOTH)):
        for gap in GAPS:
            row = {"method": f"window, {tail:g}, {gap}", "tail": tail, "gap": gap}
            row |= {"reads": window_reads(kernel, n, tail, gap), "bound": 2 * tail, "error": None}
            if not gap and row["reads"] < n:
                row["error"] = error(WindowAttention(kernel, tail=tail))
            rows.append(row)
    with_gaps = multilevel_candidates(kernel, n, gaps=True)
    for one, other in zip(multilevel_candidates(kernel, n), with_gaps, strict=True):
        cells, expansion, reads, bound = one
        row = {"method": f"multilevel, {cells}, {expansion}", "cells": cells}
        row |= {"expansion": expansion, "reads": reads, "error": None}
        row |= {"bound": _finite(bound), "bound_gaps": _finite(other[3])}
        if reads < n:
            row["error"] = error(MultilevelAttention(kernel, cells=cells, expansion=expansion))
        rows.append(row)
    return rows


def _finite(number: float) -> float | None:
    return number if number < float("inf") else None
