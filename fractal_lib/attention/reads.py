"""Where to read, and the one reader: every attention in this library is these two."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fractal_lib.attention.cells import Cells
from fractal_lib.attention.checks import require
from fractal_lib.attention.pyramid import Pyramid


class Reads(NamedTuple):
    """Where to read and how much.

    Attributes:
        index: (B, Q, K) int64, rows to read, each in [0, N).
        weight: (B, Q, K) float64; the weights of a query sum to 1 unless the pattern is signed.
    """

    index: Tensor
    weight: Tensor


def read(rows: Tensor, reads: Reads) -> Tensor:
    """Gather rows and sum them with weights: the only place where a context is read.

    Args:
        rows: (B, N, H), floating point, strided as it may be; it is not copied.
        reads: `Reads` with the same B.

    Returns:
        (B, Q, H) in the dtype of ``rows``. Half precisions are summed in float32.

    Raises:
        TypeError: if ``rows`` is not floating point.
        ValueError: if shapes do not fit, or (eager mode) if the result is NaN, because a row that
            was read is NaN or because no observed row lies within reach.

    Complexity: O(K H) per query, whatever N is. Forward AD, double backward, vmap and
    ``torch.compile(fullgraph=True)`` all pass through it. Source: chapter ``start/exact_window``.

    >>> rows = torch.tensor([[[1.0], [2.0], [4.0]]])
    >>> read(rows, Reads(torch.tensor([[[0, 2]]]), torch.tensor([[[0.5, 0.5]]])))
    tensor([[[2.5000]]])
    """
    if rows.dim() != 3 or reads.index.dim() != 3 or rows.shape[0] != reads.index.shape[0]:
        raise ValueError(
            "expected rows (B, N, H) and reads (B, Q, K) of one B, "
            f"got {tuple(rows.shape)} and {tuple(reads.index.shape)}"
        )
    if not rows.is_floating_point():
        raise TypeError(f"rows must be floating point, got {rows.dtype}")
    picked = _stored(_pick(rows, _stored(reads.index)))  # (B, Q, K, H)
    return combine(reads.weight.unsqueeze(-2), picked).squeeze(-2)


def combine(weight: Tensor, values: Tensor) -> Tensor:
    """``weight @ values`` in the dtype of the values, half precisions summed in float32; no NaN passes."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    out = _product(_stored(weight.to(dtype)), values.to(dtype)).to(values.dtype)
    require(
        lambda: ~out.isnan().any(),
        "the result is NaN: a row that was read is NaN (mark missing rows with `observed`), "
        "or no observed row lies within reach of t",
    )
    return out


def _product(weight: Tensor, values: Tensor) -> Tensor:
    """``weight @ values``; in a compiled graph, one row of weights as the sum the compiler makes of it.

    The derivative of ``@`` keeps the absent tangent of ``values`` as a tensor without storage, and a
    compiled kernel reads it: a crash in the gradient of the weights (PyTorch issue 177261).
    """
    if torch.compiler.is_compiling() and weight.shape[-2] == 1:
        return (weight.mT * values).sum(-2, keepdim=True)
    return weight @ values


def _stored(x: Tensor) -> Tensor:
    """X; in a compiled graph, x in memory.

    A compiler fuses what it can, and would work an index or a weight out anew for each of the H
    numbers it serves, which is far slower than the read itself. A strided view needs storage.
    """
    return x.as_strided(x.shape, x.stride()) if torch.compiler.is_compiling() else x


def _pick(rows: Tensor, index: Tensor) -> Tensor:
    """rows[b, index[b]]; for rows that lie one after another, the same by the much faster index_select."""
    batch = torch.arange(rows.shape[0], device=rows.device)[:, None, None]
    if rows.stride(0) != rows.shape[1] * rows.stride(1):  # flattening would copy them all
        return rows[batch, index]
    flat = (index + batch * rows.shape[1]).flatten()
    return rows.flatten(0, 1).index_select(0, flat).unflatten(0, index.shape)


def position(t: Tensor, n: int) -> Tensor:
    """Where t falls among n rows: x = t (n - 1), in float64 whatever the dtype of t.

    Args:
        t: (B, Q), floating point, in [0, 1].
        n: number of rows.

    Raises:
        TypeError: if t is not floating point. ValueError: if it is not (B, Q), or (eager mode) if a
            value lies outside [0, 1] or is NaN.

    >>> position(torch.tensor([[0.0, 0.5, 1.0]]), n=5)
    tensor([[0., 2., 4.]], dtype=torch.float64)
    """
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise TypeError(f"t must be a floating point tensor, got {t.dtype if isinstance(t, Tensor) else type(t)}")
    if t.dim() != 2:
        raise ValueError(f"t must have shape (B, Q), got {tuple(t.shape)}")
    require(
        lambda: ((t >= 0) & (t <= 1)).all(), "t must lie in [0, 1], got {}", lambda: (t.min().item(), t.max().item())
    )
    return t.double() * (n - 1)


def normalise(log_weight: Tensor, factor: Tensor) -> Tensor:
    """``factor * exp(log_weight)``, scaled to sum 1 over the last axis without under- or overflow.

    Entries of factor 0 take no part. (B, Q, K) both; a query whose factors are all 0 becomes NaN.
    """
    log_weight = log_weight.masked_fill(factor == 0, -torch.inf)
    return average(factor * (log_weight - log_weight.detach().amax(-1, keepdim=True)).exp())


def average(weight: Tensor) -> Tensor:
    """Weights (B, Q, K) scaled to sum 1 over the last axis; NaN for a query whose weights are all 0."""
    return weight / weight.sum(-1, keepdim=True)


class ContextAttention(nn.Module):
    """Base of every attention over a context: a subclass says where to read, `read` reads.

    A subclass defines ``reads(t, n) -> Reads``, where n is the number of rows or the `Cells` of a
    context with gaps, and may define ``prepare`` if it reads pooled rows.
    """

    def prepare(self, rows: Tensor, observed: Tensor | None = None, times: Tensor | None = None) -> Pyramid:
        """The context this attention reads, made once; pass it instead of ``rows`` to many calls."""
        if times is not None:
            raise ValueError(f"{type(self).__name__} counts on even spacing: bin first, Pyramid(rows, times=times)")
        return Pyramid(rows, observed, levels=1)

    def reads(self, t: Tensor, n: int | Cells) -> Reads:
        """Where to read for t (B, Q) in a context of n rows, or of `Cells`."""
        raise NotImplementedError

    read = staticmethod(read)

    def forward(
        self, rows: Tensor | Pyramid, t: Tensor, observed: Tensor | None = None, times: Tensor | None = None
    ) -> Tensor:
        """Read the context at t.

        Args:
            rows: (B, N, H) floating point, or what `prepare` made of it.
            t: (B, Q) in [0, 1]; row j of n sits at j / (n - 1).
            observed: (N,) or (B, N) bool, False where a row is missing (its value is ignored).
            times: (N,) or (B, N) in [0, 1], for rows that are not evenly spaced.

        Returns:
            (B, Q, H) in the dtype of the rows.

        Raises:
            ValueError, TypeError: as `read`, `Pyramid` and the attention's own ``reads`` say.
        """
        if isinstance(rows, Pyramid) and (observed is not None or times is not None):
            raise ValueError("a prepared context already holds its observed rows and times")
        context = rows if isinstance(rows, Pyramid) else self.prepare(rows, observed, times)
        if t.dim() == 2 and t.shape[0] != context.rows.shape[0]:
            raise ValueError(f"rows have batch {context.rows.shape[0]} but t has shape {tuple(t.shape)}")
        return self.read(context.rows, self.reads(t, context.cells))
