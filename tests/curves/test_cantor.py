"""The Cantor set against its definition by removal; the ladder against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from fractal_lib.curves.cantor import cantor_indices, cantor_levels, cantor_points, dyadic_grid
from fractal_lib.curves.splines import bspline_weights, stencil


def by_removal(levels):
    """The set as it is told: start with everything, take the middle third out of every piece."""
    kept = np.ones(3**levels, dtype=bool)
    removed = np.zeros(3**levels, dtype=int)
    for level in range(1, levels + 1):
        third = 3 ** (levels - level)
        for start in range(third, 3**levels, 3 * third):
            middle = slice(start, start + third)
            removed[middle][kept[middle]] = level
            kept[middle] = False
    return np.flatnonzero(kept), removed


@pytest.mark.parametrize("levels", range(9))
def test_indices_and_levels_are_those_of_removal(levels):
    kept, removed = by_removal(levels)
    assert cantor_indices(levels).tolist() == kept.tolist()
    assert cantor_levels(torch.arange(3**levels), levels).tolist() == removed.tolist()
    assert len(kept) == 2**levels


def test_points_are_nested_intervals():
    for levels in range(8):
        ends, inner = cantor_points(levels), cantor_points(levels + 1)
        assert torch.allclose(ends[:, 1] - ends[:, 0], torch.tensor(3.0**-levels).double())
        torch.testing.assert_close(inner[::2, 0], ends[:, 0])  # each interval keeps both its ends
        torch.testing.assert_close(inner[1::2, 1], ends[:, 1])


@given(level=st.integers(0, 12), n=st.integers(1, 10_000))
def test_dyadic_grid_is_the_sketch_s_mask(level, n):
    expected = np.linspace(0, n - 1, 2**level + 1)
    grid = dyadic_grid(level, n).numpy()
    assert grid[0] == 0
    assert grid[-1] == n - 1
    # the sketch truncates floats: equal but where rounding put an integer just below itself
    assert np.all((grid == expected.astype(int)) | (grid == np.round(expected)))


@given(x=st.floats(0, 1e9), k=st.integers(0, 30))
def test_ladder_is_the_four_nearest_grid_points(x, k):
    node, fraction = stencil(torch.tensor(x, dtype=torch.float64), 2**k)
    assert node.tolist() == [int(x // 2**k) + step for step in (-1, 0, 1, 2)]
    assert 0 <= fraction < 1
    assert float(fraction) == pytest.approx(x / 2**k - x // 2**k, abs=0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="levels"):
        cantor_indices(40)
    with pytest.raises(ValueError, match="levels"):
        cantor_levels(torch.tensor([0]), -1)
    with pytest.raises(ValueError, match="index from 0 to 8, got 9"):
        cantor_levels(torch.tensor([9]), 2)
    with pytest.raises(ValueError, match="n of at least 1"):
        dyadic_grid(1, 0)


def test_bspline_weights_are_scipy_s():
    f = torch.linspace(0, 1, 101, dtype=torch.float64)
    spline = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    u = f[:, None].numpy() - [-1, 0, 1, 2]
    expected = torch.from_numpy(spline(u)).nan_to_num(0)
    torch.testing.assert_close(bspline_weights(f), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(
        bspline_weights(f).sum(-1), torch.ones(101).double(), rtol=0, atol=5e-16
    )
