"""Which rows stand behind each node of a pyramid, and where they are."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Tree", "all_levels", "constant_result", "strides"]

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
    ):
        if places not in ("rows", "bins", "free"):
            raise ValueError(f'places must be "rows", "bins" or "free", got {places!r}')
        if n < 1 or levels < 1:
            raise ValueError(f"expected n >= 1 and levels >= 1, got n={n}, levels={levels}")
        self.n, self.levels, self.counts, self.centroids = n, levels, counts, centroids
        self.places, self.most = places, most

    @property
    def sizes(self) -> list[int]:
        """Number of nodes of each level."""
        return [-(-self.n // 2**k) for k in range(self.levels)]

    def __repr__(self) -> str:
        known = "complete" if self.counts is None else f"counts {tuple(self.counts.shape)}"
        return f"Tree(n={self.n}, levels={self.levels}, {known})"

    def to(self, device: torch.device | str) -> "Tree":
        """The same on another device."""
        if self.counts is None or self.centroids is None:
            return self
        most = self.most.to(device) if isinstance(self.most, Tensor) else self.most
        tables = self.counts.to(device), self.centroids.to(device)
        return Tree(self.n, self.levels, *tables, places=self.places, most=most)

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
        size = torch.tensor(self.sizes, device=index.device)
        end = size.cumsum(0)
        index = index % end[-1]  # first moments are packed behind the means
        level = torch.searchsorted(end, index, right=True)
        first = (index - (end - size)[level]) << level
        return first, (first + (1 << level)).clamp(max=self.n)

    def _table(self, level: Tensor | int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Stride, number of nodes and first packed index of each level named."""
        if self.levels == 1 or (isinstance(level, int) and level == 0):
            stride, size, offset = (torch.full((), v, device=device) for v in (1, self.n, 0))
            return stride, size, offset
        stride = strides(self.levels, device)
        size = (self.n + stride - 1) // stride
        return stride[level], size[level], (size.cumsum(0) - size)[level]


def strides(levels: int, device: torch.device | None = None) -> Tensor:
    """1, 2, 4, ...: the width of a node of each level, by shifts (a compiled power costs far more).

    >>> strides(4)
    tensor([1, 2, 4, 8])
    """
    return torch.ones((), dtype=torch.int64, device=device) << torch.arange(levels, device=device)


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
