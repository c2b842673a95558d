"""Which rows stand behind each node of a pyramid, and where they are."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fractal_lib.curves.splines import stencil

__all__ = ["Tree", "all_levels", "constant_result", "node_stencil", "strides"]

Function = TypeVar("Function", bound=Callable)


def constant_result(function: Function) -> Function:
    """As `torch.compiler.assume_constant_result`: numbers that follow from numbers, no part of a
    graph.

    That one imports the whole compiler, a second at every import of this library; what it does is
    to set this mark (a test compares).
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Tree:
    """Which rows stand behind each node: the geometry of a `Pyramid`, without its values.

    Node j of level k holds the level-0 nodes [j 2^k, (j+1) 2^k); level k follows level k - 1 in the
    packing. When every row is there, counts and centroids follow from the numbers alone and nothing
    is stored.

    Attributes:
        n: number of nodes of level 0 (the rows, or the bins of irregular times).
        levels: number of levels packed, at least 1.
        counts: None, or (B or 1, P) int32: how many observed rows stand behind each node.
        centroids: None, or (B or 1, P) float64: the mean position of those rows.
        places: "rows" where row j stands at j; "bins" where level 0 is bins of irregular times,
            each within 1/2 of its number; "free" where rows stand anywhere, in any order.
        most: the largest count of level 0, a number or (B or 1,): 1 unless there are bins.
        first: the first level-0 node with an observed row, a number or (B or 1,).
        capacity: number of level-0 nodes that the packing has room for: n, or more where the
            pyramid grows. Level k then has ceil(capacity / 2^k) slots, the last of them empty.
    """

    def __init__(
        self,
        n: int,
        levels: int,
        counts: Tensor | None = None,
        centroids: Tensor | None = None,
        *,
        places: str = "rows",
        most: Tensor | int = 1,
        first: Tensor | int = 0,
        capacity: int | None = None,
    ):
        if places not in ("rows", "bins", "free"):
            raise ValueError(f'places must be "rows", "bins" or "free", got {places!r}')
        if n < 1 or levels < 1:
            raise ValueError(f"expected n >= 1 and levels >= 1, got n={n}, levels={levels}")
        if capacity is not None and capacity < n:
            raise ValueError(f"expected a capacity of at least n={n}, got {capacity}")
        self.n, self.levels, self.counts, self.centroids = n, levels, counts, centroids
        self.places, self.most, self.first = places, most, first
        self.capacity, self._compact = capacity or n, capacity is None

    @property
    def sizes(self) -> list[int]:
        """Number of nodes of each level."""
        return [-(-self.n // 2**k) for k in range(self.levels)]

    @property
    def slots(self) -> list[int]:
        """Number of slots that each level has in the packing: `sizes`, or more."""
        return [-(-self.capacity // 2**k) for k in range(self.levels)]

    @property
    def offsets(self) -> list[int]:
        """Packed index of the first node of each level.

        >>> Tree(3, 3).offsets, Tree(3, 3, capacity=4).offsets
        ([0, 3, 5], [0, 4, 6])
        """
        slots = self.slots
        return [sum(slots[:k]) for k in range(self.levels)]

    @property
    def tables(self) -> tuple[Tensor, Tensor] | None:
        """Counts and centroids, or None."""
        if self.counts is None or self.centroids is None:
            return None
        return self.counts, self.centroids

    def __repr__(self) -> str:
        known = "complete" if self.counts is None else f"counts {tuple(self.counts.shape)}"
        room = "" if self._compact else f", capacity={self.capacity}"
        return f"Tree(n={self.n}, levels={self.levels}, {known}{room})"

    def to(self, device: torch.device | str) -> "Tree":
        """The same on another device."""
        if self.tables is None:
            return self
        most, first = (
            number.to(device) if isinstance(number, Tensor) else number
            for number in (self.most, self.first)
        )
        tables = (table.to(device) for table in self.tables)
        return Tree(
            *(self.n, self.levels, *tables),
            places=self.places,
            most=most,
            first=first,
            capacity=None if self._compact else self.capacity,
        )

    def lookup(self, level: Tensor | int, node: Tensor) -> tuple[Tensor, Tensor]:
        """Packed index and count of nodes named by level and number.

        Args:
            level: int64 that broadcasts with ``node``, or an int; each in [0, levels).
            node: int64 (B, Q, K) or (B, M); may lie outside its level.

        Returns:
            index, int64, clamped into the level, and count, float64, 0 for a node outside or empty;
            both of the shape of ``node``.
        """
        stride, size, offset = self._table(level, node.device)
        inside = (node >= 0) & (node < size)
        index = torch.minimum(node.clamp(min=0), size - 1) + offset
        if self.counts is not None:
            return index, _take(self.counts, index).double() * inside
        if isinstance(level, int) and level == 0:
            return index, inside.double()
        left = torch.minimum(self.n - node * stride, stride)  # a level's last node may not be full
        return index, left.double() * inside

    def centroid(self, level: Tensor | int, node: Tensor) -> Tensor:
        """Mean position of each node's observed rows, float64; outside, that of the last inside."""
        stride, size, offset = self._table(level, node.device)
        node = torch.minimum(node.clamp(min=0), size - 1)
        if self.centroids is not None:
            return _take(self.centroids, node + offset)
        start = node * stride
        return (start + (start + stride).clamp(max=self.n) - 1).double() / 2

    def span(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The level-0 nodes [first, last) behind each packed index: int64, of its shape.

        >>> Tree(3, 3).span(torch.tensor([2, 3, 5]))
        (tensor([2, 0, 0]), tensor([3, 2, 3]))
        """
        slots = torch.tensor(self.slots, device=index.device)
        end = slots.cumsum(0)
        index = index % end[-1]  # first moments are packed behind the means
        level = torch.searchsorted(end, index, right=True)
        first = (index - (end - slots)[level]) << level
        return first, (first + (1 << level)).clamp(max=self.n)

    def _table(self, level: Tensor | int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Stride, number of nodes and first packed index of each level named."""
        if self.levels == 1 or (isinstance(level, int) and level == 0):
            stride, size, offset = (torch.full((), v, device=device) for v in (1, self.n, 0))
            return stride, size, offset
        stride = strides(self.levels, device)
        size = (self.n + stride - 1) // stride
        slots = size if self._compact else (self.capacity + stride - 1) // stride
        return stride[level], size[level], (slots.cumsum(0) - slots)[level]


def strides(levels: int, device: torch.device | None = None) -> Tensor:
    """1, 2, 4, ...: the width of a node of each level, by shifts (a compiled power costs far more).

    >>> strides(4)
    tensor([1, 2, 4, 8])
    """
    return torch.ones((), dtype=torch.int64, device=device) << torch.arange(levels, device=device)


def node_stencil(
    x: Tensor, stride: Tensor, *, causal: bool = False, lag: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The four nodes of each level around x; causal, the last four whose rows are all at or before
    x.

    Around x, a node stands at its middle. Causal, it stands at its last row, and the four nodes are
    moved back by two strides: the weight of the B-spline is then 0 until a node has ended, and
    grows from there as a cube, C^2.

    Args:
        x: (..., ) float64 positions in rows, at least 0.
        stride: (L,) int64, the widths 2^k of the nodes.
        causal: whether nodes that have not ended are left out.
        lag: how long after the position of its last level-0 node a node has ended, causal alone: 0
            for rows, 1/2 for bins, which reach so far past their number.

    Returns:
        node: (..., L, 4) int64. Some may lie outside [0, ceil(n / 2^k)), to be weighed with 0;
            causal, only below it.
        fraction: (..., L), for `bspline_weights`.

    >>> node, fraction = node_stencil(torch.tensor(9.5).double(), strides(3), causal=True)
    >>> node  # rows 6 to 9, the pairs up to (8, 9), the fours up to (4, 5, 6, 7)
    tensor([[ 6,  7,  8,  9],
            [ 1,  2,  3,  4],
            [-2, -1,  0,  1]])
    """
    x = x.unsqueeze(-1)
    if not causal:  # node j of level k has its middle at (j + 1/2) 2^k - 1/2
        return stencil(x + (1 - stride) / 2.0, stride)
    # the shift is taken off whole numbers: a node just ahead must not come in by rounding
    node, fraction = stencil(x - lag - (stride - 1), stride)
    return node - 2, fraction


def _take(table: Tensor, index: Tensor) -> Tensor:
    batch = index.shape[0]
    return table.expand(batch, -1).gather(1, index.reshape(batch, -1)).view_as(index)


def all_levels(n: int) -> int:
    """Number of levels until one node holds everything: ceil(log2 n) + 1.

    A loop of comparisons, so that a compiled graph is guarded on the number of levels and not on n.

    >>> [all_levels(n) for n in (1, 2, 3, 4, 5)]
    [1, 2, 3, 3, 4]
    """
    levels = 1
    while 2 ** (levels - 1) < n:
        levels += 1
    return levels
