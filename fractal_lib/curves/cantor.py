"""The Cantor set and its dyadic cousin (chapter ``gallery/cantor``)."""

import torch
from torch import Tensor

from fractal_lib.checks import as_int, as_integers

__all__ = ["cantor_indices", "cantor_levels", "cantor_points", "dyadic_grid"]


def cantor_indices(levels: int) -> Tensor:
    """Cells of a grid of ``3**levels`` that survive ``levels`` removals of the middle third.

    They are the integers without a digit 1 in base 3.

    Args:
        levels: number of removals, 0 to 39 (``3**39`` is the last power that fits int64).

    Returns:
        (2**levels,) int64, ascending.

    Raises:
        ValueError: if ``levels`` is outside [0, 39].

    Complexity: O(2**levels) time and memory. Source: Cantor (1883); chapter ``gallery/cantor``.

    >>> cantor_indices(2)
    tensor([0, 2, 6, 8])
    """
    levels = as_int(levels, "levels", 0, 39)
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

    Complexity: O(2**levels). Source: chapter ``gallery/cantor``.

    >>> cantor_points(1)
    tensor([[0.0000, 0.3333],
            [0.6667, 1.0000]], dtype=torch.float64)
    """
    index = cantor_indices(levels)
    return torch.stack([index, index + 1], dim=-1).double() / 3**levels


def cantor_levels(index: Tensor, levels: int) -> Tensor:
    """The removal that takes each cell of a grid of ``3**levels``: 1 for the first, 0 for never.

    Args:
        index: whole numbers in [0, 3**levels): a tensor of any shape, array, list or number.
        levels: number of removals, 0 to 39.

    Returns:
        int64 of the shape of ``index``: place of the first digit 1 in base 3, counted from 1, or 0.

    Raises:
        ValueError: if an index is outside the grid or ``levels`` outside [0, 39].

    Complexity: O(levels) per index. Source: chapter ``gallery/cantor``.

    >>> cantor_levels(torch.arange(9), levels=2)
    tensor([0, 2, 0, 1, 1, 1, 0, 2, 0])
    """
    levels = as_int(levels, "levels", 0, 39)
    index = as_integers(index, "index", 0, 3**levels - 1)
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

    Complexity: O(2**level). Source: chapters ``gallery/cantor`` and ``start/ladder``.

    >>> dyadic_grid(2, 17)
    tensor([ 0,  4,  8, 12, 16])
    """
    level, n = as_int(level, "level", least=0), as_int(n, "n", least=1)
    return torch.arange(2**level + 1) * (n - 1) // 2**level
