"""Smoothing with the true equations: how well a posterior could do that knew the process."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fractal_lib.checks import as_int, as_positive
from fractal_lib.inference.gaussian import push_forward, update
from fractal_lib.inference.series import as_array, as_covariance, as_series

__all__ = ["gaussian_smoother", "lorenz_moments"]

Moments = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def gaussian_smoother(
    moments: Moments,
    values: Any,
    observed: Any,
    noise: Any,
    dt: float,
    inner: int,
    mean: Any,
    cov: Any,
    passes: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a diffusion at every row, given the noisy rows of a whole series.

    Between two rows the density is assumed Gaussian and moved by ``inner`` Euler steps of dx =
    f(x) dt + g(x) dw. A step takes the mean m and the covariance P to m + E f dt and A P A' + E g
    g' dt, where A = I + E f' dt. A pass forward takes the observations in, the backward pass of
    Rauch, Tung and Striebel carries them to earlier rows. The expectations are taken where the
    forward pass is, which knows nothing of what comes: across a gap it may be far off. A second
    pass and those after it take them where the pass before ended, which has seen both sides.

    For a linear process one pass gives the posterior of its Euler steps; otherwise it is as good as
    the Gaussian is. Arrays, tensors, lists and pandas frames are taken alike.

    Args:
        moments: from m (Z,) and P (Z, Z) to E f (Z,), E f' (Z, Z) and E g g' (Z, Z) under N(m, P).
        values: (n, Z), observations of the state itself; whatever stands in a missing row is not
            read.
        observed: (n,) bool, True where a row is there.
        noise: (Z,), std of the observations' noise, in the unit of the state; positive.
        dt: time between two rows.
        inner: Euler steps between two rows.
        mean, cov: (Z,) and (Z, Z), what is known at the first row before any observation.
        passes: forward and backward. They need not converge where a gap is long against the time
            in which the process forgets: a posterior with several modes has no good Gaussian.

    Returns:
        (n, Z) and (n, Z, Z) float64.

    Raises:
        TypeError: for what is not made of numbers, or a mask that is not bool.
        ValueError: for shapes that do not fit, an observed row that is not finite, a cov that is no
            covariance, a noise or a time that is not positive, no steps or no passes, or steps so
            long that the mean leaves all bounds.

    Complexity: O(passes n inner Z^3), a Python loop over n * inner steps. Source: Rauch, Tung and
    Striebel (1965); Sarkka and Solin (2019), Applied Stochastic Differential Equations, chapters 9
    and 10; Garcia-Fernandez, Svensson and Sarkka (2017) for the passes.

    >>> def still(m, P):  # a Wiener process
    ...     return np.zeros(1), np.zeros((1, 1)), np.eye(1)
    >>> values, observed = [[0.0], [np.nan], [2.0]], [True, False, True]
    >>> mean, cov = gaussian_smoother(still, values, observed, [1e-6], 0.5, 4, [0.0], [[1.0]])
    >>> mean[:, 0].round(6).tolist(), cov[:, 0, 0].round(6).tolist()  # a bridge, 0.5 * 0.5 / 1
    ([0.0, 1.0, 2.0], [0.0, 0.25, 0.0])
    """
    values, noise, mean = (
        as_array(part, name)
        for part, name in ((values, "values"), (noise, "noise"), (mean, "mean"))
    )
    inner, passes = as_int(inner, "inner", least=1), as_int(passes, "passes", least=1)
    h = as_positive(dt, "dt") / inner
    if values.ndim != 2 or not values.size or not noise.shape == mean.shape == values.shape[1:]:
        raise ValueError(
            "expected values (n, Z), noise (Z,) and mean (Z,); got "
            f"{values.shape}, {noise.shape} and {mean.shape}"
        )
    batch, mask = as_series(values[None], observed)
    cov = as_covariance(cov, "cov", len(mean))
    if not ((noise > 0) & np.isfinite(noise)).all() or not np.isfinite(mean).all():
        raise ValueError(f"expected noise positive and finite and mean finite, got {noise}, {mean}")
    _check_moments(moments, mean, cov)
    errors, about = np.diag(noise**2), None
    with np.errstate(over="ignore", invalid="ignore"):  # looked at below
        for _ in range(passes):
            about = _pass(moments, batch[0], mask[0], errors, h, inner, mean, cov, about)
            if not all(np.isfinite(part).all() for part in about):
                raise ValueError(
                    f"the posterior is not finite with steps of {h}: expected more `inner` steps"
                )
    assert about is not None
    return about


def _pass(moments, values, observed, errors, h, inner, mean, cov, about):
    """Forward and backward once, expectations under ``about``: means and covariances of the rows,
    None at first.
    """
    n, size = values.shape
    before, after = np.empty((2, n, size))  # means before and after the row's observation
    # shared: row j - 1's state with row j's
    cov_before, cov_after, shared = np.empty((3, n, size, size))
    eye = np.eye(size)
    for j in range(n):
        if j:
            where = (mean, cov) if about is None else (about[0][j - 1], about[1][j - 1])
            transition, offset, process_noise = _linearised(moments, *where, h, inner)
            shared[j] = cov @ transition.T
            mean, cov = push_forward(mean, cov, transition, process_noise, offset)
        before[j], cov_before[j] = mean, cov
        seen = update(mean[None], cov[None], values[None, j], observed[j : j + 1], eye, errors)
        mean, cov = after[j], cov_after[j] = seen.mean[0], seen.cov[0]
    for j in range(n - 2, -1, -1):
        gain = np.linalg.solve(cov_before[j + 1], shared[j + 1].T).T
        after[j] += gain @ (after[j + 1] - before[j + 1])
        cov_after[j] += gain @ (cov_after[j + 1] - cov_before[j + 1]) @ gain.T
    return after, cov_after


def _linearised(moments: Moments, mean, cov, h, inner):
    """A row's way as one linear step, z -> A z + b + N(0, Q), for z near N(mean, cov): A, b, Q."""
    eye = np.eye(len(mean))
    transition, offset, gathered = eye, np.zeros(len(mean)), np.zeros_like(eye)
    for _ in range(inner):
        drift, slope, diffusion = moments(mean, cov)
        step, move, process_noise = eye + h * slope, h * (drift - slope @ mean), h * diffusion
        mean, cov = push_forward(mean, cov, step, process_noise, move)
        offset, gathered = push_forward(offset, gathered, step, process_noise, move)
        transition = step @ transition
    return transition, offset, gathered


def lorenz_moments(mean: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E f, E f' and E g g' of `lorenz` under a Gaussian, exact since f is quadratic: for
    `gaussian_smoother`.

    Args:
        mean, cov: (3,) and (3, 3), not standardised.

    Source: the equations at `lorenz`. Complexity: O(1).

    >>> drift, slope, diffusion = lorenz_moments(np.array([1.0, 2.0, 3.0]), np.zeros((3, 3)))
    >>> drift.tolist(), slope[1].tolist(), np.diag(diffusion).round(4).tolist()
    ([10.0, 23.0, -6.0], [25.0, -1.0, -1.0], [0.0225, 0.09, 0.2025])
    """
    x, y, z = np.asarray(mean, float).tolist()
    (xx, xy, xz), (_, yy, _), (_, _, zz) = np.asarray(cov, float).tolist()
    drift = np.array([10 * (y - x), 28 * x - y - x * z - xz, x * y + xy - 8 / 3 * z])
    slope = np.array([[-10.0, 10.0, 0.0], [28 - z, -1.0, -x], [y, x, -8 / 3]])
    a, b, c = 0.0225 * (x * x + xx), 0.0225 * (y * y + yy), 0.0225 * (z * z + zz)
    return drift, slope, np.array([[a, 0.0, 0.0], [0.0, b, 0.0], [0.0, 0.0, c]])


def _check_moments(moments: Moments, mean, cov) -> None:
    shapes = [np.shape(part) for part in moments(mean, cov)]
    size = len(mean)
    if shapes != [(size,), (size, size), (size, size)]:
        raise ValueError(
            f"expected moments of shapes {(size,)}, {(size, size)} and {(size, size)}, got "
            + ", ".join(map(str, shapes))
        )
