"""Where to read, and the one reader: every attention over a context is these two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.reader import Reads, combine, no_autocast, read
from fractal_lib.attention.tree import Tree
from fractal_lib.checks import as_float, as_int, require

__all__ = [
    "PATTERNS",
    "ContextAttention",
    "Reads",
    "average",
    "combine",
    "no_autocast",
    "normalise",
    "pattern",
    "position",
    "read",
]

ROUNDING = 1e-30  # what a row gets by the rounding of a position: a cube of 1e-12 at most
ULP = 2.0**-23  # how far outside [0, 1] a float32 t may be and still be rounding


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
    reads pooled rows; ``reset_parameters`` if it has any. `pattern`, the decorator, enters it in
    `PATTERNS`.

    ``torch.compile(fullgraph=True, dynamic=True)``, ``torch.func`` and ``torch.export`` take every
    attention. A graph serves all n that have as many levels. Exported with a free n, that range
    must be named, ``Dim("n", min=65, max=127)`` say; those that read pooled rows are exported for
    one n, since which nodes are full depends on every bit of it.

    Attributes:
        kind: "mean" if the weights of a query are not negative and sum to 1; "contrast" if they
            sum to 0; "moments" if signed first moments are added to a mean.
        smooth: whether the result is C^2 in t.
        reach: "all" if any row of a context may be found, else "near": a gap may then be out of
            reach.
        causal: whether no row after t is read, nor does such a row change what is.
        takes_times: whether rows may stand at any times.
        takes_free_times: whether they may be prepared without bins, each at its own time.
    """

    kind: str = "mean"
    smooth: ClassVar[bool] = True
    reach: str = "all"
    causal: bool = False
    takes_times: bool = False
    takes_free_times: ClassVar[bool] = False
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
        """The context this attention reads, made once, to be passed instead of ``values``."""
        if times is not None:
            raise ValueError(
                f"{type(self).__name__} counts on even spacing: bin first, "
                "Pyramid(values, times=times)"
            )
        return Pyramid(values, observed, levels=1)

    def reads(self, t: Tensor, n: int | Tree) -> Reads:
        """Where to read for t (B, Q) in a context of n rows, or of a `Tree`."""
        tree = n if isinstance(n, Tree) else self.tree(as_int(n, "n", least=1))
        if tree.places == "free" and not self.takes_free_times:
            raise ValueError(
                f"{type(self).__name__} reads rows in their order: give the pyramid bins, "
                "Pyramid(values, times=times, bins=...)"
            )
        return self.pattern(as_float(t, "t"), tree)

    @torch.no_grad()
    def mask(self, n: int, device: torch.device | str | None = None) -> Tensor:
        """Which rows each row reads: the pattern as a mask of self-attention over n rows.

        Args:
            n: number of rows, at least 1.
            device: of the result; default that of the attention's own tensors.

        Returns:
            (n, n) bool: [i, j] is True where a query at t = i / (n - 1) reads row j with a weight
            above 1e-30, by itself or in a pooled node (0 but for rounding of its position).

        Complexity: O(n^2) flags, n queries' reads.

        >>> ContextAttention.mask(PATTERNS["dense"](), 2)
        tensor([[True, True],
                [True, True]])
        """
        n = as_int(n, "n", least=1)
        if device is None:
            tensors = [*self.parameters(), *self.buffers()]
            device = tensors[0].device if tensors else torch.get_default_device()
        tree = self.tree(n)
        t = torch.linspace(0, 1, n, dtype=torch.float64, device=device)
        # an end is where a run of rows that are read begins (+1) or is over (-1)
        ends = torch.zeros(n, n + 1, dtype=torch.int32, device=device)
        for some in torch.arange(n, device=device).split(max(1, 2**16 // n)):
            reads = self.reads(t[some].unsqueeze(0), tree)
            first, last = tree.span(reads.indices[0])  # (Q, K)
            used = (reads.weights[0].abs() > ROUNDING).int()
            ends[some] = ends[some].scatter_add(1, first, used).scatter_add(1, last, -used)
        return ends.cumsum(1)[:, :n] > 0

    def mask_mod(
        self, n: int, device: torch.device | str | None = None
    ) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
        """`mask` as FlexAttention's ``mask_mod(b, h, q, kv)``, the same for every sample and head.

        >>> mask_mod = PATTERNS["window"]().mask_mod(100)
        >>> [kv for kv in range(100) if mask_mod(0, 0, torch.tensor(40), torch.tensor(kv))]
        [35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45]
        """
        table = self.mask(n, device)
        return lambda b, h, q, kv: table[q, kv]

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

    >>> list(PATTERNS)[:3]
    ['dense', 'window', 'ladder']
    """

    def enter(attention: Attention) -> Attention:
        if name in PATTERNS and PATTERNS[name].__qualname__ != attention.__qualname__:
            raise ValueError(f"there is a pattern {name!r} already: {PATTERNS[name].__name__}")
        attention.name, attention.kind = name, kind
        attention.examples = {"": {}, **{word.replace("_", " "): s for word, s in examples.items()}}
        PATTERNS[name] = attention
        return attention

    return enter
