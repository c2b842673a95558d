"""Smoothing splines of many series at once, on a ladder of strengths, without recurrence (chapter
``posterior/irregular``).
"""

import torch
from torch import Tensor, nn

__all__ = ["SplineLadder", "hermite", "penalty", "solve_block_tridiagonal", "typical_gap"]

SHORTEST = 0.5  # smoothing length of level 0, in gaps between observations
TAUT = 8.0  # smoothing lengths over which a curve without observations becomes straight
BASE = 1  # the level whose value is read as it is; of the others the difference from it

# int f''^2 of a cubic on [0, 1] with values and slopes (v0, v0', v1, v1') at its ends
BEND = [[12.0, 6, -12, 6], [6, 4, -6, 2], [-12, -6, 12, -6], [6, 2, -6, 4]]
# 30 int f'^2 of the same
STRETCH = [[36.0, 3, -36, 3], [3, 4, -3, -1], [-36, -3, 36, -3], [3, -1, -3, 4]]
# the same four numbers of its left and its right half, slopes in the half's own width
_MIDDLE = [[0.5, 0.125, 0.5, -0.125], [-0.75, -0.125, 0.75, -0.125]]
HALVES = [
    [[1.0, 0, 0, 0], [0, 0.5, 0, 0], *_MIDDLE],
    [*_MIDDLE, [0, 0, 1.0, 0], [0, 0, 0, 0.5]],
]


def hermite(u: Tensor, n: int = 0) -> Tensor:
    """Weights (..., 4) of (v0, v0', v1, v1') for a cubic at u in [0, 1], or its nth derivative.

    >>> hermite(torch.tensor(0.5))
    tensor([ 0.5000,  0.1250,  0.5000, -0.1250])
    """
    w = 1 - u
    if n == 0:
        weights = [(1 + 2 * u) * w * w, u * w * w, u * u * (3 - 2 * u), -u * u * w]
    elif n == 1:
        weights = [-6 * u * w, w * (1 - 3 * u), 6 * u * w, u * (3 * u - 2)]
    else:
        weights = [12 * u - 6, 6 * u - 4, 6 - 12 * u, 6 * u - 2]
    return torch.stack(weights, -1)


def penalty(length: Tensor) -> Tensor:
    """int f''^2 + f'^2 / (8 length)^2 over one cell, of the smoothing lengths (S,) in cells, as a
    matrix (S, 4, 4) for the values and slopes at the cell's ends.

    Without the second term a cubic crosses a long hole as far off as the slopes at its ends lead.

    >>> penalty(torch.tensor([1e6]))[0, 0].tolist()
    [12.0, 6.0, -12.0, 6.0]
    """
    bend, stretch = (
        torch.tensor(matrix, dtype=length.dtype, device=length.device) for matrix in (BEND, STRETCH)
    )
    return bend + stretch / (30 * (TAUT * length[:, None, None]) ** 2)


def solve_block_tridiagonal(diagonal: Tensor, upper: Tensor, right: Tensor) -> Tensor:
    """x with D_j x_j + U_j x_(j+1) + U_(j-1)^T x_(j-1) = r_j, for all series at once.

    Cyclic reduction: the odd unknowns are eliminated, what is left is a system of the same form for
    the even ones, half as long; so log2(n) steps, each over whole arrays.

    Args:
        diagonal: D, (S, n, 2, 2) symmetric.
        upper: U, (S, n - 1, 2, 2).
        right: r, (S, n, 2, X).

    The whole must be positive definite. Complexity: O(S n X). Source: Buzbee, Golub and Nielson
    (1970); chapter ``posterior/irregular``.

    >>> eye = torch.eye(2).expand(1, 3, 2, 2)
    >>> solve_block_tridiagonal(2 * eye, 0 * eye[:, 1:], torch.ones(1, 3, 2, 1)).flatten()
    tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000])
    """
    n = diagonal.shape[1]
    if n == 1:
        return _inverse(diagonal) @ right
    odd, even = n // 2, (n + 1) // 2
    upper = nn.functional.pad(upper, (0, 0, 0, 0, 0, 1))
    before, after = upper[:, ::2][:, :odd], upper[:, 1::2][:, :odd]
    inverse = _inverse(diagonal[:, 1::2])
    g, h, y = inverse @ before.mT, inverse @ after, inverse @ right[:, 1::2]
    d, r = diagonal[:, ::2].clone(), right[:, ::2].clone()
    d[:, :odd] -= before @ g
    r[:, :odd] -= before @ y
    d[:, 1:] -= (after.mT @ h)[:, : even - 1]
    r[:, 1:] -= (after.mT @ y)[:, : even - 1]
    x = solve_block_tridiagonal(d, -(before @ h)[:, : even - 1], r)
    following = nn.functional.pad(x[:, 1:], (0, 0, 0, 0, 0, 1))[:, :odd]
    whole = x.new_empty(right.shape)
    whole[:, ::2], whole[:, 1::2] = x, y - g @ x[:, :odd] - h @ following
    return whole


def _inverse(m: Tensor) -> Tensor:
    """Of matrices (..., 2, 2)."""
    a, b, c, d = m[..., 0, 0], m[..., 0, 1], m[..., 1, 0], m[..., 1, 1]
    adjugate = torch.stack([d, -b, -c, a], -1).unflatten(-1, (2, 2))
    return adjugate / (a * d - b * c)[..., None, None]


class SplineLadder:
    """Smoothing splines on every scale: level k is a cubic spline on cells of width 2^k, which
    minimises

        sum_i (x_i - f(t_i))^2 + b_k int f''^2 + f'^2 / (8 l_k)^2,    observations at exact times.

    With gaps of width h between observations, b_k = l_k^4 / h smooths over l_k = 2^k c, half a gap
    on level 0; the tension makes a curve straight in holes longer than eight times that. What a
    cell must know of its observations, 4 x 4 and 4 x X sums, pools by two exactly, as cubics are
    nested: so all levels together cost twice the first.

    Args:
        values: (S, N, X).
        observed: (S, N) bool, or None for all.
        place: (S, N) float64, where each row stands, from 0 to n - 1.
        n: rows of the grid.
        levels: number of levels.

    Attributes:
        out_features: 2 L X.

    Complexity: O(S (N + n) X) once, in float64 and log2(n) steps a level; then 2 nodes a level and
    time. Source: Green and Silverman (1994) for the spline, Schweikert (1966) for
    tension; chapter ``posterior/irregular``.
    """

    def __init__(self, values: Tensor, observed: Tensor | None, place: Tensor, n: int, levels: int):
        there = torch.ones_like(place) if observed is None else observed.to(place)
        values = torch.where(there.unsqueeze(-1) > 0, values, 0)
        gap = typical_gap(place, there)  # (S,)
        squares, products = _cell_sums(values.double(), there, place, max(n - 1, 1))
        strength = (SHORTEST * gap) ** 4 / gap  # in rows
        # a length in cells is the same on every level
        rough = penalty(SHORTEST * gap).unsqueeze(1)  # (S, 1, 4, 4)
        packed = []
        for k in range(levels):
            if k:  # a cell, and so the unit of its lengths, is twice as wide
                squares, products = _pooled(squares), _pooled(products, sums=False)
                strength = 2 * strength
            system = squares + strength[:, None, None, None] * rough
            nodes = _smooth(system, products)
            packed.append(torch.cat([nodes[:, :-1], nodes[:, 1:]], 2))  # (S, cells, 4, X)
        self.sizes = torch.tensor([len(part[0]) for part in packed], device=place.device)
        self.offset = self.sizes.cumsum(0) - self.sizes
        self.ends = torch.cat(packed, 1).flatten(0, 1).to(values.dtype)  # (S P, 4, X)
        self.packed = int(self.sizes.sum())
        self.length = SHORTEST * gap  # (S,) in cells, the same on every level
        self.width = 2.0 ** torch.arange(levels, device=place.device, dtype=torch.float64)
        self.out_features = 2 * levels * values.shape[2]

    def read(self, series: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes per row, (B, Q, 2 L X) both, at positions x (B, Q) of series (B,).

        The value of one level, the others' differences from it, and the slopes of all, each in
        units of its smoothing length.
        """
        place = x.unsqueeze(-1) / self.width  # (B, Q, L)
        cell = torch.minimum(place.floor().long().clamp(min=0), self.sizes - 1)
        dtype = self.ends.dtype
        weight = torch.stack([hermite(place - cell, n) for n in (0, 1, 2)], -2).to(dtype)
        ends = self.ends[cell + self.offset + (series * self.packed)[:, None, None]]
        value, slope, bend = (weight @ ends).unbind(-2)  # (B, Q, L, X), per cell of the level
        length = self.length[series][:, None, None, None].to(dtype)
        per_row = (1 / self.width).to(dtype).unsqueeze(-1)
        return (
            torch.cat([_from_base(value), length * slope], 2).flatten(-2),
            torch.cat([_from_base(slope * per_row), length * bend * per_row], 2).flatten(-2),
        )


def _from_base(parts: Tensor) -> Tensor:
    """(B, Q, L, X): that of the base first, then the others' differences from it."""
    at = min(BASE, parts.shape[2] - 1)
    base = parts[:, :, at : at + 1]
    return torch.cat([base, parts[:, :, :at] - base, parts[:, :, at + 1 :] - base], 2)


def typical_gap(place: Tensor, there: Tensor) -> Tensor:
    """(S,) mean distance of neighbours, in rows, of those up to four times the median: holes do not
    count. 1 where there are none.
    """
    gaps = torch.where(there > 0, place, torch.inf).sort(1).values.diff(dim=1)
    if gaps.shape[1] == 0:
        return torch.ones_like(place[:, 0])
    gaps = torch.where(gaps.isfinite() & (gaps > 0), gaps, torch.nan)
    median = gaps.nanmedian(1, keepdim=True).values
    common = torch.where(gaps <= 4 * median, gaps, torch.nan)
    return common.nanmean(1).nan_to_num(1.0).clamp(min=0.125)


def _cell_sums(values: Tensor, there: Tensor, place: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Of the observations in each cell the sums of w w^T, (S, cells, 4, 4), and w x^T, (S, cells,
    4, X), with w their Hermite weights.
    """
    cell = place.floor().long().clamp(0, cells - 1)
    w = (hermite(place - cell) * there.unsqueeze(-1)).unsqueeze(-1)  # (S, N, 4, 1)
    parts = torch.cat([w * w.mT, w * values.unsqueeze(-2)], -1).flatten(2)
    sums = parts.new_zeros(len(parts), cells, parts.shape[2])
    sums.scatter_add_(1, cell.unsqueeze(-1).expand_as(parts), parts)
    squares, products = sums.unflatten(2, (4, -1)).split([4, values.shape[2]], -1)
    return squares, products


def _pooled(sums_of: Tensor, sums: bool = True) -> Tensor:
    """The sums of cells twice as wide: of w w^T, or of w x^T."""
    if sums_of.shape[1] % 2:
        sums_of = torch.cat([sums_of, torch.zeros_like(sums_of[:, :1])], 1)
    left, right = torch.tensor(HALVES, dtype=sums_of.dtype, device=sums_of.device)
    a, b = left.mT @ sums_of[:, ::2], right.mT @ sums_of[:, 1::2]
    return a @ left + b @ right if sums else a + b


def _smooth(system: Tensor, products: Tensor) -> Tensor:
    """Values and slopes at the nodes, (S, cells + 1, 2, X)."""
    pad, first, last = nn.functional.pad, (0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 1, 0)
    diagonal = pad(system[..., :2, :2], first) + pad(system[..., 2:, 2:], last)
    right = pad(products[..., :2, :], first) + pad(products[..., 2:, :], last)
    return solve_block_tridiagonal(diagonal, system[..., :2, 2:], right)
