"""A window in the plane around a query that walks along the Hilbert curve (chapter ``attention/hilbert``)."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fractal_lib.attention.cells import Cells
from fractal_lib.attention.kernels import PowerLaw
from fractal_lib.attention.reads import ContextAttention, Reads, average, normalise, position
from fractal_lib.curves.grid import inverse_order
from fractal_lib.curves.hilbert import decode_by, encode_by, lookup_tables, spline_path, touching_order

BITS = 4  # levels of the curve in one look: tables of 4 KiB, and three looks for a million rows


class HilbertCurveAttention(ContextAttention):
    """Lay the rows along a Hilbert curve and read the cells around the query's place in the plane.

    The query at (x, y) walks the cubic B-spline of the cells of its four nearest rows. A cell (i, j) of the
    ``window_size`` by ``window_size`` around it weighs beta((x - i) / w) beta((y - j) / w), beta the cubic B-spline,
    w = `width`: 0, with two derivatives, where a cell enters or leaves, so the result is C^2 in t. Cells without a
    row weigh 0.

    Args:
        window_size: cells on a side of the window; odd, at least 3.
        grid: None for a series, laid along the curve of the smallest order p with 4**p >= n. Or (height, width) of a
            picture of n = height * width rows in `touching_order`: ``flatten(picture, attention.order)``.
        decay: True also multiplies the weights by (1 + d^2)^(-a / 2), d the distance in rows, a = `exponent`.

    Attributes:
        spread: (1,) float32 parameter, from which the `width` follows.
        fall: (1,) float32 parameter, from which the `exponent` follows; None without decay.
        order: (height * width,) int64 buffer: the flat index of each row's cell. Only with a grid.

    Takes ``observed``: a hole larger than the window is an error. Complexity: window_size**2 reads of H numbers per
    query, whatever n is. Source: Hilbert (1891) for the curve; chapter ``attention/hilbert``.

    Raises:
        ValueError: for a window that is even or less than 3, a grid without cells, or (when called) rows that are
            not as many as the grid has cells.

    >>> attention = HilbertCurveAttention()
    >>> attention(torch.randn(8, 1000, 2), torch.rand(8, 3)).shape
    torch.Size([8, 3, 2])
    >>> attention.reads(torch.tensor([[0.3]]), 10**6).index.shape
    torch.Size([1, 1, 25])
    """

    def __init__(self, window_size: int = 5, grid: tuple[int, int] | None = None, decay: bool = False):
        super().__init__()
        if window_size < 3 or window_size % 2 == 0:
            raise ValueError(f"window_size must be odd and at least 3, got {window_size}")
        self.window_size, self.grid = window_size, grid
        self.spread = nn.Parameter(torch.full((1,), math.log(2)))  # of the way from least to largest width: 2/3
        self.fall = nn.Parameter(torch.full((1,), math.log(math.e - 1))) if decay else None
        if grid is None:
            tables = dict(zip(("_encode", "_decode"), lookup_tables(BITS), strict=True))
        else:
            order = touching_order(*grid)
            tables = {"_place": inverse_order(order), "order": order}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    @property
    def width(self) -> Tensor:
        """(1,) float64 in [1/2, window_size / 4], in cells: within reach of a row, and never beyond the window."""
        # The query is at most 1/2 from the middle of the window, so what is left out is window_size / 2 = 2 w away.
        return 0.5 + (self.window_size / 4 - 0.5) * self.spread.double().sigmoid()

    @property
    def exponent(self) -> Tensor | None:
        """(1,) float64, positive: how fast weights fall with the distance in time; None without decay."""
        return None if self.fall is None else softplus(self.fall.double())

    def path(self, t: Tensor, n: int) -> Tensor:
        """Where t (B, Q) is in the plane of n rows: (B, Q, 2) float64, x and y in cells."""
        if self.grid is not None and n != len(self.order):
            raise ValueError(f"a grid of {self.grid[0]} x {self.grid[1]} has {len(self.order)} rows, got {n}")
        return spline_path(position(t, n), n, lambda row: self._cell(row, n))

    def _cell(self, row: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """x and y of each of n rows."""
        if self.grid is None:
            return decode_by(self._decode, row, _curve_order(n))
        flat = self.order[row]
        return flat % self.grid[1], flat // self.grid[1]

    def _row(self, x: Tensor, y: Tensor, n: int) -> Tensor:
        """The row of each cell, of n rows: n for a cell off the grid, n or more for one without a row."""
        order = _curve_order(n)
        height, width = (2**order, 2**order) if self.grid is None else self.grid
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
        row = encode_by(self._encode, x, y, order) if self.grid is None else self._place[y * width + x]
        return torch.where(inside, row, n)

    def reads(self, t: Tensor, n: int | Cells) -> Reads:
        """The window's rows for t (B, Q): index and weight (B, Q, window_size**2)."""
        cells = n if isinstance(n, Cells) else Cells(n, 1)
        at = self.path(t, cells.n).unsqueeze(-1)  # (B, Q, 2, 1)
        half = self.window_size // 2
        cell = at.detach().round().long() + torch.arange(-half, half + 1, device=t.device)  # (B, Q, 2, W)
        share = _bspline((at - cell) / self.width)
        weight = (share[..., 0, :, None] * share[..., 1, None, :]).flatten(-2)  # (B, Q, W * W)
        row = self._row(cell[..., 0, :, None], cell[..., 1, None, :], cells.n).flatten(-2)
        index, count = cells.look(0, row)
        weight = weight * count
        if self.fall is None:
            return Reads(index, average(weight))
        distance = position(t, cells.n).unsqueeze(-1) - cells.centre(0, row)
        return Reads(index, normalise(self.exponent * PowerLaw(exponent=1.0).log(distance, cells.n), weight))


def _curve_order(n: int) -> int:
    """The smallest p >= 1 with 4**p >= n, by comparisons, so that a compiled graph is guarded on p and not on n."""
    order = 1
    while 4**order < n:
        order += 1
    return order


def _bspline(u: Tensor) -> Tensor:
    """The cubic B-spline at distance u, exactly 0 from 2 on.

    ``where`` and not ``abs``: autograd takes the slope of |u| at 0 as 0, and the curvature would be lost there.
    """
    u = torch.where(u < 0, -u, u)
    far, near = (2 - u).clamp(min=0), (1 - u).clamp(min=0)
    return (far * far * far - 4 * near * near * near) / 6
