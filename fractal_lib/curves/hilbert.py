"""The Hilbert curve: cell to place and back by tables, on any grid, and as a smooth path (chapter
``gallery/hilbert``).

The curve of order p visits the 4**p cells (x, y) of a square grid of side 2**p, from (0, 0) to
(2**p - 1, 0). Any two consecutive cells share an edge.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fractal_lib.checks import as_float, as_int, kept
from fractal_lib.curves.grid import check_range, grid_cells, integers
from fractal_lib.curves.splines import bspline_weights, stencil

__all__ = [
    "decode_by",
    "encode_by",
    "hilbert_decode",
    "hilbert_encode",
    "hilbert_path",
    "hilbert_permutation",
    "lookup_tables",
    "spline_path",
    "touching_permutation",
]

# of x and of y that one look into a table turns into 16 bits of d; a table takes 4 * 4**8 int32, 1
# MiB
BITS = 8


def hilbert_encode(x: Any, y: Any, order: int) -> Any:
    """Place of each cell along the Hilbert curve.

    Args:
        x, y: whole numbers in [0, 2**order): tensors on any device, numpy arrays, lists or
            numbers, shapes that broadcast.
        order: 1 to 31.

    Returns:
        d: int64 in [0, 4**order) of the broadcast shape, an array if an array was given.

    Raises:
        TypeError: if x or y is not of whole numbers, or one is a tensor and the other an array.
        ValueError: if ``order`` or a cell is out of range.

    Complexity: ceil(order / 8) looks into a table per cell. Source: Hilbert (1891); chapter
    ``gallery/hilbert``.

    >>> hilbert_encode(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 0]), order=1)
    tensor([0, 1, 2, 3])
    """
    u, v = integers(_side(order) - 1, x=x, y=y)
    d = encode_by(_tables(u.device)[0], u, v, order)
    return d.numpy() if isinstance(x, np.ndarray) or isinstance(y, np.ndarray) else d


def hilbert_decode(d: Any, order: int) -> tuple[Any, Any]:
    """The cell at each place along the Hilbert curve: the inverse of `hilbert_encode`.

    Args:
        d: whole numbers in [0, 4**order), any shape and device: a tensor, array, list or number.
        order: 1 to 31.

    Returns:
        x, y: int64 in [0, 2**order), of the kind and shape of ``d``.

    Raises:
        TypeError: if d is not of whole numbers.
        ValueError: if ``order`` or a place is out of range.

    Complexity: ceil(order / 8) looks into a table per place. Source: Hilbert (1891); chapter
    ``gallery/hilbert``.

    >>> hilbert_decode(torch.arange(4), order=1)
    (tensor([0, 0, 1, 1]), tensor([0, 1, 1, 0]))
    """
    (code,) = integers(_side(order) ** 2 - 1, d=d)
    x, y = decode_by(_tables(code.device)[1], code, order)
    return (x.numpy(), y.numpy()) if isinstance(d, np.ndarray) else (x, y)


def encode_by(table: Tensor, x: Tensor, y: Tensor, order: int) -> Tensor:
    """`hilbert_encode` by the first of `lookup_tables`, without checks: for cells known to be in
    range.
    """
    u, v = torch.broadcast_tensors(x, y)
    bits, steps, entry = _looks(table, order)
    d = torch.zeros_like(u, memory_format=torch.contiguous_format)
    for shift in range(bits * (steps - 1), -1, -bits):
        index = ((u >> shift) & (2**bits - 1)) * 2**bits + ((v >> shift) & (2**bits - 1))
        entry = table[index + (entry & 3) * 4**bits]  # d's next 2 * bits bits, then 2 of state
        d = d * 4**bits + (entry >> 2)
    return d


def decode_by(table: Tensor, d: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """`hilbert_decode` by the second of `lookup_tables`, without checks: for places known to be in
    range.
    """
    bits, steps, entry = _looks(table, order)
    x = torch.zeros_like(d, memory_format=torch.contiguous_format)
    y = torch.zeros_like(x)
    for shift in range(2 * bits * (steps - 1), -1, -2 * bits):
        # bits of x, of y, and 2 of state
        entry = table[((d >> shift) & (4**bits - 1)) + (entry & 3) * 4**bits]
        x = x * 2**bits + (entry >> (bits + 2))
        y = y * 2**bits + ((entry >> 2) & (2**bits - 1))
    return x, y


def _looks(table: Tensor, order: int) -> tuple[int, int, int]:
    """Levels a look, looks, and the state to start in: each leading zero swaps x and y, see
    `_one_level`.
    """
    bits = (table.numel().bit_length() - 3) // 2
    steps = -(-order // bits)
    return bits, steps, (bits * steps - order) & 1


def _side(order: int) -> int:
    return 1 << as_int(order, "order", 1, 31)


def _one_level() -> tuple[Tensor, Tensor]:
    """One level of the curve, each (4, 2, 2) int64 over [state, x, y]: which quarter comes, and the
    state inside it.

    Bit 0 of a state says that x and y are swapped, bit 1 that both count down. The first quarter of
    a curve is the curve swapped, the last one swapped and counted down; these turns commute, so
    states combine by exclusive or.
    """
    state, x, y = torch.meshgrid(torch.arange(4), torch.arange(2), torch.arange(2), indexing="ij")
    swapped, down = (state & 1).bool(), state >> 1
    u, v = torch.where(swapped, y, x) ^ down, torch.where(swapped, x, y) ^ down
    quarter = (3 * u) ^ v  # (0, 0) (0, 1) (1, 1) (1, 0) -> 0 1 2 3
    return quarter, state ^ torch.tensor([1, 0, 0, 3])[quarter]


def _two_in_one(quarter: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """A table of k levels twice is that of 2k: (4, 2**k, 2**k) -> (4, 4**k, 4**k)."""
    side = quarter.shape[-1]
    cell = torch.arange(side * side)
    high, low = cell // side, cell % side
    between = after[:, high[:, None], high]  # (4, 4**k, 4**k)
    last = (between, low[:, None], low)
    return quarter[:, high[:, None], high] * side**2 + quarter[last], after[last]


def lookup_tables(bits: int) -> tuple[Tensor, Tensor]:
    """For ``bits`` levels, a power of two: [state, x, y] -> d and state; [state, d] -> x, y and
    state; both flat int32.

    >>> encode_by(lookup_tables(4)[0], torch.tensor([0, 3]), torch.tensor([1, 0]), order=2)
    tensor([ 3, 15])
    """
    level = _one_level()
    for _ in range(bits.bit_length() - 1):
        level = _two_in_one(*level)
    code, after = (t.reshape(4, -1) for t in level)  # (4, 4**bits), over [state, cell]
    cell = code.argsort(dim=1)  # each row is a permutation; this is its inverse
    pair = (code << 2) | after, (cell << 2) | after.gather(1, cell)
    return pair[0].flatten().int(), pair[1].flatten().int()


def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():  # a graph cannot look into what is kept
        encode, decode = lookup_tables(BITS)
        return encode.to(device), decode.to(device)
    return _kept_tables(device)


@kept()
def _kept_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    encode, decode = lookup_tables(BITS)
    return encode.to(device), decode.to(device)


def hilbert_permutation(height: int, width: int) -> Tensor:
    """The cells of any grid, ranked by their place along the Hilbert curve of the enclosing square.

    On a square of side 2**p consecutive cells touch. On other grids the curve leaves the grid and
    comes back elsewhere, and the order jumps there; `touching_permutation` never does.

    Args:
        height, width: of the grid, 1 to 2**31.

    Returns:
        (height * width,) int64: the flat index ``row * width + column`` of the k-th cell.

    Raises:
        ValueError: if a side is out of range.

    Complexity: O(n log n) time and O(n) memory for n cells, however large the square. Source:
    chapter ``gallery/hilbert``.

    >>> hilbert_permutation(2, 3)
    tensor([0, 1, 4, 3, 5, 2])
    """
    x, y = grid_cells(height, width)
    return hilbert_encode(x, y, max(1, (max(height, width) - 1).bit_length())).argsort()


def touching_permutation(height: int, width: int) -> Tensor:
    """A Hilbert-like order of any grid, in which consecutive cells always share an edge.

    It starts at cell (0, 0) and ends in a corner beside it. On a square of side 2**p it is
    `hilbert_permutation`. A block of a x b cells, entered in one corner and left at the other end
    of side a, is cut into an entry, a middle and an exit as the Hilbert curve cuts a square, with
    halves rounded to even numbers; a long one is cut in two. This works if a is even or b is odd,
    which the cuts preserve: hence the choice of the first a.

    Args:
        height, width: of the grid, at least 1.

    Returns:
        (height * width,) int64: the flat index ``row * width + column`` of the k-th cell.

    Raises:
        ValueError: if a side is less than 1.

    Complexity: O(n) for n cells, in O(log n) steps over whole levels. Source: after J. Cerveny's
    generalised Hilbert curve ("gilbert", 2018), which may step diagonally once since it always
    starts along the longer side; chapter ``gallery/hilbert``.

    >>> touching_permutation(3, 4).view(3, 4)
    tensor([[ 0,  1,  5,  4],
            [ 8,  9, 10, 11],
            [ 7,  6,  2,  3]])
    """
    height, width = as_int(height, "height", least=1), as_int(width, "width", least=1)
    sides = [(width, 0), (0, height)]
    # is it possible?
    along_x, along_y = (a % 2 == 0 or b % 2 == 1 for a, b in ((width, height), (height, width)))
    if not along_x or along_y and height > width:
        sides.reverse()
    # Blocks (N, 3, 2), in the order of the walk: first cell, side a (from entry to exit), side b,
    # as vectors (x, y).
    blocks = torch.tensor([[(0, 0), *sides]])
    while True:
        at, a, b = blocks.unbind(1)  # (N, 2) each
        length, breadth = a.abs().sum(-1), b.abs().sum(-1)
        is_line, is_long = breadth == 1, 2 * length > 3 * breadth
        if is_line.all():
            break
        half_a, half_b = a.sign() * _even_half(length), b.sign() * _even_half(breadth)
        turn = at + a - a.sign() + half_b - b.sign()  # where the exit begins
        parts = torch.where(is_long, 2, 3).masked_fill(is_line, 1)  # (N,)
        first = parts.cumsum(0) - parts
        blocks = at.new_empty(int(parts.sum()), 3, 2)
        for count, cut in (
            (1, [(at, a, b)]),
            (2, [(at, half_a, b), (at + half_a, a - half_a, b)]),
            (3, [(at, half_b, half_a), (at + half_b, a, b - half_b), (turn, -half_b, half_a - a)]),
        ):
            these = (parts == count).nonzero()[:, 0]
            for k, part in enumerate(cut):
                blocks[first[these] + k] = torch.stack([v[these] for v in part], 1)
    # Every block is now one line of cells along its side a.
    within = torch.arange(height * width) - (length.cumsum(0) - length).repeat_interleave(length)
    x, y = (
        at.repeat_interleave(length, 0) + within[:, None] * a.sign().repeat_interleave(length, 0)
    ).unbind(-1)
    return y * width + x


def _even_half(length: Tensor) -> Tensor:
    """(N,) -> (N, 1): half, rounded to an even number where more than 2 are to be halved."""
    half = length // 2
    return (half + ((half % 2 == 1) & (length > 2)))[:, None]


def hilbert_path(position: Tensor, order: int, rows: int | None = None) -> Tensor:
    """A smooth walk along the curve: the cubic B-spline of the cells of the four nearest indices.

    Twice continuously differentiable in the position. It starts in the first cell, ends in the
    last, stays inside the grid, and at a whole position is within sqrt(2)/6 cells of the centre of
    that cell.

    Args:
        position: float, any shape, in [0, rows - 1]; float64 keeps it exact up to 2**53.
        order: of the curve, 1 to 31.
        rows: how many cells of the curve are walked, 1 to 4**order; all unless given.

    Returns:
        shape of ``position`` plus (2,): x and y, in cells; the centre of a cell has whole
        coordinates.

    Raises:
        TypeError: if the position is not floating point.
        ValueError: if ``order``, ``rows`` or a position is out of range.

    Complexity: eight `hilbert_decode` per position. Source: de Boor (1978); chapter
    ``gallery/hilbert``.

    >>> hilbert_path(torch.tensor([0.0, 0.5, 3.0]), order=1)
    tensor([[0.0000, 0.0000],
            [0.0208, 0.4792],
            [1.0000, 0.0000]])
    """
    position = as_float(position, "position")
    last = (_side(order) ** 2 if rows is None else as_int(rows, "rows")) - 1
    if not 0 <= last < _side(order) ** 2:
        raise ValueError(f"expected rows from 1 to {_side(order) ** 2}, got {rows}")
    check_range("position", position, last)
    return spline_path(position, last + 1, lambda d: hilbert_decode(d, order))


def spline_path(
    position: Tensor, rows: int, cell: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """A smooth walk over the cells of any order: the cubic B-spline of the cells of the four
    nearest indices.

    Args:
        position: float, any shape, in [0, rows - 1]; not checked.
        rows: how many cells are walked.
        cell: takes int64 indices in [0, rows) of any shape to their x and y, int64 of that shape.

    Returns:
        shape of ``position`` plus (2,): x and y, C^2 in the position. It starts in the first cell
        and ends in the last.

    Complexity: eight cells looked up per position. Source: de Boor (1978); chapter
    ``gallery/hilbert``.

    >>> spline_path(torch.tensor([0.0, 1.0, 1.5]), 3, lambda k: (k, 0 * k))
    tensor([[0.0000, 0.0000],
            [1.0000, 0.0000],
            [1.5000, 0.0000]])
    """
    near, f = stencil(position, 1)  # (..., 4), (...)
    end = near.clamp(0, rows - 1)
    opposite = (2 * end - near).clamp(0, rows - 1)  # beyond an end: P(-1) = 2 P(0) - P(1)
    cells, ends = torch.stack(cell(torch.stack([opposite, end])), -1)  # (..., 4, 2) each
    cells = torch.where((near == end)[..., None], cells, 2 * ends - cells)
    return (bspline_weights(f)[..., None] * cells.to(f.dtype)).sum(-2)
