"""Smoothing splines of many series at once, on a ladder of strengths, without recurrence (chapter
``posterior/irregular``).
"""

import torch
from torch import Tensor, nn

__all__ = ["STRENGTHS", "SmoothingSplines", "hermite", "solve_block_tridiagonal"]

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Smoothing lengths in gaps: the least follows the observations, the last shows a trend."""
BASE = 1  # the strength whose value is read as it is; of the others the difference from it
RIDGE = 1e-6  # what decides a slope that one observation leaves open: nearly 0

# int f''^2 of a cubic on [0, 1] with values and slopes (v0, v0', v1, v1') at its ends
BEND = [[12.0, 6, -12, 6], [6, 4, -6, 2], [-12, -6, 12, -6], [6, 2, -6, 4]]


def hermite(u: Tensor, n: int = 0) -> Tensor:
    """Weights (..., 4) of (v0, v0', v1, v1') for a cubic at u in [0, 1], or its nth derivative.

    >>> hermite(torch.tensor([0.0, 0.5]))
    tensor([[ 1.0000,  0.0000,  0.0000,  0.0000],
            [ 0.5000,  0.1250,  0.5000, -0.1250]])
    """
    w = 1 - u
    if n == 0:
        weights = [(1 + 2 * u) * w * w, u * w * w, u * u * (3 - 2 * u), -u * u * w]
    elif n == 1:
        weights = [-6 * u * w, w * (1 - 3 * u), 6 * u * w, u * (3 * u - 2)]
    else:
        weights = [12 * u - 6, 6 * u - 4, 6 - 12 * u, 6 * u - 2]
    return torch.stack(weights, -1)


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


class SmoothingSplines:
    """The curve f that minimises sum (x_i - f(t_i))^2 + b int f''^2, at several strengths b.

    It is a cubic between the rows of an even grid, with observations at their exact times. With
    gaps of length h between them, b = (c h)^4 / h smooths over c gaps.

    Args:
        values: (S, N, X).
        observed: (S, N) bool, or None for all.
        place: (S, N) float64, where each row stands, from 0 to n - 1.
        n: rows of the grid.

    Complexity: O(S n X) a strength once, in float64; then 2 rows a strength and time. Source:
    Green and Silverman (1994); chapter ``posterior/irregular``.
    """

    def __init__(self, values: Tensor, observed: Tensor | None, place: Tensor, n: int):
        self.cells, dtype = max(n - 1, 1), values.dtype
        there = torch.ones_like(place) if observed is None else observed.to(place)
        gap = _typical_gap(place, there)  # (S,)
        cell = place.floor().long().clamp(0, self.cells - 1)
        weight = hermite(place - cell) * there.unsqueeze(-1)  # (S, N, 4)
        squares = _sums(cell, weight.unsqueeze(-1) * weight.unsqueeze(-2), self.cells)
        values = torch.where(there.unsqueeze(-1) > 0, values, 0).double().unsqueeze(-2)
        products = _sums(cell, weight.unsqueeze(-1) * values, self.cells)  # (S, cells, 4, X)
        bend = torch.tensor(BEND, dtype=torch.float64, device=place.device)
        curves = [
            _solve(squares + (c**4 * gap**3)[:, None, None, None] * bend, products)
            for c in STRENGTHS
        ]
        # (S cells, K, 4, X)
        self.ends = torch.stack(curves, 2).flatten(0, 1).to(dtype)
        self.length = gap.unsqueeze(1) * place.new_tensor(STRENGTHS)  # (S, K)

    def read(self, series: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes per row, (B, Q, 2 K X) both, at positions x (B, Q) of series (B,).

        The value at one strength, the others' differences from it, and the slopes of all, a slope
        in units of its smoothing length.
        """
        cell = x.floor().long().clamp(0, self.cells - 1)
        dtype = self.ends.dtype
        weight = torch.stack([hermite(x - cell, n) for n in (0, 1, 2)], -2).to(dtype)
        ends = self.ends[cell + series.unsqueeze(1) * self.cells]  # (B, Q, K, 4, X)
        value, slope, second = (weight.unsqueeze(2) @ ends).unbind(-2)  # (B, Q, K, X)
        length = self.length[series][:, None, :, None].to(dtype)
        return (
            torch.cat([_from_base(value), length * slope], 2).flatten(-2),
            torch.cat([_from_base(slope), length * second], 2).flatten(-2),
        )


def _from_base(parts: Tensor) -> Tensor:
    """(B, Q, K, X): the base, and the others' differences from it."""
    base = parts[:, :, BASE : BASE + 1]
    return torch.cat([base, parts[:, :, :BASE] - base, parts[:, :, BASE + 1 :] - base], 2)


def _typical_gap(place: Tensor, there: Tensor) -> Tensor:
    """(S,) median distance of neighbours, in rows; 1 where there are none."""
    last = torch.where(there > 0, place, torch.inf).sort(1).values
    gaps = last.diff(dim=1)
    gaps = torch.where(gaps.isfinite() & (gaps > 0), gaps, torch.nan)
    if gaps.shape[1] == 0:
        return torch.ones_like(place[:, 0])
    return gaps.nanmedian(1).values.nan_to_num(1.0).clamp(min=0.125)


def _sums(cell: Tensor, parts: Tensor, cells: int) -> Tensor:
    """Sums over the rows (S, N, ...) of each cell: (S, cells, ...)."""
    flat = parts.flatten(2)
    sums = flat.new_zeros(len(flat), cells, flat.shape[2])
    sums.scatter_add_(1, cell.unsqueeze(-1).expand_as(flat), flat)
    return sums.unflatten(2, parts.shape[2:])


def _solve(squares: Tensor, products: Tensor) -> Tensor:
    """Values and slopes at both ends of each cell, (S, cells, 4, X)."""
    pad = nn.functional.pad
    first, last = (0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 1, 0)
    diagonal = pad(squares[..., :2, :2], first) + pad(squares[..., 2:, 2:], last)
    diagonal[..., 1, 1] += RIDGE
    right = pad(products[..., :2, :], first) + pad(products[..., 2:, :], last)
    nodes = solve_block_tridiagonal(diagonal, squares[..., :2, 2:], right)
    return torch.cat([nodes[:, :-1], nodes[:, 1:]], 2)
