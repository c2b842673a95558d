"""What users bring to the smoothers and scores; and rows far from all others."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from fractal_lib.inference import gaussian_smoother, grid_smoother, kalman_smoother, scores
from fractal_lib.inference.gaussian import push_forward, update

KEPT, STD, NOISE = math.exp(-2.0), 0.8, 0.1
VALUES = np.random.default_rng(0).standard_normal((2, 9, 1)) * STD
MASK = np.arange(9) % 4 > 0
GRID = np.linspace(-6, 6, 151)


def ou(kind=lambda part: part):
    parts = [[KEPT]], [[STD**2 * (1 - KEPT**2)]], [[1.0]], [[NOISE**2]], [0.0], [[STD**2]]
    return [kind(part) for part in parts]


def on_grid(values, mask, grid=GRID, noise=NOISE, start=None):
    return grid_smoother(lambda z: -2 * z, 2 * STD, values, mask, noise, 1.0, grid, start)


def still(m, p):
    return -m, -np.eye(1), np.eye(1)


KINDS = {
    "lists": (lambda v: v.tolist(), lambda m: m.tolist()),
    "tensors": (lambda v: torch.from_numpy(v).requires_grad_(), torch.from_numpy),
    "frames": (lambda v: [pd.DataFrame(part) for part in v], pd.Series),
    "numpy's own list": (list, list),
}


@pytest.mark.parametrize(("kind", "flags"), KINDS.values(), ids=KINDS)
def test_series_of_any_kind(kind, flags):
    for call in (lambda v, m: kalman_smoother(v, m, *ou()), on_grid):
        for got, expected in zip(call(kind(VALUES), flags(MASK)), call(VALUES, MASK), strict=True):
            assert got is expected is None or np.array_equal(got, expected)
    one = kind(VALUES)[0]
    got = gaussian_smoother(still, one, flags(MASK), [0.1], np.float32(1), np.int64(2), [0], [[1]])
    expected = gaussian_smoother(
        still, VALUES[0], MASK, np.array([0.1]), 1.0, 2, np.zeros(1), np.eye(1)
    )
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("kind", [np.array, torch.tensor, pd.Series])
def test_scores_of_any_kind(kind):
    mean, std, truth = [0.0, 1.0], [1.0, 2.0], [0.5, -1.0]
    # torch.tensor of a list is float32: these are exact in it
    assert scores(kind(mean), kind(std), kind(truth)) == scores(mean, std, truth)
    assert scores(0, 1, 0.5)["rmse"] == 0.5


BAD = dict(mean=0, std=1)
REFUSED = {
    "words": lambda: scores("0", 1, 1),
    "NaN": lambda: scores(np.nan, 1, 1),
    "an infinite std": lambda: scores(0, np.inf, 1),
    "a ragged list": lambda: kalman_smoother([[[0.0]], [[0.0], [1.0]]], MASK, *ou()),
    "Q that is no covariance": lambda: kalman_smoother(VALUES, MASK, [[1]], [[-1]], *ou()[2:]),
    "cov with NaN": lambda: kalman_smoother(VALUES, MASK, *ou()[:5], [[np.nan]]),
    "A with NaN": lambda: kalman_smoother(VALUES, MASK, [[np.nan]], *ou()[1:]),
    "numbers for a mask": lambda: kalman_smoother(VALUES, MASK * 1.0, *ou()),
    "NaN where observed": lambda: gaussian_smoother(
        still, VALUES[0] * np.nan, MASK, [0.1], 1, 2, [0], [[1]]
    ),
    "cov that is none": lambda: gaussian_smoother(still, VALUES[0], MASK, [0.1], 1, 2, [0], [[-1]]),
    "half a step": lambda: gaussian_smoother(still, VALUES[0], MASK, [0.1], 1, 2.5, [0], [[1]]),
    "moments of another shape": lambda: gaussian_smoother(
        lambda m, p: (m, p, m), VALUES[0], MASK, [0.1], 1, 2, [0], [[1]]
    ),
    "steps that diverge": lambda: gaussian_smoother(
        lambda m, p: (-(m**3) * 1e3, -3e3 * np.diag(m**2), p),
        VALUES[0],
        MASK,
        [9],
        9,
        9,
        [9],
        [[1]],
    ),
    "dt in words": lambda: grid_smoother(lambda z: -z, 1.0, VALUES, MASK, 0.1, "1", GRID),
    "an infinite noise": lambda: grid_smoother(lambda z: -z, 1.0, VALUES, MASK, np.inf, 1, GRID),
    "a row outside the grid": lambda: on_grid(VALUES + 80 * NOISE, MASK, GRID / 2),
    "a row very far outside": lambda: on_grid(VALUES + 1e100, MASK),
    "a row beyond all squares": lambda: on_grid(VALUES + 1e200, MASK),
    "a row beyond all squares, Kalman": lambda: kalman_smoother(VALUES + 1e200, MASK, *ou()),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_sentence(call):
    with pytest.raises((TypeError, ValueError), match=r"expected|must|too narrow|too far") as e:
        call()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("far", [5.0, 80.0])
def test_an_outlier_on_the_grid_is_refused_or_right(far):
    """80 std of noise away, the row's probability is far below what float64 holds beside 1."""
    values, sure = VALUES.copy(), np.ones(9, bool)
    values[0, 4] = far * NOISE
    exact = kalman_smoother(values, sure, *ou())
    grid = np.linspace(-10, 10, 401)
    if far > 5:
        with pytest.raises(ValueError, match="row 4 is too far .* outlier"):
            on_grid(values, sure, grid)
        left_out = sure.copy()
        left_out[4] = False
        assert np.isfinite(on_grid(values, left_out, grid).mean).all()
    else:
        assert np.abs(on_grid(values, sure, grid).mean - exact.mean).max() < 0.01


def test_a_start_that_excludes_the_data_is_refused():
    start = np.zeros(151)
    start[50] = 1  # at -2, while the first row says 20 std of noise more
    with pytest.raises(ValueError, match="row 0 is too far"):
        on_grid(np.full((1, 3, 1), GRID[50] + 20 * NOISE), [True, False, False], start=start)


@pytest.mark.parametrize("size", [80 * NOISE, 1e6, 1e100, 1e150])
def test_kalman_with_an_enormous_outlier_is_linear_in_it(size):
    values = np.zeros((1, 9, 1))
    values[0, 4] = size
    got, one = (
        kalman_smoother(values, MASK | True, *ou()),
        kalman_smoother(values / size, MASK | True, *ou()),
    )
    assert got.mean / size == pytest.approx(one.mean, rel=1e-12)
    assert np.array_equal(got.cov, one.cov) and np.isfinite(got.log_likelihood).all()


def test_two_linear_steps_are_one():
    generator = np.random.default_rng(0)
    a, b, c, root = generator.standard_normal((4, 2, 2))
    p, q, r = root @ root.T, np.eye(2), np.diag([1.0, 2.0])
    m, u, v = generator.standard_normal((3, 2))
    twice = push_forward(*push_forward(m, p, a, q, u), b, r, v)
    once = push_forward(m, p, b @ a, *push_forward(u, q, b, r, v)[::-1])
    for got, expected in zip(once, twice, strict=True):
        assert got == pytest.approx(expected, abs=1e-12)


def test_the_update_is_conditioning():
    generator = np.random.default_rng(1)
    root, c = generator.standard_normal((3, 3)), generator.standard_normal((2, 3))
    p, r, m, x = root @ root.T, np.eye(2), generator.standard_normal(3), np.array([[1.0, -2.0]])
    total = c @ p @ c.T + r
    gain = p @ c.T @ np.linalg.inv(total)
    got = update(m[None], p, x, np.array([True]), c, r)
    assert got.mean[0] == pytest.approx(m + gain @ (x[0] - c @ m), abs=1e-12)
    assert got.cov[0] == pytest.approx(p - gain @ c @ p, abs=1e-12)
    none = update(m[None], p, x, np.array([False]), c, r)
    assert np.array_equal(none.mean[0], m) and none.log_density[0] == 0
    assert none.cov[0] == pytest.approx(p, abs=1e-14)
