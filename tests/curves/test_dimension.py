"""Box counts against a set of tuples, the fit against numpy's, and the dimension table against what
is known.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fractal_lib.curves.cantor import cantor_indices, cantor_points
from fractal_lib.curves.dimension import box_counting_dimension, count_boxes, fit_power
from fractal_lib.curves.dragon import dragon_boundary
from fractal_lib.curves.julia import julia_dimension, julia_points

CANTOR = math.log(2) / math.log(3)
DRAGON = 2 * math.log2(max(np.roots([1, -1, 0, -2]).real))  # the root of x^3 - x^2 - 2


def one_by_one(points, size, shift):
    """The definition, in Python's own integers."""
    return len(
        {tuple((int(c) + int(s)) // size for c, s in zip(p, shift, strict=True)) for p in points}
    )


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 60),
    d=st.integers(1, 5),
    size=st.integers(1, 10**6),
    reach=st.sampled_from([3, 1000, 2**60]),
)
def test_boxes_of_integers_are_counted_exactly(seed, n, d, size, reach):
    rng = np.random.default_rng(seed)
    points, shift = rng.integers(-reach, reach, (n, d)), rng.integers(0, size, d)
    expected = one_by_one(points, size, shift)
    assert count_boxes(points, size, shift) == expected
    assert count_boxes(torch.from_numpy(points), size, shift) == expected
    if reach <= 1000 and size & (size - 1) == 0:  # then floats divide exactly as well
        assert count_boxes(points.astype(np.float32), size, shift) == expected


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("cells", [4, 10**6])  # a table of boxes, and a sort
def test_boxes_of_floats(d, cells):
    points = np.random.default_rng(d).random((500, d))
    expected = len({tuple(np.floor(p * cells)) for p in points})
    assert count_boxes(points, 1 / cells) == pytest.approx(expected, abs=0)


@given(st.lists(st.floats(0.01, 100), min_size=4, max_size=12), st.floats(-3, 3))
def test_fit_is_least_squares(y, exponent):
    x = 2.0 ** np.arange(len(y))
    u, v = np.log(x), np.log(np.array(y) * x**exponent)
    (slope, height), cov = np.polyfit(u, v, 1, cov=True)
    fit = fit_power(x, np.exp(v))
    assert fit.exponent == pytest.approx(slope, abs=1e-9)
    assert np.log(fit.constant) == pytest.approx(height, abs=1e-9)
    assert fit.standard_error == pytest.approx(math.sqrt(cov[0, 0]), abs=1e-7)
    third = max(math.ceil(len(y) / 3), 3)
    parts = [
        np.polyfit(u[k : k + third], v[k : k + third], 1)[0] for k in range(len(y) - third + 1)
    ]
    assert fit.spread == pytest.approx(max(abs(p - slope) for p in parts), abs=1e-9)


def test_fit_sees_a_bend_that_the_standard_error_does_not():
    n = 2.0 ** np.arange(4, 21)
    fit = fit_power(n, 4 * np.log2(n))
    assert fit.spread > 5 * fit.standard_error


def square(side):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)


RANDOM = np.random.default_rng(0)
# name: points, exact dimension, sizes, offsets, the largest error we accept
TABLE = {
    "line of cells": (np.arange(2**16), 1, None, 1, 1e-9),
    "line, shifted grids": (np.arange(2**16), 1, None, 8, 0.02),
    "random points of a line": (RANDOM.random(10**5), 1, None, 8, 0.02),
    "segment in space": (np.linspace(0, 1, 2**16)[:, None] * [1.0, 0.7, -0.3], 1, None, 8, 0.03),
    "square": (square(512), 2, None, 1, 1e-9),
    "square, shifted grids": (square(512), 2, None, 8, 0.07),
    "random points of a square": (RANDOM.random((2**18, 2)), 2, None, 8, 0.07),
    "Cantor, in thirds": (cantor_indices(14), CANTOR, 3 ** np.arange(2, 12), 1, 1e-9),
    "Cantor, in halves": (cantor_indices(16), CANTOR, None, 8, 0.003),
    "Cantor, as floats": (cantor_points(15).flatten(), CANTOR, None, 8, 0.003),
    "dragon's boundary": (dragon_boundary(20), DRAGON, None, 8, 0.03),
    "Julia, c = -2.1": (julia_points(-2.1, 18), julia_dimension(-2.1), None, 8, 0.003),
    "Julia, c = -3": (julia_points(-3, 17), julia_dimension(-3), None, 8, 0.003),
    "Julia, c = -6": (julia_points(-6, 16), julia_dimension(-6), None, 8, 0.003),
}


@pytest.mark.parametrize("name", TABLE)
def test_dimension_of_known_sets(name):
    points, exact, sizes, offsets, accepted = TABLE[name]
    found = box_counting_dimension(points, sizes, offsets)
    error = abs(found.dimension - exact)
    assert error <= found.uncertainty + 1e-9
    assert error <= accepted
    assert found.uncertainty < 0.12  # and it is no empty claim
    assert found.uncertainty == found.spread + 2 * found.standard_error
    assert found.counts.shape == (len(found.sizes), offsets)


def test_what_does_not_matter():
    points = julia_points(-3, 12).numpy()
    found = box_counting_dimension(points)
    for same in (
        np.repeat(points, 3),
        points[::-1],
        points[:, None],
        torch.tensor(points, requires_grad=True),
    ):
        other = box_counting_dimension(same)
        assert other.dimension == found.dimension
        assert np.array_equal(other.counts, found.counts)
    # units and origin; adding rounds, and may move a point over an edge
    for moved in (points * 2.0**20, points + 1):
        assert box_counting_dimension(moved).dimension == pytest.approx(found.dimension, abs=1e-3)
    cells = cantor_indices(12)
    assert np.array_equal(
        box_counting_dimension(cells - 10**15).counts, box_counting_dimension(cells).counts
    )
    half = box_counting_dimension(torch.from_numpy(points).bfloat16(), sizes=[1, 0.5, 0.25])
    assert half.sizes.tolist() == [1, 0.5, 0.25]


def test_automatic_sizes_stay_between_the_points_and_the_extent():
    points = RANDOM.random((50_000, 2)) * 7
    found = box_counting_dimension(points)
    extent = np.ptp(points, axis=0).max()
    assert found.sizes[0] == pytest.approx(extent / 8)
    assert found.counts[-1].mean() * 8 <= 50_000 < 8.5 * count_boxes(points, found.sizes[-1] / 2)
    whole = box_counting_dimension(np.arange(1000))
    assert whole.sizes.dtype == np.int64
    # at 8 a shifted grid has 126 boxes, of less than 8 cells
    assert whole.sizes.tolist() == [125, 63, 32, 16]


def test_two_heaps_of_points_end():
    heaps = np.concatenate([RANDOM.random(100) * 1e-200, 1 + np.zeros(1)])
    assert box_counting_dimension(heaps).dimension == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("points", "options", "error", "match"),
    [
        ([1.0], {}, ValueError, "at least two distinct points, got 1"),
        ([[1, 2]] * 5, {}, ValueError, "at least two distinct points, got 1"),
        ([], {}, ValueError, "at least two distinct points, got 0"),
        (np.zeros((5, 0)), {}, ValueError, "D at least 1"),
        ([0.0, math.nan, 1.0], {}, ValueError, "NaN"),
        ([0.0, math.inf], {}, ValueError, "infinity"),
        (np.zeros((2, 2, 2)), {}, ValueError, r"\(N, D\)"),
        ([1j, 2j], {}, TypeError, "complex"),
        ([True, False], {}, ValueError, "two distinct points, got 1"),
        (["a", "b"], {}, TypeError, "integers or floats"),
        ([0, 2**62], {}, ValueError, r"2\*\*61"),
        (range(9), {}, ValueError, "9 distinct points are too few"),
        (range(100), {"sizes": [1, 2]}, ValueError, "three different"),
        (range(100), {"sizes": [1, 2, 2]}, ValueError, "three different"),
        (range(100), {"sizes": [0, 1, 2]}, ValueError, "positive"),
        (range(100), {"sizes": [1, 2, math.nan]}, ValueError, "positive"),
        (range(100), {"sizes": [1, 2, 2.5]}, ValueError, "integers"),
        (range(100), {"offsets": 0}, ValueError, "offsets"),
        ([0.0, 1.0], {"sizes": [1e-300, 0.1, 1]}, ValueError, "too small"),
    ],
)
def test_bad_points_and_sizes(points, options, error, match):
    with pytest.raises(error, match=match):
        box_counting_dimension(points, **options)


def test_bad_arguments():
    for size in (0, -1, math.nan):
        with pytest.raises(ValueError, match="size must be a positive number"):
            count_boxes([1, 2], size)
    for x, y in (([1, 2], [1, 2]), ([1, 2, 3], [1, 2]), ([[1, 2, 3]], [[1, 2, 3]])):
        with pytest.raises(ValueError, match="two vectors of one length"):
            fit_power(x, y)
    for x, y in (([1, 2, 3], [1, 0, 1]), ([0, 1, 2], [1, 1, 1]), ([1, 2, 3], [1, math.nan, 1])):
        with pytest.raises(ValueError, match="finite positive"):
            fit_power(x, y)
    for x in ([1, 1, 2], [1, 3, 2]):
        with pytest.raises(ValueError, match="ascend or descend"):
            fit_power(x, [1, 2, 3])
