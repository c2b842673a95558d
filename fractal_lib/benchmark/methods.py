"""What is timed: each way to read a context of n rows at one t per sample."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fractal_lib.attention import (
    PATTERNS,
    ContextAttention,
    DenseAttention,
    FractalAttention,
    MultilevelAttention,
    OriginalKernel,
)
from fractal_lib.benchmark.products import dense_bmm, sdpa_with_bias, sketch, sketch_fixed
from fractal_lib.posterior import UltimateFractalPosteriorAffine

__all__ = [
    "BOUNDS",
    "COPY",
    "FORMS",
    "GATHER",
    "LABELS",
    "Method",
    "methods",
    "num_reads",
    "reference",
    "reference_extra",
    "with_slope",
]

LABELS = {
    "ladder": "ladder, fitted scales",
    "multilevel": "ladder, given kernel",
    "hilbert": "Hilbert, 5 x 5 cells",
    "julia": "Julia, c = -6",
}
"""What tables and records call a pattern, where that is not its own name."""

FORMS: dict[str, tuple[str, Callable[[], ContextAttention]]] = {
    "ladder, pooled": ("ladder", lambda: FractalAttention(source="pyramid")),
    "ladder, given kernel, 4 cells": ("multilevel", lambda: MultilevelAttention(cells=4)),
    "combined": ("", lambda: UltimateFractalPosteriorAffine(1, 1).attention),
}
"""Other forms of a pattern that are timed beside it: by name, the pattern and how it is made."""

COPY = "copy of all rows"
"""What the bandwidth of a machine is measured by."""

GATHER = "bare gather of its rows"
"""The floor under a reader; it follows the one that it belongs to."""

BOUNDS: dict[str, Callable[[Any, int], float]] = {
    "window": lambda attention, n: 2 * attention.tail,
    "multilevel": lambda attention, n: attention.error_bound(n),
}
"""For a pattern that stands in for dense attention, the proven limit of its error, over the largest
magnitude of the rows; rounding comes on top.
"""


def reference(rows: Tensor, t: Tensor) -> Tensor:
    """Float64 `DenseAttention`, a sample at a time, so that it needs no second context: (B, H)
    float64.
    """
    dense = DenseAttention()
    return torch.cat(
        [dense(row[None].double(), s[None])[:, 0] for row, s in zip(rows, t, strict=True)]
    )


def as_it_is(value: Any) -> Any:
    """What was given."""
    return value


class Method(NamedTuple):
    """One rival.

    Attributes:
        name: what the table calls it.
        reads: rows, or cells of pooled rows, that one query touches.
        keeps: bytes that ``build`` makes and that stay as long as the method.
        extra: bytes that a call needs while it runs.
        build: makes what ``call`` reads from the rows, once and outside the clock.
        call: ``call(build(rows), query)``, the thing that is timed.
        queries: one argument per call, used in turn.
        bound: a proven limit of the error for these rows, rounding included, or None.
        exact: the float64 result that errors are measured against, from the rows and a query.
        wrap: from ``call``, compiled or not, to what is timed; a gradient cannot be inside of what
            is compiled.
        base: the method whose eager time is the unit of speed-up.
        compiles: False to leave the compiled form out.
        relative: whether errors are shares of the largest exact value.
        distinct: of what it reads, how many are different, on average over the samples; None if
            all are.
        missing: why it cannot be run here, in one sentence, or "".
    """

    name: str
    reads: int
    keeps: int
    extra: int
    build: Callable[[Tensor], Any]
    call: Callable[[Any, Tensor], Tensor]
    queries: list[Tensor]
    bound: float | None = None
    exact: Callable[[Tensor, Tensor], Tensor] = reference
    wrap: Callable[[Callable], Callable] = as_it_is
    base: str = "dense bmm"
    compiles: bool = True
    relative: bool = False
    distinct: float | None = None
    missing: str = ""


def with_slope(call: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """The value and its derivative in t, by forward mode: (B, H) becomes (B, 2 H), slopes over n.

    >>> with_slope(dense_bmm)(torch.eye(3).unsqueeze(0), torch.tensor([[0.5]])).shape
    torch.Size([1, 6])
    """

    def both(rows: Any, t: Tensor) -> Tensor:
        n = rows.tree.n if hasattr(rows, "tree") else rows.shape[1]
        value, slope, *_ = torch.func.jvp(lambda s: call(rows, s), (t,), (torch.ones_like(t),))
        return torch.cat([value, slope / n], -1)

    return both


def reference_with_slope(rows: Tensor, t: Tensor) -> Tensor:
    """`reference` and its derivative in t, as `with_slope` has them: (B, 2 H) float64."""
    call = with_slope(lambda row, s: DenseAttention()(row, s)[:, 0])
    return torch.cat(
        [call(row[None].double(), s[None].double()) for row, s in zip(rows, t, strict=True)]
    )


def reference_extra(rows: Tensor) -> int:
    """Bytes that `reference` needs while it runs: two float64 copies of a sample, its weights."""
    return 16 * rows[0].numel() + 64 * rows.shape[1]


def num_reads(attention: ContextAttention, t: Tensor, n: int) -> int:
    """How many rows or nodes one query of a context of n rows touches.

    >>> num_reads(PATTERNS["ladder"](), torch.zeros(1, 1), 100)
    28
    """
    return attention.reads(t, n).indices.shape[-1]


def methods(
    rows: Tensor,
    queries: list[Tensor],
    only: Sequence[str] | None = None,
    slope: bool = False,
) -> Iterator[Method]:
    """The sketch, dense products, and every attention of `PATTERNS` and `FORMS`, for rows (B, n, H)
    and queries, each (B, 1); those of ``only`` alone; with ``slope`` their derivative in t too.
    """
    for method in _every(rows, queries):
        if only and method.name not in only:
            continue
        if not slope:
            yield method
        elif method.call not in NO_FORWARD_MODE:
            wrapped = {"call": with_slope(method.call), "exact": reference_with_slope}
            yield method._replace(**wrapped, bound=None, compiles=False)


def _every(rows: Tensor, queries: list[Tensor]) -> Iterator[Method]:
    batch, n, _ = rows.shape
    size = rows.numel() * rows.element_size()
    weights = 4 * batch * n * rows.element_size()

    yield Method("sketch, as written", n, 0, batch * (size + weights), as_it_is, sketch, queries)
    yield Method("sketch, shapes fixed", n, 0, size + weights, as_it_is, sketch_fixed, queries)
    yield Method("dense bmm", n, 0, weights, as_it_is, dense_bmm, queries)
    yield Method("SDPA with a bias", n, 0, weights, as_it_is, sdpa_with_bias, queries)
    yield Method(COPY, n, 2 * size, 0, _twice, _copied, queries, exact=_none, compiles=False)
    for name, make in PATTERNS.items():
        attention = _fitted(make(), n)
        yield _of(LABELS.get(name, name), name, attention, rows, queries)
        if isinstance(attention, FractalAttention):
            reads = num_reads(attention, queries[0], n)
            places = [_places(attention, t, n) for t in queries]
            yield Method(GATHER, reads, 0, 0, _flat, _gather, places, exact=_none)
    for label, (name, make) in FORMS.items():
        yield _of(label, name, _fitted(make(), n), rows, queries)


def _fitted(attention: ContextAttention, n: int) -> ContextAttention:
    if isinstance(attention, FractalAttention):
        attention.fit(OriginalKernel(), n)
    return attention


def _of(
    label: str, name: str, attention: ContextAttention, rows: Tensor, queries: list[Tensor]
) -> Method:
    """One attention of the library, by the name of its pattern, as a rival."""
    batch, n, _ = rows.shape
    size = rows.numel() * rows.element_size()
    attention.to(rows.device)
    reads, bound = num_reads(attention, queries[0], n), None
    if name in BOUNDS:
        # what the pattern leaves out, and rounding: a dot product of K terms errs by K eps / 2
        # (Higham 2002, chapter 3), casting its weights and its result by as much again each
        peak = max(row.abs().amax().item() for row in rows)
        rounding = (reads + 2) * torch.finfo(rows.dtype).eps / 2
        bound = (BOUNDS[name](attention, n) + rounding) * peak
    pooled = attention.tree(n).levels > 1
    return Method(
        label,
        reads,
        keeps=2 * size if pooled else 0,
        extra=64 * batch * reads,  # indices, weights and what leads to them, 8 bytes each
        build=attention.prepare if pooled else as_it_is,
        call=_one_query(attention),
        queries=queries,
        bound=bound,
        distinct=_distinct(attention, queries[0], n),
    )


def _distinct(attention: ContextAttention, t: Tensor, n: int) -> float:
    index = attention.reads(t, n).indices.flatten(1).sort(-1).values  # (B, K)
    return 1 + (index.diff(dim=-1) > 0).sum(-1).double().mean().item()


def _one_query(attention: ContextAttention) -> Callable[[Any, Tensor], Tensor]:
    return lambda rows, t: attention(rows, t)[:, 0]  # (B, 1, H) to (B, H)


def _none(rows: Tensor, query: Tensor) -> Tensor:
    """What a method that reads nothing is compared with."""
    return rows.new_empty(0)


def _twice(rows: Tensor) -> Tensor:
    return torch.stack([rows, rows])


def _copied(pair: Tensor, t: Tensor) -> Tensor:
    """What the machine moves at most: every byte is read once and written once."""
    return pair[1].copy_(pair[0])


def _flat(rows: Tensor) -> Tensor:
    return rows.flatten(0, 1)


def _places(attention: FractalAttention, t: Tensor, n: int) -> Tensor:
    """Where in (B n, H) the rows stand that are read for t (B, 1): (B K,) int64."""
    index = attention.reads(t, n).indices  # (B, 1, K)
    return (index + n * torch.arange(index.shape[0], device=t.device)[:, None, None]).flatten()


def _gather(flat: Tensor, places: Tensor) -> Tensor:
    """The floor under any reader of these rows: they are copied out, and nothing is summed."""
    return flat.index_select(0, places)


NO_FORWARD_MODE = (sdpa_with_bias, _gather, _copied)
