"""Julia sets against a loop over Python's own numbers, their definition, and a second way to the
dimension.
"""

import cmath
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from fractal_lib.curves.julia import (
    escape_radius,
    escape_time,
    julia_dimension,
    julia_intervals,
    julia_itineraries,
    julia_points,
    julia_set_attention,
)

C = [0, -1, -1.3, -0.8 + 0.156j, -0.122561 + 0.744862j, 1j, 2, -2, -2.5, 3 - 4j]
REAL_C = [-2.0, -2.001, -2.1, -2.5, -3.75, -6.0, -100.0]


def survived(z, c, max_iter, radius=2.0):
    """One point, told as it is: the rounds after which it is still inside."""
    rounds = 0
    while rounds < max_iter and abs(z) <= radius:
        z = z * z + c
        rounds += abs(z) <= radius
    return rounds


def plane(n, dtype=torch.complex128, reach=2.0):
    # mirrored to the last bit
    axis = (2 * torch.arange(n, dtype=torch.float64) - (n - 1)) * (reach / (n - 1))
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.complex(x, y).to(dtype)


# ---- escape time
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize("c", C)
@pytest.mark.parametrize("radius", [0.7, 2.0, None])
def test_escape_time_is_the_loop(c, radius):
    z = plane(23) * 1.0137  # no point on the circle itself, where rounding would decide
    radius = radius or escape_radius(c) * 1.01
    expected = [[survived(p, c, 30, radius) / 30 for p in row] for row in z.tolist()]
    assert escape_time(z, c, 30, radius).tolist() == expected
    assert escape_time(z.numpy(), c, 30, radius).tolist() == expected


@pytest.mark.parametrize("c", [-0.8 + 0.156j, -0.122561 + 0.744862j, -2.5])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_million_points_for_a_thousand_rounds(c, dtype):
    share = julia_set_attention(plane(1000, dtype), c, 1000)
    assert share.dtype == dtype.to_real()
    assert torch.isfinite(share).all()
    assert 0 <= share.min() and share.max() <= 1
    assert torch.equal(share, share.flip(0, 1))  # z -> -z
    assert len(share.unique()) > 5  # it is a picture, not a constant


def test_more_rounds_never_bring_a_point_back():
    z = plane(60)
    before = torch.full(z.shape, 10**9)
    for rounds in (1, 2, 3, 10, 50):
        done = (escape_time(z, -0.8 + 0.156j, rounds) * rounds).round().long()
        gone = before < rounds - 1
        assert torch.equal(done[gone], before[gone])
        assert (done <= rounds).all()
        before = torch.where(done < rounds, done, 10**9)


def test_a_larger_radius_never_gives_up_sooner():
    z = plane(50, reach=3.0)
    shares = [escape_time(z, -2.5, 20, radius) for radius in (0.5, 1.0, 2.0, 2.2, 10.0)]
    assert all((b >= a).all() for a, b in zip(shares, shares[1:], strict=False))


@given(st.complex_numbers(max_magnitude=10), st.complex_numbers(max_magnitude=10))
def test_outside_the_escape_radius_points_grow(c, direction):
    z = (escape_radius(c) + 1e-9) * cmath.exp(1j * cmath.phase(direction))
    assert abs(z * z + c) > abs(z)
    # and no smaller radius will do: with c turned against z^2, the point on the circle stays on it
    edge = escape_radius(c)
    assert edge * edge - abs(c) == pytest.approx(edge)


def test_two_is_the_right_radius_up_to_two():
    assert escape_radius(2) == 2
    assert escape_radius(-2.1) > 2
    # a point of the set itself, outside 2: frozen at 2 it is lost, with its own radius it stays
    end = torch.tensor([escape_radius(-2.5)], dtype=torch.float64)
    assert escape_time(end, -2.5, 5).item() == 0
    assert julia_set_attention(end, -2.5, 5).item() == 1


@given(
    st.lists(st.complex_numbers(allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.complex_numbers(allow_nan=False, allow_infinity=False, max_magnitude=1e150),
    st.integers(1, 40),
)
def test_nothing_finite_gives_nan(points, c, rounds):
    z = torch.tensor(points, dtype=torch.complex128)
    share = escape_time(z, c, rounds)
    assert ((share >= 0) & (share <= 1)).all()
    assert torch.equal(share, escape_time(-z, c, rounds))
    assert torch.equal(share, (share * rounds).round() / rounds)
    mask = julia_set_attention(z, c, rounds)
    assert ((mask >= share) & (mask <= 1)).all()


def test_shapes_dtypes_and_kinds_are_kept():
    for dtype, wanted in [
        (torch.complex64, torch.float32),
        (torch.complex128, torch.float64),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.get_default_dtype()),
        (torch.float16, torch.float16),
    ]:
        for shape in [(), (0,), (3,), (2, 1, 4)]:
            share = escape_time(torch.ones(shape, dtype=dtype), -1, 5)
            assert (share.dtype, share.shape) == (wanted, torch.Size(shape))
            assert (share == 1).all()
    for dtype, wanted in [
        ("complex64", "float32"),
        ("float64", "float64"),
        ("int32", "float64"),
        (">c16", "float64"),
    ]:
        share = escape_time(np.ones((2, 3), dtype=dtype)[:, ::-1], -1, 5)
        assert isinstance(share, np.ndarray)
        assert (share.dtype, share.shape) == (np.dtype(wanted), (2, 3))
    z = torch.zeros(3, requires_grad=True)
    assert not escape_time(z, -1, 5).requires_grad
    kept = z.detach().clone()
    assert torch.equal(z, kept)  # the input is not written to


def test_c_may_be_a_plane_of_its_own():
    c = plane(31)
    share = escape_time(torch.zeros((), dtype=torch.complex128), c, 20)
    assert share.tolist() == [[survived(0j, v, 20) / 20 for v in row] for row in c.tolist()]


def test_the_mask_is_the_sketch_s_count_where_two_is_the_radius():
    z, c = plane(80, torch.complex128), -0.122561 + 0.744862j
    count, w = torch.zeros_like(z), z
    for _ in range(64):
        w = w**2 + c
        count[torch.abs(w) < 2] += 1
    assert torch.isnan(w.real).any()  # which `<` takes for outside
    assert count.is_complex()
    assert torch.equal(julia_set_attention(z, c, 64), count.real / 64)


def test_bad_points():
    with pytest.raises(TypeError, match="tensor, an array or numbers, got str"):
        escape_time("0", 0)
    with pytest.raises(TypeError, match="numbers, got dtype"):
        escape_time(np.array(["a"]), 0)
    with pytest.raises(TypeError, match=r"numbers, got dtype torch.bool"):
        escape_time(torch.tensor([True]), 0)
    for bad in (math.nan, math.inf, complex(0, math.inf)):
        with pytest.raises(ValueError, match="z must be finite, got 1"):
            escape_time(torch.tensor([0, bad]), 0)
        with pytest.raises(ValueError, match="c must be finite"):
            escape_time(torch.zeros(1), bad)
        with pytest.raises(ValueError, match="c must be finite"):
            julia_set_attention(torch.zeros(1), bad)
    with pytest.raises(ValueError, match="max_iter=0"):
        escape_time(torch.zeros(1), 0, 0)
    with pytest.raises(ValueError, match="radius=-1"):
        escape_time(torch.zeros(1), 0, 1, radius=-1)


# ---- the dust on the line
# --------------------------------------------------------------------------


@pytest.mark.parametrize("c", REAL_C)
def test_points_go_forward_level_by_level(c):
    top = escape_radius(c)
    for level in range(1, 11):
        points, before = julia_points(c, level), julia_points(c, level - 1)
        assert len(points) == 2**level
        assert (points.diff() > 0).all() or c == -2
        assert points.min() == -top and points.max() == top
        # f folds the level onto the one before, left half backwards: both halves hit every point
        # once
        image = points**2 + c
        tolerance = {"rtol": 0, "atol": 1e-14 * top * top}
        torch.testing.assert_close(image[2 ** (level - 1) :], before, **tolerance)
        torch.testing.assert_close(image[: 2 ** (level - 1)].flip(0), before, **tolerance)
        assert torch.equal(points, -points.flip(0))


@pytest.mark.parametrize("c", REAL_C)
def test_intervals_hold_what_stays(c):
    top = escape_radius(c)
    for level in range(7):
        ends = julia_intervals(c, level)
        assert ends.shape == (2**level, 2)
        assert (ends[:, 0] <= ends[:, 1]).all()
        inner = julia_intervals(c, level + 1).reshape(-1, 4)  # two in each, at its ends
        torch.testing.assert_close(inner[:, [0, 3]], ends, rtol=0, atol=1e-7)
        middle = inner[:, 1:3].mean(-1)
        inside, gap = ends.mean(-1), middle[inner[:, 2] - inner[:, 1] > 1e-3]
        if level:
            inside = ends[:, 0] + torch.tensor([[0.01], [0.5], [0.99]]) * (ends[:, 1] - ends[:, 0])
            assert (escape_time(inside, c, level, radius=top) == 1).all()
        if len(gap):
            assert (escape_time(gap, c, level + 1, radius=top) < 1).all()


@pytest.mark.parametrize("c", [-2.1, -2.5, -6.0])
def test_itineraries_say_where_the_points_go(c):
    for level in range(9):
        sign = julia_itineraries(level)
        assert sign.shape == (2**level, level)
        assert sorted(map(tuple, sign.tolist())) == sorted({*map(tuple, sign.tolist())})
        assert ((sign[1:] != sign[:-1]).sum(-1) == 1).all()  # a Gray code
        x = julia_intervals(c, level).mean(-1)
        for step in range(level):
            assert torch.equal(x.sign().long(), sign[:, step])
            x = x * x + c


@given(st.floats(-1e6, -2))
def test_the_set_is_in_its_bounds(c):
    points = julia_points(c, 8)
    assert (points.abs() <= escape_radius(c)).all()
    assert (points.diff() >= 0).all()
    assert torch.isfinite(points).all()


def test_minus_two_is_the_whole_interval():
    for level in range(1, 12):
        angle = (
            torch.arange(2**level, dtype=torch.float64).add(1).div(2).floor()
            * math.pi
            / 2 ** (level - 1)
        )
        torch.testing.assert_close(julia_points(-2, level), (-2 * angle.cos()), rtol=0, atol=1e-7)


# ---- dimension
# -------------------------------------------------------------------------------------


def collocated(c, nodes=400):
    """The dimension another way: the s at which Ruelle's transfer operator has the eigenvalue 1.

    (L g)(y) = (2x)^-s (g(x) + g(-x)), x = sqrt(y - c), acts on functions that are smooth on [-r,
    r]. Interpolate them at Chebyshev nodes, drawn towards the ends by a tanh, since for c near -2
    they steepen just outside.
    """
    top = escape_radius(c)
    draw = max(0.5 * math.log(2 * top / (-top - c)), 0.5)
    k = np.arange(nodes)
    u = np.cos(np.pi * (k + 0.5) / nodes)
    x = np.sqrt(top * np.tanh(draw * u) / np.tanh(draw) - c)
    v = np.clip(np.arctanh(np.clip(x / top, -1, 1) * np.tanh(draw)) / draw, -1, 1)

    def chebyshev(w):
        return np.cos(np.outer(np.arccos(w), k))

    both = np.linalg.solve(chebyshev(u).T, (chebyshev(v) + chebyshev(-v)).T).T

    def log_eigenvalue(s):
        matrix, g = (2 * x)[:, None] ** -s * both, np.ones(nodes)
        for _ in range(60):
            g = matrix @ (g / np.abs(g).max())
            size = np.abs(g).max()
        return math.log(size)

    return brentq(log_eigenvalue, 0.01, 1.1, xtol=1e-13)


@pytest.mark.parametrize(
    ("c", "within"),
    [
        (-2 - 1e-8, 4e-6),
        (-2.00001, 4e-6),
        (-2.001, 4e-6),
        (-2.1, 1e-9),
        (-2.5, 1e-12),
        (-3, 1e-12),
        (-50, 1e-12),
    ],
)
def test_dimension_is_that_of_the_transfer_operator(c, within):
    assert julia_dimension(c) == pytest.approx(collocated(c, 400 if c > -2.05 else 120), abs=within)


def test_dimension_obeys_its_bounds_and_falls():
    c = -np.concatenate([2 + np.geomspace(1e-4, 1, 12), np.geomspace(4, 1e9, 12)])
    dimension = [julia_dimension(v) for v in c]
    assert all(b < a < 1 for a, b in zip(dimension, dimension[1:], strict=False))
    for v, d in zip(c, dimension, strict=True):
        top, gap = escape_radius(v), math.sqrt(-v - escape_radius(v))
        assert math.log(2) / math.log(2 * top) <= d  # the slope is at most 2 top on the set,
        if 2 * gap > 2:
            assert d <= math.log(2) / math.log(2 * gap)  # and at least 2 gap
        if -v > (5 + 2 * math.sqrt(6)) / 4:  # Falconer, Fractal Geometry (2003), p. 228
            low, high = (
                2 * math.log(2) / math.log(4 * (-v + sign * math.sqrt(-2 * v))) for sign in (1, -1)
            )
            assert low <= d <= high


def test_dimension_at_both_ends_of_the_dial():
    assert julia_dimension(-2) == 1
    slope = math.sqrt(2 / 3) / (math.pi * math.log(2))  # derived in the chapter
    assert (1 - julia_dimension(-2 - 1e-4, levels=20)) / 1e-2 == pytest.approx(slope, rel=0.02)
    assert julia_dimension(-1e12) == pytest.approx(2 * math.log(2) / math.log(4e12), rel=1e-6)


def test_bad_parameters():
    for call in (lambda c: julia_points(c, 3), lambda c: julia_intervals(c, 3), julia_dimension):
        for c in (-1.9, 0, math.nan, -math.inf, -3 + 1j):
            with pytest.raises(ValueError, match="c must be a finite real number <= -2"):
                call(c)
    for call in (
        lambda n: julia_points(-3, n),
        lambda n: julia_intervals(-3, n),
        julia_itineraries,
    ):
        for levels in (-1, 25):
            with pytest.raises(ValueError, match="levels must lie in"):
                call(levels)
    with pytest.raises(ValueError, match=r"levels must lie in \[2, 24\], got 1"):
        julia_dimension(-3, levels=1)
