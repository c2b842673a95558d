"""A window in the plane around a query that walks along the Hilbert curve (chapter
``gallery/hilbert``).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fractal_lib.attention.base import (
    ContextAttention,
    Reads,
    average,
    normalise,
    pattern,
    position,
)
from fractal_lib.attention.tree import Tree
from fractal_lib.checks import as_int, kept
from fractal_lib.curves.grid import inverse_permutation
from fractal_lib.curves.hilbert import (
    decode_by,
    encode_by,
    lookup_tables,
    spline_path,
    touching_permutation,
)
from fractal_lib.curves.splines import bspline

__all__ = ["HilbertCurveAttention"]

BITS = 4  # levels of the curve in one look: tables of 4 KiB, and three looks for a million rows


@pattern("hilbert", decay={"window_size": 3, "decay": True})
class HilbertCurveAttention(ContextAttention):
    """Lay the rows along a Hilbert curve and read the cells around the query's place in the plane.

    The query at (x, y) walks the cubic B-spline of the cells of its four nearest rows. A cell (i,
    j) of the ``window_size`` by ``window_size`` around it weighs beta((x - i) / w) beta((y - j) /
    w), beta the cubic B-spline, w = `lengthscale`: 0, with two derivatives, where a cell enters or
    leaves, so the result is C^2 in t. Cells without a row weigh 0.

    Args:
        window_size: cells on a side of the window; odd, at least 3.
        grid: None for a series, laid along the curve of the smallest order p with 4**p >= n. Or
            (height, width) of a picture of n = height * width rows in `touching_permutation`:
            ``flatten(picture, attention.permutation)``.
        decay: True also multiplies the weights by (1 + d^2)^(-a / 2), d the distance in rows, a =
            `exponent`.

    Attributes:
        raw_lengthscale: (1,) float32 parameter, from which the `lengthscale` follows.
        raw_exponent: (1,) float32 parameter, from which the `exponent` follows; None without decay.
        permutation: (height * width,) int64 buffer: the flat index of each row's cell. Only with a
            grid.

    Takes ``observed``: a hole larger than the window is an error. Complexity: window_size**2 reads
    of H numbers per query, whatever n is. Source: Hilbert (1891) for the curve; chapter
    ``gallery/hilbert``.

    Raises:
        ValueError: for a window that is even or less than 3, a grid without cells, or (when called)
            rows that are not as many as the grid has cells.

    >>> attention = HilbertCurveAttention()
    >>> attention(torch.randn(8, 1000, 2), torch.rand(8, 3)).shape
    torch.Size([8, 3, 2])
    >>> attention.reads(torch.tensor([[0.3]]), 10**6).indices.shape
    torch.Size([1, 1, 25])
    """

    reach = "near"
    permutation: Tensor
    _encode: Tensor
    _decode: Tensor
    _place: Tensor

    def __init__(
        self,
        window_size: int = 5,
        *,
        grid: tuple[int, int] | None = None,
        decay: bool = False,
    ):
        super().__init__()
        window_size = as_int(window_size, "window_size")
        if window_size < 3 or window_size % 2 == 0:
            raise ValueError(f"window_size must be odd and at least 3, got {window_size}")
        self.window_size, self.grid = window_size, None if grid is None else _checked(grid)
        self.raw_lengthscale = nn.Parameter(torch.empty(1))
        self.raw_exponent = nn.Parameter(torch.empty(1)) if decay else None
        self.reset_parameters()
        for name, table in _tables(self.grid).items():
            self.register_buffer(name, table.to(torch.get_default_device()), persistent=False)

    def reset_parameters(self) -> None:
        """A length scale 2/3 of the way from the least to the largest, and an exponent of 1."""
        nn.init.constant_(self.raw_lengthscale, math.log(2))  # sigmoid(log 2) = 2/3
        if self.raw_exponent is not None:
            nn.init.constant_(self.raw_exponent, math.log(math.e - 1))  # softplus of it is 1

    def _apply(self, fn, recurse=True):
        """As of every module; tables that a move lost, as ``to_empty`` does, are made anew."""
        super()._apply(fn, recurse)
        for name, table in _tables(self.grid).items():
            setattr(self, name, table.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        """The window and what it slides over."""
        decay = self.raw_exponent is not None
        return f"window_size={self.window_size}, grid={self.grid}, decay={decay}"

    @property
    def lengthscale(self) -> Tensor:
        """(1,) float64 in [1/2, window_size / 4], in cells: within reach of a row, and never beyond
        the window.
        """
        # The query is at most 1/2 from the middle of the window, so what is left out is window_size
        # / 2 = 2 w away.
        return 0.5 + (self.window_size / 4 - 0.5) * self.raw_lengthscale.double().sigmoid()

    @property
    def exponent(self) -> Tensor | None:
        """(1,) float64, positive: how fast weights fall with the distance in time; None without
        decay.
        """
        return None if self.raw_exponent is None else softplus(self.raw_exponent.double())

    def path(self, t: Tensor, n: int) -> Tensor:
        """Where t (B, Q) is in the plane of n rows: (B, Q, 2) float64, x and y in cells."""
        if self.grid is not None and n != len(self.permutation):
            height, width = self.grid
            raise ValueError(f"a grid of {height} x {width} has {height * width} rows, got {n}")
        return spline_path(position(t, n), n, lambda row: self._cell(row, n))

    def _cell(self, row: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """x and y of each of n rows."""
        if self.grid is None:
            return decode_by(self._decode, row, _curve_order(n))
        flat = self.permutation[row]
        return flat % self.grid[1], flat // self.grid[1]

    def _row(self, x: Tensor, y: Tensor, n: int) -> Tensor:
        """The row of each cell, of n rows: n for a cell off the grid, n or more for one without a
        row.
        """
        order = _curve_order(n)
        height, width = (2**order, 2**order) if self.grid is None else self.grid
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
        row = (
            encode_by(self._encode, x, y, order)
            if self.grid is None
            else self._place[y * width + x]
        )
        return torch.where(inside, row, n)

    def pattern(self, t: Tensor, tree: Tree) -> Reads:
        """The window's rows for t (B, Q): (B, Q, window_size**2)."""
        at = self.path(t, tree.n).unsqueeze(-1)  # (B, Q, 2, 1)
        half = self.window_size // 2
        # (B, Q, 2, W)
        cell = at.detach().round().long() + torch.arange(-half, half + 1, device=t.device)
        share = bspline((at - cell) / self.lengthscale)
        weight = (share[..., 0, :, None] * share[..., 1, None, :]).flatten(-2)  # (B, Q, W * W)
        row = self._row(cell[..., 0, :, None], cell[..., 1, None, :], tree.n).flatten(-2)
        index, count = tree.lookup(0, row)
        weight = weight * count
        exponent = self.exponent
        if exponent is None:
            return Reads(index, average(weight))
        distance = position(t, tree.n).unsqueeze(-1) - tree.centroid(0, row)
        log_decay = -exponent / 2 * torch.log1p(distance.square())
        return Reads(index, normalise(log_decay, weight))


def _checked(grid: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = grid
    except (TypeError, ValueError):
        raise ValueError(f"grid must be (height, width), got {grid!r}") from None
    return as_int(height, "height", least=1), as_int(width, "width", least=1)


@kept(maxsize=8)
def _tables(grid: tuple[int, int] | None) -> dict[str, Tensor]:
    """The constant tables by name, on the CPU."""
    if grid is None:
        return dict(zip(("_encode", "_decode"), lookup_tables(BITS), strict=True))
    permutation = touching_permutation(*grid)
    return {"_place": inverse_permutation(permutation), "permutation": permutation}


def _curve_order(n: int) -> int:
    """The smallest p >= 1 with 4**p >= n, by comparisons, so that a compiled graph is guarded on p
    and not on n.
    """
    order = 1
    while 4**order < n:
        order += 1
    return order
