"""The dragon curve: a strip of paper folded in half, again and again, then opened (chapter
``gallery/dragon``).

Crease i = 1, 2, 3, ... of the strip is i = 2**k * m with m odd. Its *level* k is the fold that made
it, counted from the last; its *turn* is left (+1) if m % 4 == 1 and right (-1) if m % 4 == 3.
"""

import torch
from torch import Tensor

from fractal_lib.checks import as_int, as_integers

__all__ = [
    "dragon_boundary",
    "dragon_cells",
    "dragon_curve",
    "dragon_points",
    "fold_levels",
    "turn_signs",
    "twin_points",
    "unfolded_signs",
]

# Bit b of a crease's level is set if its lowest 1 stands at a place whose number has bit b set.
_PLACES = [sum(1 << p for p in range(63) if p >> b & 1) for b in range(6)]
_MAX_ORDER = 30  # 2**30 vertices take 16 GiB


def fold_levels(crease: Tensor) -> Tensor:
    """The level of each crease: how often its number can be halved, the ruler function.

    The levels partition the creases: those of level k are (2j + 1) * 2**k, one in 2**(k + 1).

    Args:
        crease: whole numbers, 1 and up: a tensor of any shape and device, array, list or number.

    Returns:
        int64 of the shape of ``crease``, 0 to 62.

    Raises:
        TypeError: if ``crease`` is not of whole numbers.
        ValueError: if a crease is below 1.

    Complexity: O(1) per crease, by six masks.
    Source: OEIS A007814; chapter ``gallery/dragon``.

    >>> fold_levels(torch.arange(1, 9))
    tensor([0, 1, 0, 2, 0, 1, 0, 3])
    """
    crease = as_integers(crease, "crease", least=1)
    lowest = crease & -crease
    bits = [((lowest & places) != 0).long() << b for b, places in enumerate(_PLACES)]
    return torch.stack(bits).sum(0)


def turn_signs(crease: Tensor) -> Tensor:
    """Which way the strip turns at each crease: left or right.

    Args:
        crease: whole numbers, 1 and up: a tensor of any shape and device, array, list or number.

    Returns:
        int64 of the shape of ``crease``: +1 (left) where the bit above the lowest 1 is 0, else -1
            (right).

    Raises:
        TypeError: if ``crease`` is not of whole numbers.
        ValueError: if a crease is below 1.

    Complexity: O(1) per crease. Source: OEIS A014577, as 1 and 0; Davis and Knuth (1970); chapter
    ``gallery/dragon``.

    >>> turn_signs(torch.arange(1, 9))
    tensor([ 1,  1, -1,  1,  1, -1, -1,  1])
    """
    crease = as_integers(crease, "crease", least=1)
    # at crease 2**62 this is the sign bit, which is 0 as it should be
    above = (crease & -crease) << 1
    return torch.where((crease & above) == 0, 1, -1)


def unfolded_signs(order: int) -> Tensor:
    """The turns of a strip folded ``order`` times, by the strip's own rule: copy, a left turn,
    reverse and negate.

    Args:
        order: number of folds, 0 to 30.

    Returns:
        (2**order - 1,) int64, equal to ``turn_signs(torch.arange(1, 2**order))``.

    Raises:
        ValueError: if ``order`` is outside [0, 30].

    Complexity: O(2**order). Source: Davis and Knuth (1970); chapter ``gallery/dragon``, with
    the proof.

    >>> unfolded_signs(3)
    tensor([ 1,  1, -1,  1,  1, -1, -1])
    """
    order = as_int(order, "order", 0, _MAX_ORDER)
    sign = torch.empty(0, dtype=torch.int64)
    for _ in range(order):
        sign = torch.cat([sign, sign.new_ones(1), -sign.flip(0)])
    return sign


def dragon_points(step: Tensor) -> Tensor:
    """Where the dragon curve is after each number of steps, in closed form.

    It starts at (0, 0), its first step leads to (1, 0), and between steps i and i + 1 it turns by
    ``turn_signs(i)`` times 90 degrees. As complex numbers, with b running over the 1 bits of the
    number of steps x,

        P(x) = sum_b (1 + i)**b * i**c_b,

    where c_b counts the changes between neighbours in the string: 0, the bits of x above bit b, 0.

    Args:
        step: whole numbers, 0 and up: a tensor of any shape and device, array, list or number.

    Returns:
        int64, shape of ``step`` plus (2,): x and y.

    Raises:
        TypeError: if ``step`` is not of whole numbers.
        ValueError: if a step is negative.

    Complexity: O(log(largest)) per number of steps. Source: Davis and Knuth (1970); chapter
    ``gallery/dragon``.

    >>> dragon_points(torch.arange(5))
    tensor([[0, 0],
            [1, 0],
            [1, 1],
            [0, 1],
            [0, 2]])
    """
    step = as_integers(step, "step", least=0)
    bits = int(step.max()).bit_length() if step.numel() else 0
    # the x of i**c; its y is the x of i**(c - 1)
    east = torch.tensor([1, 0, -1, 0], device=step.device)
    x, y, changes, last = (torch.zeros_like(step) for _ in range(4))
    for b in reversed(range(bits)):
        bit = step >> b & 1
        x, y = x - y, x + y  # times 1 + i: the curve so far, made of twice as many steps
        heading = changes + last
        x, y = x + bit * east[heading & 3], y + bit * east[heading - 1 & 3]
        changes, last = changes + (bit ^ last), bit
    return torch.stack([x, y], dim=-1)


def dragon_curve(order: int) -> Tensor:
    """The dragon curve of ``2**order`` steps, by unfolding: a copy, turned about its end.

    Args:
        order: number of folds, 0 to 30.

    Returns:
        (2**order + 1, 2) int64: its vertices, equal to ``dragon_points(torch.arange(2**order +
        1))``.

    Raises:
        ValueError: if ``order`` is outside [0, 30].

    Complexity: O(2**order). Source: chapter ``gallery/dragon``.

    >>> dragon_curve(2)[-1]
    tensor([0, 2])
    """
    order = as_int(order, "order", 0, _MAX_ORDER)
    point = torch.tensor([[0, 0], [1, 0]])
    for _ in range(order):
        x, y = (point[:-1].flip(0) - point[-1]).unbind(1)  # what lies behind the end, nearest first
        point = torch.cat([point, point[-1] + torch.stack([y, -x], dim=1)])  # turned by -90 degrees
    return point


def twin_points(order: int) -> Tensor:
    """The pairs of times at which the curve of ``2**order`` steps is at the same vertex.

    The curve uses no edge twice, so it is at no vertex three times.

    Args:
        order: number of folds, 0 to 30.

    Returns:
        (T, 2) int64: earlier and later time, ascending in the earlier.

    Raises:
        ValueError: if ``order`` is outside [0, 30].

    Complexity: O(n log n) for n = 2**order, by sorting. Source: Davis and Knuth (1970); chapter
    ``gallery/dragon``.

    >>> twin_points(5)
    tensor([[ 7, 11],
            [14, 22],
            [15, 19],
            [21, 25]])
    """
    point = dragon_curve(order)
    width = point[:, 1].max() - point[:, 1].min() + 1
    key, time = (point[:, 0] * width + point[:, 1]).sort(stable=True)
    first = (key[1:] == key[:-1]).nonzero().flatten()
    # a stable sort keeps the earlier first
    pair = torch.stack([time[first], time[first + 1]], dim=1)
    return pair[pair[:, 0].argsort()]


def dragon_cells(order: int) -> Tensor:
    """The dragon as a tile: the cell of each of the ``2**order`` steps.

    The middles of the plane's unit edges form a square grid, turned by 45 degrees. Turned back, and
    in its own units, the step from P to Q is the cell ((P + Q) * (1 - i) - (1 + i)) / 2, a complex
    whole number. No edge is used twice, so no two steps share a cell.

    Args:
        order: number of folds, 0 to 30.

    Returns:
        (2**order, 2) int64, in the order of the steps.

    Raises:
        ValueError: if ``order`` is outside [0, 30].

    Complexity: O(2**order). Source: chapter ``gallery/dragon``.

    >>> dragon_cells(2)
    tensor([[ 0, -1],
            [ 1, -1],
            [ 1,  0],
            [ 1,  1]])
    """
    point = dragon_curve(order)
    x, y = (point[1:] + point[:-1]).unbind(1)  # one odd, one even
    return torch.stack([x + y - 1, y - x - 1], dim=1) // 2


def dragon_boundary(order: int) -> Tensor:
    """The cells of the tile that lack one of their four neighbours.

    Their number grows by 1.69562 per order, the root of x**3 - x**2 - 2, while lengths grow by
    sqrt(2): the dimension of the boundary is 2 log2(1.69562) = 1.52363.

    Args:
        order: number of folds, 0 to 30.

    Returns:
        (P, 2) int64, sorted by the first coordinate, then the second; cells as in `dragon_cells`.

    Raises:
        ValueError: if ``order`` is outside [0, 30].

    Complexity: O(2**order) time and memory. Source: Chang and Zhang (1999); chapter
    ``gallery/dragon``.

    >>> [len(dragon_boundary(order)) for order in range(9)]
    [1, 2, 4, 8, 16, 30, 56, 102, 180]
    """
    cell = dragon_cells(order)
    low = cell.amin(0)
    row, column = (cell - low + 1).unbind(1)
    taken = torch.zeros((cell.amax(0) - low + 3).tolist(), dtype=torch.bool)  # with an empty rim
    taken[row, column] = True
    inner = taken[:-2, 1:-1] & taken[2:, 1:-1] & taken[1:-1, :-2] & taken[1:-1, 2:]
    return (taken[1:-1, 1:-1] & ~inner).nonzero() + low
