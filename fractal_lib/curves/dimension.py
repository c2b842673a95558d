"""Box counting: how many boxes a set needs at each size, and the power law through the counts.

Chapter ``gallery/dimension``.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from fractal_lib.checks import as_int

__all__ = ["BoxDimension", "PowerFit", "box_counting_dimension", "count_boxes", "fit_power"]

# the largest automatic box is the extent over this: a larger one sees the outline alone
COARSEST = 8
POINTS_A_BOX = 8  # with fewer points a box, on average, one counts the points and no longer the set
MOST_AXES = 16  # no cloud of points fills the boxes of more: it is an image
MOST_SIZES = 60  # a few heaps of points, far apart, would else be halved until float64 ends


class PowerFit(NamedTuple):
    """A power law y = constant * x**exponent.

    Attributes:
        exponent: slope of the least squares line through log y against log x.
        standard_error: what the scatter around that line says of the slope, were it independent
            from point to point. Counts of a fractal wave and bend instead, and for them it is too
            small.
        spread: largest departure from ``exponent`` of a slope fitted to a third of the points (at
            least three) in a row. It sees waves and bends.
        constant: the factor in front.
    """

    exponent: float
    standard_error: float
    spread: float
    constant: float


class BoxDimension(NamedTuple):
    """What `box_counting_dimension` measured.

    Attributes:
        dimension: slope of log count, averaged over the grids, against -log size.
        uncertainty: ``spread + 2 * standard_error``. An indication, and no bound.
        standard_error: of that slope, see `PowerFit`.
        spread: largest departure from it of the slopes over a third of the sizes, and of the slope
            through the fewest boxes of any grid.
        sizes: (S,) edges of the boxes, descending; int64 for integer points, else float64.
        counts: (S, offsets) int64, boxes that hold a point, one column a grid.
    """

    dimension: float
    uncertainty: float
    standard_error: float
    spread: float
    sizes: np.ndarray
    counts: np.ndarray


def fit_power(x, y) -> PowerFit:
    """The power law through some points, by least squares on their logarithms.

    Args:
        x: (S,) positive numbers, ascending or descending, at least three.
        y: (S,) positive numbers.

    Returns:
        `PowerFit`.

    Raises:
        ValueError: for other shapes, repeats or disorder in x, or a number that is not positive and
            finite.

    Complexity: O(S**2). Source: chapter ``gallery/dimension``.

    >>> n = 2.0 ** np.arange(4, 21)
    >>> fit = fit_power(n, 3 * n**0.5)
    >>> round(fit.exponent, 9), round(fit.constant, 9)
    (0.5, 3.0)
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3:
        raise ValueError(
            f"expected two vectors of one length, at least 3, got shapes {x.shape} and {y.shape}"
        )
    if not all(np.isfinite(a).all() and (a > 0).all() for a in (x, y)):
        raise ValueError("a power law goes through finite positive numbers alone, got others")
    if not ((np.diff(x) > 0).all() or (np.diff(x) < 0).all()):
        raise ValueError("x must ascend or descend without repeats")
    u, v = np.log(x), np.log(y)
    slope, height, error = _line(u, v)
    third = max(-(-len(u) // 3), 3)
    parts = [_line(u[k : k + third], v[k : k + third])[0] for k in range(len(u) - third + 1)]
    return PowerFit(slope, error, max(abs(part - slope) for part in parts), float(np.exp(height)))


def count_boxes(points, size, shift=0) -> int:
    """Boxes of a grid that hold at least one point.

    A point p lies in box floor((p + shift) / size), one number an axis. If points, size and shift
    are integers, so is the arithmetic, and the count is exact. A float that belongs on the very
    edge of a box may be rounded to either side of it.

    Args:
        points: (N, D), or (N,) for points on a line: an array, list or tensor of integers or
            floats; or a bool image, whose points are the cells that are True.
        size: edge of a box, positive.
        shift: a number, or (D,): how far the points are moved before they are counted.

    Returns:
        The number of occupied boxes, 0 to N.

    Raises:
        TypeError: for points that are not real numbers.
        ValueError: for another shape, NaN or infinity, a size that is not positive, or boxes so
            small that their number does not fit int64.

    Complexity: O(N D), or O(N D log N) where the grid has many more boxes than there are points.
    Source: chapter ``gallery/dimension``.

    >>> count_boxes([0, 2, 6, 8, 18, 20, 24, 26], size=3)  # the Cantor set after three cuts
    4
    """
    points = _points(points)
    if not (np.isfinite(size) and size > 0):
        raise ValueError(f"size must be a positive number, got {size}")
    return _distinct(_boxes(points, size, np.asarray(shift)))[0]


def box_counting_dimension(points, sizes=None, offsets: int = 8) -> BoxDimension:
    """The box-counting dimension of a cloud of points, with an uncertainty.

    At each size the boxes are counted on several shifted grids. The line goes through the mean of
    log count over the grids: no size is then favoured because its grid happens to fit the set.

    Args:
        points: (N, D), or (N,) for points on a line: an array or a tensor on any device, integers
            or floats; or a bool image, whose points are the cells that are True. Repeats do not
            matter. Integers are cells of a grid, each one unit wide.
        sizes: edges of the boxes in the units of the points, positive, at least three different
            ones; integers if the points are. By default the extent over 8, 16, 32, ... as long as a
            box
            holds 8 distinct points on average: smaller ones would see single points. For a set
            similar to itself under another ratio than 2, sizes in that ratio measure better.
        offsets: number of grids, at least 1. The first is aligned with the smallest coordinates;
            for a set known to fit it (a square, an interval) 1 is best, since a shifted grid cuts
            the rim.

    Returns:
        `BoxDimension`. It speaks of the sizes that were counted: N points are at last N points,
        whose dimension is 0.

    Raises:
        TypeError: for points that are not real numbers.
        ValueError: for NaN or infinity, another shape, fewer than two distinct points, sizes that
            are not three positive numbers, or points too few to choose sizes from.

    Complexity: O(offsets S N D), times log N where the grid has many more boxes than there are
    points. Source: Falconer, Fractal Geometry (2014), chapter 2; chapter ``gallery/dimension``.

    >>> from fractal_lib.curves.cantor import cantor_indices
    >>> found = box_counting_dimension(cantor_indices(12), sizes=3 ** np.arange(2, 10), offsets=1)
    >>> round(found.dimension, 9), round(float(np.log(2) / np.log(3)), 9)
    (0.630929754, 0.630929754)
    """
    points = _points(points)
    n, first = _distinct(points)
    if n < 2:
        raise ValueError(f"expected at least two distinct points, got {n}")
    offsets = as_int(offsets, "offsets", least=1)
    points = points[first]
    points = points - points.min(axis=0)
    whole = points.dtype.kind == "i"
    extent = points.max()
    # the last point belongs inside the last box: an integer is a cell, a float is nudged
    extent = int(extent) + 1 if whole else float(extent) * (1 + 1e-9)
    share = _shares(offsets, points.shape[1])  # (offsets, D)

    def count(size):  # (offsets,)
        shift = np.floor(share * size).astype(np.int64) if whole else share * size
        return [_distinct(_boxes(points, size, s))[0] for s in shift]

    if sizes is None:
        sizes, counts = _choose(extent, n, count, whole)
    else:
        sizes = _sizes(sizes, whole)
        counts = [count(size) for size in sizes.tolist()]
    counts = np.array(counts)  # (S, offsets)
    fit = fit_power(1 / sizes, np.exp(np.log(counts).mean(axis=1)))
    fewest = fit_power(1 / sizes, counts.min(axis=1)).exponent
    spread = max(fit.spread, abs(fewest - fit.exponent))
    uncertainty = spread + 2 * fit.standard_error
    return BoxDimension(fit.exponent, uncertainty, fit.standard_error, spread, sizes, counts)


def _line(u: np.ndarray, v: np.ndarray) -> tuple[float, float, float]:
    """Slope and height at 0 of the least squares line through (u, v), and the slope's standard
    error.
    """
    du, dv = u - u.mean(), v - v.mean()
    slope = float(du @ dv / (du @ du))
    rest = dv - slope * du
    error = float(np.sqrt(rest @ rest / (len(u) - 2) / (du @ du)))
    return slope, float(v.mean() - slope * u.mean()), error


def _points(points) -> np.ndarray:
    """Points as (N, D), int64 or float64, checked; a bool image as its cells that are True."""
    if isinstance(points, Tensor):
        points = points.detach().cpu()
        points = (points.double() if points.is_floating_point() else points).numpy()
    points = np.asarray(points)
    if points.dtype.kind == "b":
        points = np.argwhere(points)
    if points.ndim not in (1, 2) or points.shape[1:] == (0,):
        raise ValueError(
            f"points must have shape (N, D) or (N,), with D at least 1, got {points.shape}"
        )
    if _is_picture(points):
        raise ValueError(
            f"expected points (N, D), a row each, got shape {points.shape} of {points.dtype}: of "
            "an image pass np.argwhere(image), or the image as bool; of (D, N) the transpose"
        )
    if points.dtype.kind not in "iuf":
        raise TypeError(f"points must be integers or floats, got {points.dtype}")
    if not np.isfinite(points).all():
        raise ValueError("points must be finite, got NaN or infinity")
    if (
        points.dtype.kind in "iu"
        and not -(2**61) < points.min(initial=0) <= points.max(initial=0) < 2**61
    ):
        raise ValueError("integer points must lie within 2**61 of 0")
    points = points.astype(np.float64 if points.dtype.kind == "f" else np.int64)
    return points if points.ndim == 2 else points[:, None]


def _is_picture(points: np.ndarray) -> bool:
    """More axes than points or than make sense, or an image of few columns in black and white."""
    if points.ndim != 2:
        return False
    n, d = points.shape
    two_tone = points.dtype == np.uint8 and np.isin(points, (0, points.max(initial=0))).all()
    return n > 0 and bool(d > max(n, 5) or d > MOST_AXES or (two_tone and d > 3))


def _sizes(sizes, whole: bool) -> np.ndarray:
    """Sizes as a descending vector, checked."""
    sizes = np.unique(np.asarray(sizes))[::-1]
    if (
        len(sizes) < 3
        or sizes.dtype.kind not in "iuf"
        or not (np.isfinite(sizes).all() and (sizes > 0).all())
    ):
        raise ValueError(
            f"sizes must be at least three different positive numbers, got {sizes.tolist()}"
        )
    if whole and (sizes != np.floor(sizes)).any():
        raise ValueError(
            "sizes must be integers, as the points are; pass the points as floats for others"
        )
    return sizes.astype(np.int64 if whole else np.float64)


def _choose(extent: float, n: int, count, whole: bool) -> tuple[np.ndarray, list]:
    """Sizes from extent / COARSEST down by halves while boxes hold enough of the n points; their
    counts.
    """
    sizes, counts = [], []
    for k in range(MOST_SIZES):
        size = extent / (COARSEST * 2**k)
        size = -int(-size // 1) if whole else size  # up to a whole number
        row = count(size)
        if size == 1 and whole or np.mean(row) * POINTS_A_BOX > n:
            break
        sizes.append(size)
        counts.append(row)
    if len(sizes) < 3:
        raise ValueError(f"{n} distinct points are too few to choose three sizes from; pass sizes=")
    return np.array(sizes), counts


def _shares(offsets: int, d: int) -> np.ndarray:
    """(offsets, d) shifts in boxes, in [0, 1): none, then evenly spread (the golden sequence in d
    axes).
    """
    root = 2.0
    for _ in range(60):  # to root**(d + 1) = root + 1, the golden ratio for d = 1
        root = (1 + root) ** (1 / (d + 1))
    return np.arange(offsets)[:, None] * root ** -np.arange(1.0, d + 1) % 1


def _boxes(points: np.ndarray, size, shift: np.ndarray) -> np.ndarray:
    """The box of each point: (N, D) int64."""
    if points.dtype.kind == "i" and isinstance(size, int | np.integer) and shift.dtype.kind == "i":
        return (points + shift) // size
    boxes = np.floor((points + shift) / size)
    if len(boxes) and np.abs(boxes).max() >= 2**62:
        raise ValueError(f"boxes of {size} are too small: their number does not fit int64")
    return boxes.astype(np.int64)


def _distinct(rows: np.ndarray) -> tuple[int, np.ndarray]:
    """How many different rows (N, D) has, and where one of each stands."""
    n = len(rows)
    key, total = np.zeros(n, dtype=np.int64), 1  # one integer a row, below total
    for column in rows.T:
        low, high = (column.min(), column.max()) if n else (0, 0)
        # floats, and what does not fit together, are numbered by rank: at most n of each are left
        if column.dtype.kind == "f" or total * (int(high) - int(low) + 1) >= 2**62:
            key, column = (np.unique(a, return_inverse=True)[1] for a in (key, column))
            total, low, high = int(key.max(initial=0)) + 1, 0, column.max(initial=0)
        span = int(high) - int(low) + 1
        key, total = key * span + (column - low), total * span
    if total <= 8 * n:  # a table of all boxes is quicker than sorting
        where = np.full(total, -1)
        where[key] = np.arange(n)
        where = where[where >= 0]
    else:
        where = np.unique(key, return_index=True)[1]
    return len(where), where
