"""Where to read, and the one reader: every attention over a context is these two."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.tree import Tree
from fractal_lib.checks import as_float, as_int, require

__all__ = ["PATTERNS", "ContextAttention", "Reads", "pattern", "position", "read"]

ULP = 2.0**-23  # how far outside [0, 1] a float32 t may be and still be rounding


@dataclass(frozen=True)
class Reads:
    """Where to read and how much.

    Attributes:
        indices: (B, Q, K) int64, rows to read, each in [0, N).
        weights: (B, Q, K) float64; the weights of a query sum to 1 unless the pattern is signed.
    """

    indices: Tensor
    weights: Tensor


def read(values: Tensor, reads: Reads) -> Tensor:
    """Gather rows and sum them with weights: the only place where a context is read.

    Args:
        values: (B, N, H), floating point, strided as it may be; it is not copied.
        reads: `Reads` with the same B.

    Returns:
        (B, Q, H) in the dtype of ``values``. Half precisions are summed in float32, and autocast
        is switched off: positions and weights do not survive in half precision.

    Raises:
        TypeError: if ``values`` is not floating point.
        ValueError: if shapes do not fit, or (eager mode) if the result is not finite, because a row
            that was read is not, or because no observed row lies within reach.

    Complexity: O(K H) per query, whatever N is. Forward AD, double backward, vmap and
    ``torch.compile(fullgraph=True)`` all pass through it. Source: chapter ``start/exact_window``.

    >>> values = torch.tensor([[[1.0], [2.0], [4.0]]])
    >>> read(values, Reads(torch.tensor([[[0, 2]]]), torch.tensor([[[0.5, 0.5]]])))
    tensor([[[2.5000]]])
    """
    values = as_float(values, "values")
    if values.dim() != 3 or reads.indices.dim() != 3 or values.shape[0] != reads.indices.shape[0]:
        raise ValueError(
            "expected values (B, N, H) and reads (B, Q, K) of one B, "
            f"got {tuple(values.shape)} and {tuple(reads.indices.shape)}"
        )
    picked = _stored(_pick(values, _stored(reads.indices)))  # (B, Q, K, H)
    return combine(reads.weights.unsqueeze(-2), picked).squeeze(-2)


def combine(weights: Tensor, values: Tensor) -> Tensor:
    """``weights @ values`` in the values' dtype, half precisions summed in float32; finite, or an
    error.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    with no_autocast(values.device):
        out = _product(_stored(weights.to(dtype)), values.to(dtype)).to(values.dtype)
    require(
        lambda: out.isfinite().all(),
        "the result is not finite: a row that was read is NaN or infinite (mark missing rows with "
        "`observed`), or no observed row lies within reach of t",
    )
    return out


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast off, where it is on."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _product(weight: Tensor, values: Tensor) -> Tensor:
    """``weight @ values``; in a compiled graph, one row of weights as the sum the compiler makes of
    it.

    The derivative of ``@`` keeps the absent tangent of ``values`` as a tensor without storage, and
    a compiled kernel reads it: a crash in the gradient of the weights (PyTorch issue 177261).
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


def _pick(values: Tensor, indices: Tensor) -> Tensor:
    """values[b, indices[b]]; for rows that lie one after another, by the much faster index_select."""
    batch = torch.arange(values.shape[0], device=values.device)[:, None, None]
    if values.stride(0) != values.shape[1] * values.stride(1):  # flattening would copy them all
        return values[batch, indices]
    flat = (indices + batch * values.shape[1]).flatten()
    return values.flatten(0, 1).index_select(0, flat).unflatten(0, indices.shape)


def position(t: Tensor, n: int) -> Tensor:
    """Where t falls among n rows: x = t (n - 1), in float64 whatever the dtype of t.

    Args:
        t: (B, Q), floating point, in [0, 1]. Outside by one unit in the last place of float32 is
            rounding, and taken as the end.
        n: number of rows.

    Raises:
        TypeError: if t is not floating point. ValueError: if it is not (B, Q), or (eager mode) if a
            value lies outside [0, 1] or is NaN.

    >>> position(torch.tensor([[0.0, 0.5, 1.0]]), n=5)
    tensor([[0., 2., 4.]], dtype=torch.float64)
    """
    t = as_float(t, "t")
    if t.dim() != 2:
        raise ValueError(f"t must have shape (B, Q), got {tuple(t.shape)}")
    require(
        lambda: ((t >= -ULP) & (t <= 1 + ULP)).all(),
        "t must lie in [0, 1], got {0[0]} to {0[1]}: divide by the duration",
        lambda: (t.min().item(), t.max().item()),
    )
    t = t.double()
    return (t + (t.clamp(0, 1) - t).detach()) * (n - 1)  # the slope in t stays 1 at the ends


def normalise(log_weights: Tensor, factor: Tensor) -> Tensor:
    """``factor * exp(log_weights)``, scaled to sum 1 over the last axis, without under- or
    overflow.

    Entries of factor 0 take no part. (B, Q, K) both; a query whose factors are all 0 becomes NaN.
    """
    log_weights = log_weights.masked_fill(factor == 0, -torch.inf)
    top = log_weights.detach().amax(-1, keepdim=True)
    return average(factor * (log_weights - top).exp())


def average(weights: Tensor) -> Tensor:
    """(B, Q, K) scaled to sum 1 over the last axis; NaN for a query whose weights are all 0."""
    return weights / weights.sum(-1, keepdim=True)


class ContextAttention(nn.Module):
    """Base of every attention over a context: a subclass says where to read, `read` reads.

    A subclass defines ``pattern(t, tree) -> Reads``, and ``tree(n)`` and ``prepare`` too if it
    reads pooled rows. `pattern`, the decorator, enters it in `PATTERNS`.

    Attributes:
        kind: "mean" if the weights of a query are not negative and sum to 1; "contrast" if they
            sum to 0; "moments" if signed first moments are added to a mean.
        smooth: whether the result is C^2 in t.
        reach: "all" if any row of a context may be found, else "near": a gap may then be out of
            reach.
        takes_times: whether rows may stand at any times.
    """

    kind: str = "mean"
    smooth: ClassVar[bool] = True
    reach: str = "all"
    takes_times: bool = False
    name: ClassVar[str] = ""
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def make(cls, example: str = "") -> ContextAttention:
        """One of the attention's ``examples``, newly made."""
        made = {
            key: part() if callable(part) else part for key, part in cls.examples[example].items()
        }
        return cls(**made)

    def tree(self, n: int) -> Tree:
        """The `Tree` of a complete context of n rows, with the levels that this attention reads."""
        return Tree(n, 1)

    def prepare(self, values: Tensor, observed: Any = None, times: Any = None) -> Pyramid:
        """The context this attention reads, made once; pass it instead of ``values`` to many calls."""
        if times is not None:
            raise ValueError(
                f"{type(self).__name__} counts on even spacing: bin first, "
                "Pyramid(values, times=times)"
            )
        return Pyramid(values, observed, levels=1)

    def reads(self, t: Tensor, n: int | Tree) -> Reads:
        """Where to read for t (B, Q) in a context of n rows, or of a `Tree`."""
        tree = n if isinstance(n, Tree) else self.tree(as_int(n, "n", least=1))
        return self.pattern(as_float(t, "t"), tree)

    def pattern(self, t: Tensor, tree: Tree) -> Reads:
        """Where to read for t (B, Q): what a subclass defines."""
        raise NotImplementedError(f"{type(self).__name__} must define pattern(t, tree)")

    read = staticmethod(read)

    def forward(
        self, values: Tensor | Pyramid, t: Tensor, observed: Any = None, times: Any = None
    ) -> Tensor:
        """Read the context at t.

        Args:
            values: (B, N, H) floating point, or what `prepare` made of it.
            t: (B, Q) in [0, 1], or one number for all samples; row j of n sits at j / (n - 1).
            observed: (N,) or (B, N) bool, True where a row is there; the value of another is
                ignored.
            times: (N,) or (B, N) in [0, 1], for rows that are not evenly spaced.

        Tensors, numpy arrays and lists are taken alike.

        Returns:
            (B, Q, H) in the dtype of the values.

        Raises:
            ValueError, TypeError: as `read`, `Pyramid` and the attention's own ``pattern`` say.
        """
        if isinstance(values, Pyramid):
            if observed is not None or times is not None:
                raise ValueError("a prepared context already holds its observed rows and times")
            context = values
        else:
            context = self.prepare(values, observed, times)
        batch, device = context.values.shape[0], context.values.device
        t = as_float(t, "t")
        t = t.to(device).expand(batch, 1) if t.dim() == 0 else t
        if t.dim() == 2 and t.shape[0] != batch:
            raise ValueError(f"values have batch {batch} but t has shape {tuple(t.shape)}")
        return self.read(context.values, self.reads(t, context.tree))


PATTERNS: dict[str, type[ContextAttention]] = {}
"""Every attention of the library by name, in the order of the book: tests, benchmarks and pages
follow it.
"""

Attention = TypeVar("Attention", bound=type[ContextAttention])


def pattern(
    name: str, kind: str = "mean", **examples: Mapping[str, Any]
) -> Callable[[Attention], Attention]:
    """Enter an attention in `PATTERNS`: the one list that tests, benchmarks, heads and masks go
    through.

    Args:
        name: what tables call it.
        kind: see `ContextAttention`.
        examples: settings that tests must hold too, by a word; a callable is called for a new
            argument.

    >>> sorted(PATTERNS)
    ['dense', 'dragon', 'hilbert', 'julia', 'ladder', 'multilevel', 'window']
    """

    def enter(attention: Attention) -> Attention:
        if name in PATTERNS and PATTERNS[name].__qualname__ != attention.__qualname__:
            raise ValueError(f"there is a pattern {name!r} already: {PATTERNS[name].__name__}")
        attention.name, attention.kind = name, kind
        attention.examples = {"": {}, **{word.replace("_", " "): s for word, s in examples.items()}}
        PATTERNS[name] = attention
        return attention

    return enter
