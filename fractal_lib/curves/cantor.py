"""The Cantor set and its dyadic cousin, the ladder (chapter ``curves/cantor``)."""

import torch
from torch import Tensor


def cantor_indices(levels: int) -> Tensor:
    """Cells of a grid of ``3**levels`` that survive ``levels`` removals of the middle third.

    They are the integers without a digit 1 in base 3.

    Args:
        levels: number of removals, 0 to 39 (``3**39`` is the last power that fits int64).

    Returns:
        (2**levels,) int64, ascending.

    Raises:
        ValueError: if ``levels`` is outside [0, 39].

    Complexity: O(2**levels) time and memory. Source: Cantor (1883); chapter ``curves/cantor``.

    >>> cantor_indices(2)
    tensor([0, 2, 6, 8])
    """
    if not 0 <= levels <= 39:
        raise ValueError(f"levels must lie in [0, 39], got {levels}")
    index = torch.zeros(1, dtype=torch.int64)
    for level in range(levels):
        index = torch.cat([index, index + 2 * 3**level])  # a new leading digit: 0, then 2
    return index


def cantor_points(levels: int) -> Tensor:
    """Ends of the ``2**levels`` intervals left of [0, 1] after ``levels`` removals.

    Args:
        levels: number of removals, 0 to 39.

    Returns:
        (2**levels, 2) float64: the left and right end of each interval, ascending.

    Raises:
        ValueError: if ``levels`` is outside [0, 39].

    Complexity: O(2**levels). Source: chapter ``curves/cantor``.

    >>> cantor_points(1)
    tensor([[0.0000, 0.3333],
            [0.6667, 1.0000]], dtype=torch.float64)
    """
    index = cantor_indices(levels)
    return torch.stack([index, index + 1], dim=-1).double() / 3**levels


def cantor_levels(index: Tensor, levels: int) -> Tensor:
    """The removal that takes each cell of a grid of ``3**levels``: 1 for the first, 0 for never.

    Args:
        index: int64, any shape, values in [0, 3**levels).
        levels: number of removals, 0 to 39.

    Returns:
        int64 of the shape of ``index``: place of the first digit 1 in base 3, counted from 1, or 0.

    Raises:
        ValueError: if an index is outside the grid or ``levels`` outside [0, 39].

    Complexity: O(levels) per index. Source: chapter ``curves/cantor``.

    >>> cantor_levels(torch.arange(9), levels=2)
    tensor([0, 2, 0, 1, 1, 1, 0, 2, 0])
    """
    if not 0 <= levels <= 39:
        raise ValueError(f"levels must lie in [0, 39], got {levels}")
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < 3**levels:
        raise ValueError(f"index must lie in [0, {3**levels}), got {int(index.min())} to {int(index.max())}")
    removed = torch.zeros_like(index)
    for level in range(levels, 0, -1):  # the first digit is written last, so that it wins
        removed = torch.where(index // 3 ** (levels - level) % 3 == 1, level, removed)
    return removed


def dyadic_grid(level: int, n: int) -> Tensor:
    """The original sketch's mask of one level: ``2**level + 1`` positions spread over ``n`` rows.

    Args:
        level: 0 for the two ends, 1 for the middle too, and so on.
        n: number of rows, at least 1.

    Returns:
        (2**level + 1,) int64, ascending, from 0 to n - 1; repeats where the grid outgrows the rows.

    Raises:
        ValueError: if ``level < 0`` or ``n < 1``.

    Complexity: O(2**level). Source: chapters ``curves/cantor`` and ``attention/fractal``.

    >>> dyadic_grid(2, 17)
    tensor([ 0,  4,  8, 12, 16])
    """
    if level < 0 or n < 1:
        raise ValueError(f"expected level >= 0 and n >= 1, got level={level}, n={n}")
    return torch.arange(2**level + 1) * (n - 1) // 2**level


def ladder(x: Tensor, stride: Tensor | int) -> tuple[Tensor, Tensor]:
    """The four points of the grid of a given stride around each position.

    Four points on each of the strides 1, 2, 4, ...: a set of 4 log2(n) positions that is fine near
    ``x`` and coarse far away, the same at every scale.

    Args:
        x: positions in rows, float, any shape (float64 keeps them exact up to 2**53).
        stride: positive int, or an int64 tensor that broadcasts with ``x``.

    Returns:
        rung: int64, shape of ``x / stride`` plus (4,). The points are ``rung * stride``; some may lie
            outside [0, n), which is for the caller to weigh with 0.
        fraction: shape of ``x / stride``, in [0, 1): how far ``x`` is past the second point, in strides.

    Complexity: O(1) per position and stride. Source: chapter ``curves/cantor``.

    >>> rung, fraction = ladder(torch.tensor([5.5], dtype=torch.float64), 2)
    >>> rung * 2, fraction
    (tensor([[2, 4, 6, 8]]), tensor([0.7500], dtype=torch.float64))
    """
    u = x / stride
    base = u.detach().floor()
    return base.long().unsqueeze(-1) + torch.arange(-1, 3, device=x.device), u - base


def bspline_weights(fraction: Tensor, order: int = 0) -> Tensor:
    """Weights of the four grid points around a position: the uniform cubic B-spline, or a derivative of it.

    Args:
        fraction: distance past the second of the four points, in strides, in [0, 1); any shape.
        order: 0 for the weights, 1 or 2 for their first or second derivative in ``fraction``.

    Returns:
        shape of ``fraction`` plus (4,). They sum to 1 (a derivative: to 0), are C^2 in the position across grid
        points, and the first (last) is 0 exactly where its point is left behind (comes in).

    Raises:
        ValueError: for an order other than 0, 1 or 2 (the third derivative jumps).

    Written as polynomials of the fraction and not of |u|, whose second derivative autograd reports
    as 0 at u = 0. Source: de Boor (1978); chapter ``curves/cantor``.

    >>> bspline_weights(torch.tensor(0.0)) * 6
    tensor([1., 4., 1., 0.])
    """
    f, g = fraction, 1 - fraction
    f2, g2 = f * f, g * g
    if order == 1:
        return torch.stack([-g2, f * (3 * f - 4), g * (4 - 3 * g), f2], dim=-1) / 2
    if order == 2:
        return torch.stack([g, 3 * f - 2, 3 * g - 2, f], dim=-1)
    if order:
        raise ValueError(f"order must be 0, 1 or 2, got {order}")
    return torch.stack([g2 * g, 4 - 3 * f2 * (1 + g), 4 - 3 * g2 * (1 + f), f2 * f], dim=-1) / 6
