"""Which rows stand behind each cell of a pyramid, and where they are."""

import torch
from torch import Tensor


class Cells:
    """Which rows stand behind each readable cell: the geometry of a `Pyramid`, without its values.

    Cell j of level k holds the level-0 cells [j 2^k, (j+1) 2^k); level k follows level k - 1 in the
    packing. When every row is there, counts and centres follow from the numbers alone and nothing is
    stored.

    Attributes:
        n: number of cells of level 0 (the rows, or the bins of irregular times).
        levels: number of levels packed, at least 1.
        counts: None, or (B or 1, P) int32: how many observed rows stand behind each cell.
        centres: None, or (B or 1, P) float64: the mean position of those rows.
    """

    def __init__(self, n: int, levels: int, counts: Tensor | None = None, centres: Tensor | None = None):
        if n < 1 or levels < 1:
            raise ValueError(f"expected n >= 1 and levels >= 1, got n={n}, levels={levels}")
        self.n, self.levels, self.counts, self.centres = n, levels, counts, centres

    @property
    def sizes(self) -> list[int]:
        """Number of cells of each level."""
        return [-(-self.n // 2**k) for k in range(self.levels)]

    def look(self, level: Tensor | int, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Packed index and count of cells named by level and number.

        Args:
            level: int64 that broadcasts with ``cell``, or an int; each in [0, levels).
            cell: int64 (B, Q, K) or (B, M); may lie outside its level.

        Returns:
            index, int64, clamped into the level, and count, float64, 0 for a cell outside or empty;
            both of the shape of ``cell``.
        """
        stride, size, offset = self._table(level, cell.device)
        inside = (cell >= 0) & (cell < size)
        index = torch.minimum(cell.clamp(min=0), size - 1) + offset
        if self.counts is not None:
            return index, _take(self.counts, index).double() * inside
        if isinstance(level, int) and level == 0:
            return index, inside.double()
        left = torch.minimum(self.n - cell * stride, stride)  # the last cell of a level may not be full
        return index, left.double() * inside

    def centre(self, level: Tensor | int, cell: Tensor) -> Tensor:
        """Mean position of the observed rows of each cell, float64; for a cell outside, of the last inside."""
        stride, size, offset = self._table(level, cell.device)
        cell = torch.minimum(cell.clamp(min=0), size - 1)
        if self.centres is not None:
            return _take(self.centres, cell + offset)
        start = cell * stride
        return (start + (start + stride).clamp(max=self.n) - 1).double() / 2

    def _table(self, level: Tensor | int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Stride, number of cells and first packed index of each level named."""
        if self.levels == 1 or (isinstance(level, int) and level == 0):
            return tuple(torch.full((), value, device=device) for value in (1, self.n, 0))
        stride = strides(self.levels, device)
        size = (self.n + stride - 1) // stride
        return stride[level], size[level], (size.cumsum(0) - size)[level]


def strides(levels: int, device: torch.device | None = None) -> Tensor:
    """1, 2, 4, ... : the width of a cell of each level, by shifts (a power costs far more when compiled).

    >>> strides(4)
    tensor([1, 2, 4, 8])
    """
    return torch.ones((), dtype=torch.int64, device=device) << torch.arange(levels, device=device)


def _take(table: Tensor, index: Tensor) -> Tensor:
    batch = index.shape[0]
    return table.expand(batch, -1).gather(1, index.reshape(batch, -1)).view_as(index)


def all_levels(n: int) -> int:
    """Number of levels until one cell holds everything: ceil(log2 n) + 1.

    A loop of comparisons, so that a compiled graph is guarded on the number of levels and not on n.

    >>> [all_levels(n) for n in (1, 2, 3, 4, 5)]
    [1, 2, 3, 3, 4]
    """
    levels = 1
    while 2 ** (levels - 1) < n:
        levels += 1
    return levels
