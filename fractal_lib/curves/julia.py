"""Julia sets of z^2 + c: how long a point stays, and the dust that is left on the line for real c <
-2.

Chapter ``gallery/julia``.
"""

import math

import numpy as np
import torch
from torch import Tensor

from fractal_lib.checks import as_int

__all__ = [
    "escape_radius",
    "escape_time",
    "julia_dimension",
    "julia_intervals",
    "julia_itineraries",
    "julia_points",
    "julia_set_attention",
]

Values = Tensor | np.ndarray


def escape_time(z: Values, c: complex | Values, max_iter: int = 256, radius: float = 2.0) -> Values:
    """Share of ``max_iter`` rounds of ``z <- z^2 + c`` that each point survives.

    A point is frozen for good as soon as ``|z| > radius``, so nothing overflows and no result is
    NaN, however far out a point starts. Where ``|c| <= 2`` the radius 2 is right: further out,
    ``|z^2 + c| > |z|`` and no point comes back. For larger c pass ``escape_radius(c)``;
    `julia_set_attention` does so by itself.

    Args:
        z: starting points, complex, float or integer, of any shape; finite. A tensor, an array, or
            (taken as tensors) lists, numbers and pandas.
        c: one number, or a tensor or array that broadcasts with ``z``; finite.
        max_iter: rounds, at least 1.
        radius: where a point is given up, positive.

    Returns:
        Tensor (on the device of ``z``) or array, as ``z`` is, of the broadcast shape, real, in [0,
        1] by steps of ``1 / max_iter``; 0 for a point that starts outside. Its dtype is the real
        one of ``z`` (float32 for complex64; the default float for integers), and the rounds are
        computed in it. The same bits for ``z`` and ``-z``. It
        carries no gradient: as a function of z it is piecewise constant.

    Raises:
        TypeError: if ``z`` is not of numbers.
        ValueError: if ``z`` or ``c`` is not finite, ``max_iter < 1`` or ``radius`` is not positive.

    Complexity: O(points still inside) a round, O(max_iter * points) at worst; one synchronisation a
    round on a GPU. Source: Fatou and Julia (1917-1918); chapter ``gallery/julia``.

    >>> escape_time(torch.tensor([0.0, 1.5, 2.0, 1e30]), c=-1, max_iter=4)
    tensor([1., 1., 0., 0.])
    >>> escape_time(np.array([0j, 1 + 0j]), c=1j, max_iter=4)
    array([1.  , 0.25])
    """
    max_iter = as_int(max_iter, "max_iter")
    if max_iter < 1 or not 0 < radius < math.inf:
        raise ValueError(
            f"expected max_iter >= 1 and 0 < radius < inf, got max_iter={max_iter}, radius={radius}"
        )
    points = _tensor(z, "z")
    dtype = (
        points.dtype
        if points.dtype.is_floating_point or points.dtype.is_complex
        else _default_float(z)
    )
    dtype = dtype.to_real()
    shift = _tensor(c, "c").to(points.device)
    one_c = shift.numel() == 1
    shape = torch.broadcast_shapes(points.shape, shift.shape)
    points, shift = (
        points.detach().expand(shape),
        shift.detach().reshape(()) if one_c else shift.detach().expand(shape),
    )

    # Real and imaginary parts apart: each step is rounded alike for z and -z, in any layout and on
    # any device.
    x, y = _parts(points, dtype)
    a, b = _parts(shift, dtype)
    # where each point that is still inside came from
    place = torch.arange(x.numel(), device=x.device)
    rounds = torch.full_like(place, max_iter)
    for done in range(max_iter + 1):
        inside = x * x + y * y <= radius * radius  # False for an overflow to inf too
        if not bool(inside.all()):  # the frozen leave, and take along the rounds that they survived
            rounds[place[~inside]] = max(done - 1, 0)
            keep = inside.nonzero().squeeze(1)
            x, y, place = x[keep], y[keep], place[keep]
            a, b = (a, b) if one_c else (a[keep], b[keep])
        if len(place) == 0:
            break
        x, y = x * x - y * y + a, 2 * x * y + b
    share = (rounds.double() / max_iter).to(dtype).reshape(shape)
    return share.numpy() if isinstance(z, np.ndarray) else share


def julia_set_attention(z: Values, c: complex, max_iter: int = 256) -> Values:
    """The mask of the original sketch: the share of rounds for which each point stays, with the
    radius that c needs.

    Real where the sketch's is complex, and free of its overflows. The sketch does not count a point
    at exactly ``|z| = 2``, which for ``c = -2`` belongs to the set; this does.

    Args:
        z: starting points, tensor or array of any shape; finite.
        c: one finite number.
        max_iter: rounds, at least 1.

    Returns:
        As `escape_time` does: real, in [0, 1], of the shape of ``z``.

    Raises:
        TypeError, ValueError: as `escape_time` does.

    Complexity and source: as `escape_time`; chapter ``gallery/julia``.

    >>> julia_set_attention(torch.tensor([0j, 1.2 + 0j, 1j, -2 + 0j]), c=-1, max_iter=10)
    tensor([1.0000, 1.0000, 0.1000, 0.0000])
    """
    return escape_time(z, c, max_iter, radius=max(2.0, escape_radius(c)))


def escape_radius(c: complex) -> float:
    """The least radius outside of which every ``|z|`` grows under ``z^2 + c``, for all c of one
    size.

    It is the positive root of ``r^2 - r - |c|``; beyond it ``|z^2 + c| >= |z|^2 - |c| > |z|``. It
    is at most 2 exactly when ``|c| <= 2``. For real ``c <= -2`` it is also a fixed point, the
    outermost point of the Julia set.

    Raises:
        ValueError: if ``c`` is not finite.

    Source: Falconer, Fractal Geometry (2014), chapter 14; chapter ``gallery/julia``.

    >>> escape_radius(-6), escape_radius(2j)
    (3.0, 2.0)
    """
    size = abs(complex(c))
    if not math.isfinite(size):
        raise ValueError(f"c must be finite, got {c}")
    return (1 + math.sqrt(1 + 4 * size)) / 2


def julia_points(c: float, levels: int) -> Tensor:
    """The ``2**levels`` points of the real Julia set that reach its outermost point after
    ``levels`` rounds.

    By inverse iteration: the points of one level are ``+-sqrt(p - c)`` of those of the level
    before, from the fixed point ``escape_radius(c)`` on. Each level holds the one before, and their
    union is dense in the set.

    Args:
        c: real, at most -2.
        levels: 0 to 24.

    Returns:
        (2**levels,) float64, ascending, in [-r, r] with ``r = escape_radius(c)``. For ``c = -2``,
        where neighbouring intervals touch, all but the two outermost occur twice.

    Raises:
        ValueError: if ``c`` is not a finite real number <= -2, or ``levels`` outside [0, 24].

    Complexity: O(2**levels), without a sort. Source: chapter ``gallery/julia``.

    >>> julia_points(-6, 2)
    tensor([-3.0000, -1.7321,  1.7321,  3.0000], dtype=torch.float64)
    """
    c = _real(c)
    _check_levels(levels)
    top = escape_radius(c)
    points = torch.tensor([top], dtype=torch.float64)
    for _ in range(levels):
        # the clamps undo a rounding, no more
        root = (points - c).clamp(min=0).sqrt().clamp(max=top)
        points = torch.cat([-root.flip(0), root])
    return points


def julia_intervals(c: float, levels: int) -> Tensor:
    """The ``2**levels`` intervals of points that stay in ``[-r, r]`` for ``levels`` rounds, ``r =
    escape_radius(c)``.

    They play the part of the pieces of the Cantor set: each holds two of the next level, with a gap
    between.

    Args:
        c: real, at most -2 (at -2 the gaps are empty).
        levels: 0 to 23.

    Returns:
        (2**levels, 2) float64: the left and right end of each, ascending. All ends belong to the
        Julia set.

    Raises:
        ValueError: as `julia_points` does.

    Complexity: O(2**levels). Source: chapter ``gallery/julia``.

    >>> julia_intervals(-6, 1)
    tensor([[-3.0000, -1.7321],
            [ 1.7321,  3.0000]], dtype=torch.float64)
    """
    _check_levels(levels, most=23)
    # an end goes to -r or r, and so to r one round later
    return julia_points(c, levels + 1).reshape(-1, 2)


def julia_itineraries(levels: int) -> Tensor:
    """On which side of 0 the points of each interval of `julia_intervals` are, round after round.

    The same for every ``c < -2``. Read as bits they are a Gray code: neighbours differ in one
    place.

    Args:
        levels: 0 to 24.

    Returns:
        (2**levels, levels) int64 of -1 and 1, in the order of the intervals.

    Raises:
        ValueError: if ``levels`` is outside [0, 24].

    Complexity: O(levels * 2**levels). Source: chapter ``gallery/julia``.

    >>> julia_itineraries(2)
    tensor([[-1,  1],
            [-1, -1],
            [ 1, -1],
            [ 1,  1]])
    """
    _check_levels(levels)
    index = torch.arange(2**levels)
    # left of 0 the map turns the order around, which flips every later bit
    gray = ~(index ^ (index >> 1))
    sign = (gray[:, None] >> torch.arange(levels - 1, -1, -1)) % 2 * 2 - 1
    if levels:
        sign[:, 0] = -sign[:, 0]  # the first is the plain bit
    return sign


def julia_dimension(c: float, levels: int = 16) -> float:
    """Dimension (Hausdorff's and box-counting, which agree) of the real Julia set: 1 at c = -2,
    falling to 0.

    Bowen's formula: the dimension is the s at which ``Z_n(s) = sum |(f^n)'|^-s`` over the 2^n
    points that f^n takes to one point neither grows nor shrinks with n. Solved here for ``Z_n(s) =
    Z_(n-1)(s)`` at n = ``levels``, by bisection; the ratio gives up the constant that
    ``Z_n(s)^(1/n)`` would drag along.

    Args:
        c: real, at most -2.
        levels: n, 2 to 24.

    Returns:
        The dimension. At 16 levels within 4e-6 for every c, 1e-9 for c <= -2.1 and 1e-12 for c <=
        -2.5 (``tests/curves/test_julia.py`` compares with a second, unlike method).

    Raises:
        ValueError: if ``c`` is not a finite real number <= -2, or ``levels`` outside [2, 24].

    Complexity: O(2**levels). Source: Bowen (1979), and Ruelle (1982) for Julia sets; chapter
    ``gallery/julia``.

    >>> round(julia_dimension(-6), 9)
    0.4518375
    """
    c = _real(c)
    _check_levels(levels, least=2)
    if c == -2:
        return 1.0  # the whole interval [-2, 2], under x = 2 cos(angle)
    # what goes to 0; its mirror image counts alike
    root = torch.tensor([math.sqrt(-c)], dtype=torch.float64)
    log_slope = shorter = torch.log(2 * root)  # log |(f^n)'|
    for _ in range(levels - 1):
        shorter = log_slope
        root = torch.cat([root - c, -root - c]).sqrt()
        log_slope = torch.log(2 * root) + shorter.repeat(2)

    low, high = 0.0, 1.0
    for _ in range(52):
        s = (low + high) / 2
        # sums of 2^n and 2^(n-1) terms
        grows = 2 * torch.exp(-s * log_slope).mean() > torch.exp(-s * shorter).mean()
        low, high = (s, high) if grows else (low, s)
    return (low + high) / 2


def _tensor(values: complex | Values, name: str) -> Tensor:
    """The values as a finite tensor of numbers."""
    if hasattr(values, "to_numpy"):  # pandas
        values = values.to_numpy()  # type: ignore[union-attr]
    elif isinstance(values, list | tuple):
        values = torch.as_tensor(values)
    elif not isinstance(values, Tensor | np.ndarray | np.number | int | float | complex):
        raise TypeError(
            f"{name} must be a tensor, an array or numbers, got {type(values).__name__}"
        )
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "iufc":
            raise TypeError(f"{name} must hold numbers, got dtype {values.dtype}")
        # a copy: torch takes no negative strides
        values = values.astype(values.dtype.newbyteorder("="))
    elif not isinstance(values, Tensor):
        values = torch.tensor(complex(values), dtype=torch.complex128)
    tensor = torch.as_tensor(values)
    if tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold numbers, got dtype torch.bool")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name} must be finite, got {int((~torch.isfinite(tensor)).sum())} values that are not"
        )
    return tensor


def _default_float(z: Values) -> torch.dtype:
    return torch.get_default_dtype() if isinstance(z, Tensor) else torch.float64


def _parts(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Real and imaginary part, flat, in one dtype."""
    flat = values.reshape(-1)
    real = (flat.real if flat.is_complex() else flat).to(dtype)
    return real, flat.imag.to(dtype) if flat.is_complex() else torch.zeros_like(real)


def _real(c: float) -> float:
    value = complex(c)
    if value.imag or not -math.inf < value.real <= -2:
        raise ValueError(f"c must be a finite real number <= -2, got {c}")
    return value.real


def _check_levels(levels: int, least: int = 0, most: int = 24) -> None:
    levels = as_int(levels, "levels")
    if not least <= levels <= most:
        raise ValueError(f"levels must lie in [{least}, {most}], got {levels}")
