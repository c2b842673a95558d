"""The specification of every fast algorithm, written to be read: loops over rows, in float64.

Each function gives the weight of *every* row for one query at position x (in rows, 0 <= x <= n - 1)
and costs O(n) or more; the tests hold the library's own code to it. ``observed`` is a sequence of
n flags, True where a row is there. None is returned where no row within reach is observed.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "bspline_weight",
    "dense_weights",
    "dragon_weights",
    "hilbert_weights",
    "julia_distances",
    "julia_weights",
    "ladder_weights",
    "multilevel_weights",
    "pool",
]

Flags = Sequence[bool] | Tensor | None
Kernel = Callable[[Tensor, int], Tensor]  # (distances in samples, n) -> values


def bspline_weight(u: float) -> float:
    """The cubic B-spline at distance u, by its two pieces: 2/3 at 0, and 0 from 2 on.

    It is what four neighbouring points of a grid weigh around a position. Source: de Boor (1978).

    >>> [round(6 * bspline_weight(u), 9) for u in (0, -1, 2)]
    [4.0, 1.0, 0.0]
    """
    u = abs(u)
    return 2 / 3 - u**2 + u**3 / 2 if u < 1 else max(2 - u, 0.0) ** 3 / 6


def dense_weights(x: float, n: int, kernel: Kernel, observed: Flags = None) -> Tensor:
    """Nadaraya-Watson: the kernel of every row's distance, over their sum.

    (n,) float64. `DenseAttention` reads with these; every other pattern is compared with them.

    >>> dense_weights(0.5, 2, lambda d, n: 1 / (1 + d**2))
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    weights = torch.zeros(n, dtype=torch.float64)
    for row in range(n):
        if _there(observed, row):
            weights[row] = kernel(torch.tensor(x - row, dtype=torch.float64), n)
    return weights / weights.sum()


def ladder_weights(
    x: float,
    n: int,
    logits: Tensor,
    observed: Flags = None,
    *,
    pooled: bool = False,
    causal: bool = False,
) -> Tensor | None:
    """The ladder: level k spreads its share by a B-spline over every 2^k-th row, or over cells.

    (n,) float64, for one logit a level. Pooled, a cell's weight goes evenly to its rows. Weights
    that fall on missing rows, or off the end, go to the others. Causal: cells stand at their last
    rows, two widths later, and rows before the first one observed are copies of it on level 0.
    Source: ``start/ladder``.

    >>> ladder_weights(1.0, 4, torch.zeros(2))  # rows 0, 1, 2 of level 0, and 0, 2 of level 1
    tensor([0.3298, 0.3404, 0.3298, 0.0000], dtype=torch.float64)
    """
    weights, shares = torch.zeros(n, dtype=torch.float64), logits.double().softmax(0)
    for level, share in enumerate(shares.tolist()):
        width = 2**level
        for row in range(n):
            start = row // width * width
            if causal:
                sampled, at = start + width - 1, start + width - 1 + 2 * width
            else:
                sampled, at = start, start + (width - 1) / 2 if pooled else start
            counts = 1 / width if pooled else float(row == sampled)
            if _there(observed, row):
                weights[row] += share * counts * bspline_weight((x - at) / width)
    first = next((row for row in range(n) if _there(observed, row)), n)
    if causal and first <= x:
        for row in range(first - 4, first):
            weights[first] += float(logits.double().softmax(0)[0]) * bspline_weight(x - row - 2)
    return weights / weights.sum() if weights.sum() > 0 else None


def multilevel_weights(
    x: float, n: int, kernel: Kernel, cells: int, expansion: int = 0, observed: Flags = None
) -> Tensor:
    """Multilevel summation: every cell of every level, by its part k_l of the kernel.

    (n,) float64. Level l is cut into cells of 2^l rows. A row weighs k_l at its cell's centroid or,
    with expansion 1, what the tangent there gives, faded out where tangents outweigh with gaps.

    >>> multilevel_weights(0.5, 2, lambda d, n: 1 / (1 + d**2), cells=4)  # all near: dense
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    top = 0
    while cells * 2**top < n:
        top += 1
    weights, tilts = torch.zeros(2, n, dtype=torch.float64)
    moments = []  # what they weigh, times the length on which a cell's rows lie
    for level in range(top + 1):
        width = 2**level
        for start in range(0, n, width):
            rows = [r for r in range(start, min(start + width, n)) if _there(observed, r)]
            if not rows:
                continue
            centroid = sum(rows) / len(rows)
            d = torch.tensor(x - centroid, dtype=torch.float64, requires_grad=True)
            part = kernel(d, n) * _level_share(d, level, top, cells)
            (slope,) = torch.autograd.grad(part, d)
            for row in rows:
                weights[row] += part.detach()
                tilts[row] -= slope * (row - centroid)
            if expansion and width > 1:
                moments.append(float(slope) * len(rows) * (width - 1))
    total = weights.sum()
    if not expansion:
        return weights / total
    if all(_there(observed, row) for row in range(n)):
        return (weights + tilts) / total
    size = sum(abs(moment) for moment in moments) / total
    return (weights + _smooth_step(size / 2) * tilts) / total


def dragon_weights(
    x: float,
    n: int,
    logits: Tensor,
    observed: Flags = None,
    *,
    signed: bool = False,
) -> Tensor | None:
    """The dragon: row i - 1 is crease i = odd 2^k, and a level's creases lie 2^(k+1) apart.

    (n,) float64, for one logit a level; creases of a level without a logit weigh nothing. Signed:
    the mean of the left creases (odd = 1 mod 4) minus that of the right. Source: Davis and Knuth.

    >>> dragon_weights(1.0, 3, torch.zeros(2))  # rows 0 and 2 are of level 0, row 1 of level 1
    tensor([0.2949, 0.4103, 0.2949], dtype=torch.float64)
    """
    shares = logits.double().softmax(0).tolist()
    left, right = torch.zeros(2, n, dtype=torch.float64)
    for row in range(n):
        level, odd = 0, row + 1
        while odd % 2 == 0:
            level, odd = level + 1, odd // 2
        if level < len(shares) and _there(observed, row):
            weight = shares[level] * bspline_weight((x - row) / 2 ** (level + 1))
            (left if not signed or odd % 4 == 1 else right)[row] = weight
    if signed and n < 3:  # nothing turns right
        return torch.zeros(n, dtype=torch.float64)
    if left.sum() == 0 or (signed and right.sum() == 0):
        return None
    return left / left.sum() - right / right.sum() if signed else left / left.sum()


def hilbert_weights(
    x: float,
    cells: Sequence[tuple[int, int]],
    lengthscale: float,
    exponent: float | None = None,
    observed: Flags = None,
) -> Tensor | None:
    """The Hilbert window: every row's cell, by two B-splines of its distance in the plane.

    (n,) float64, for the cell (column, row) of each of n rows. The query stands where the B-spline
    of its four nearest cells is; beyond an end, a cell is twice the end less its mirror image.

    >>> hilbert_weights(0.0, [(0, 0), (0, 1), (1, 1), (1, 0)], lengthscale=1.0)
    tensor([0.6400, 0.1600, 0.0400, 0.1600], dtype=torch.float64)
    """
    last = len(cells) - 1
    at = [0.0, 0.0]
    for row in range(math.floor(x) - 1, math.floor(x) + 3):
        end = min(max(row, 0), last)
        mirror = min(max(2 * end - row, 0), last)
        for axis in (0, 1):
            here = cells[end][axis] if row == end else 2 * cells[end][axis] - cells[mirror][axis]
            at[axis] += bspline_weight(x - row) * here
    weights = torch.zeros(len(cells), dtype=torch.float64)
    for row, (i, j) in enumerate(cells):
        if _there(observed, row):
            near = [bspline_weight((p - c) / lengthscale) for p, c in zip(at, (i, j), strict=True)]
            decay = 1.0 if exponent is None else (1 + (x - row) ** 2) ** (-exponent / 2)
            weights[row] = near[0] * near[1] * decay
    return weights / weights.sum() if weights.sum() > 0 else None


def julia_distances(c: float, n: int) -> list[int]:
    """The distances that the Julia reader reads: whole numbers within 1/2 of the dust.

    The real Julia set of z^2 + c on [-r, r], its tip r laid on 0 and -r on n' - 1, where n' is n
    rounded up to a power of two. Ascending.
    Source: Fatou and Julia; chapter ``gallery/julia``.

    >>> julia_distances(-6.0, 64)
    [0, 2, 10, 11, 13, 50, 52, 53, 61, 63]
    """
    last = 2 ** math.ceil(math.log2(n)) - 1
    if last == 0:
        return [0]
    r = (1 + math.sqrt(1 - 4 * c)) / 2
    row = 2 * r / last
    # the tip is r rounded: do not miss it
    return [
        o for o in range(last + 1) if _meets(r - (o + 0.5) * row, r - (o - 0.5) * row + 1e-14, c)
    ]


def julia_weights(
    x: float, n: int, c: float, kernel: Callable[[int], float], observed: Flags = None
) -> Tensor | None:
    """The Julia reader: every offset o, either way, by k(o) and a B-spline around x + o.

    (n,) float64. ``kernel`` takes the offset, a whole number, to its weight.

    >>> julia_weights(0.0, 2, -6.0, lambda o: 1.0)
    tensor([0.5455, 0.4545], dtype=torch.float64)
    """
    weights = torch.zeros(n, dtype=torch.float64)
    for o in {sign * o for o in julia_distances(c, n) for sign in (-1, 1)}:
        for row in range(math.floor(x) + o - 2, math.floor(x) + o + 4):
            if 0 <= row < n and _there(observed, row):
                weights[row] += kernel(o) * bspline_weight(x + o - row)
    return weights / weights.sum() if weights.sum() > 0 else None


def pool(
    values: Tensor, positions: Tensor, observed: Tensor, n: int, levels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pyramid of one series (N, H), a node at a time: means, first moments, counts, centroids.

    Packed, level 0 first. A row at a position p belongs to the node of level 0 that p rounds to; a
    first moment is the mean of (position - centroid) value, in widths of the node.

    >>> values, there = torch.tensor([[1.0], [2.0], [4.0]]).double(), torch.ones(3).bool()
    >>> pool(values, torch.arange(3).double(), there, 3, 2)[0].flatten()
    tensor([1.0000, 2.0000, 4.0000, 1.5000, 4.0000], dtype=torch.float64)
    """
    nodes = []
    place = (positions + 0.5).floor().clamp(0, n - 1)
    for level in range(levels):
        width = 2**level
        for start in range(0, n, width):
            inside = observed & (place >= start) & (place < start + width)
            count = int(inside.sum())
            zero = torch.zeros(values.shape[1], dtype=torch.float64)
            centroid = positions[inside].mean() if count else torch.tensor(0.0)
            mean = values[inside].mean(0) if count else zero
            lag = (positions[inside] - centroid)[:, None]
            moment = (lag * values[inside]).mean(0) / width if count else zero
            nodes.append((mean, moment, torch.tensor(count), centroid.double()))
    mean, moment, count, centroid = (torch.stack(part) for part in zip(*nodes, strict=True))
    return mean, moment, count, centroid


def _there(observed: Flags, row: int) -> bool:
    return observed is None or bool(observed[row])


def _smooth_step(u: Tensor) -> Tensor:
    """1 for |u| <= 1/2, 0 for |u| >= 1, a polynomial of degree seven between."""
    s = (2 * u.abs() - 1).clamp(0, 1)
    return 1 - 35 * s**4 + 84 * s**5 - 70 * s**6 + 20 * s**7


def _level_share(d: Tensor, level: int, top: int, cells: int) -> Tensor:
    """Which part of the kernel level l reads at distance d: the parts of all levels sum to 1."""
    outer = _smooth_step(d / (cells * 2**level)) if level < top else torch.ones_like(d)
    return outer - _smooth_step(d / (cells * 2 ** (level - 1))) if level else outer


def _meets(a: float, b: float, c: float) -> bool:
    """Does [a, b] hold a point of the real Julia set? Follow it until it holds an end of a piece.

    An interval without an end lies on one side of 0 altogether, so its image is the interval
    between the images; one outside [-r, r], or in the gap (-g, g), is lost.
    """
    r = (1 + math.sqrt(1 - 4 * c)) / 2
    g = math.sqrt(-c - r)
    while True:
        if any(a <= end <= b for end in (-r, -g, g, r)):  # these go to r, which stays
            return True
        if b < -r or a > r or -g < a <= b < g:
            return False
        a, b = sorted((a * a + c, b * b + c))


# Self-attention.
