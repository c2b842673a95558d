"""Smoothing with the true equations in hand: how well a posterior could do that knew the process."""

from collections.abc import Callable

import numpy as np

Moments = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def gaussian_smoother(
    moments: Moments,
    values: np.ndarray,
    observed: np.ndarray,
    noise: np.ndarray,
    dt: float,
    inner: int,
    mean: np.ndarray,
    cov: np.ndarray,
    passes: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a diffusion at every row, given the noisy rows of a whole series.

    Between two rows the density is held to be Gaussian and moved by ``inner`` Euler steps of dx =
    f(x) dt + g(x) dw. A step takes the mean m and the covariance P to m + E f dt and A P A' + E g
    g' dt, where A = I + E f' dt. A pass forward takes the observations in, the backward pass of
    Rauch, Tung and Striebel carries them to earlier rows. The expectations are taken where the
    forward pass is, which knows nothing of what comes: across a hole it may be far off. A second
    pass and those after it take them where the pass before ended, which has seen both sides.

    For a linear process one pass gives the posterior of its Euler steps; otherwise it is as good as
    the Gaussian is.

    Args:
        moments: from m (Z,) and P (Z, Z) to E f (Z,), E f' (Z, Z) and E g g' (Z, Z) under N(m, P).
        values: (n, Z), observations of the state itself; whatever stands in a missing row is not
            read.
        observed: (n,) bool.
        noise: (Z,), sd of the observations' noise, in the unit of the state; positive.
        dt: time between two rows.
        inner: Euler steps between two rows.
        mean, cov: (Z,) and (Z, Z), what is known at the first row before any observation.
        passes: forward and backward. They need not converge where a hole is long against the time
            in which the process forgets: a posterior with several modes has no good Gaussian.

    Returns:
        (n, Z) and (n, Z, Z) float64.

    Raises:
        ValueError: for shapes that do not fit, a noise or a time that is not positive, no steps or
            no passes.

    Complexity: O(passes n inner Z^3), a Python loop over n * inner steps. Source: Rauch, Tung and
    Striebel (1965); Sarkka and Solin (2019), Applied Stochastic Differential Equations, chapters 9
    and 10; Garcia-Fernandez, Svensson and Sarkka (2017) for the passes.

    >>> def still(m, P):  # a Wiener process
    ...     return np.zeros(1), np.zeros((1, 1)), np.eye(1)
    >>> values, observed = np.array([[0.0], [np.nan], [2.0]]), np.array([True, False, True])
    >>> mean, cov = gaussian_smoother(still, values, observed, np.array([1e-6]), 0.5, 4, np.zeros(1), np.eye(1))
    >>> mean[:, 0].round(6).tolist(), cov[:, 0, 0].round(6).tolist()  # a bridge, 0.5 * 0.5 / 1 in the middle
    ([0.0, 1.0, 2.0], [0.0, 0.25, 0.0])
    """
    values, observed, noise, mean, cov = map(np.asarray, (values, observed, noise, mean, cov))
    _check(values, observed, noise, mean, cov)
    if not ((noise > 0).all() and dt > 0 and inner >= 1 and passes >= 1):
        raise ValueError(
            f"noise, dt, inner and passes must be positive, got {noise}, {dt}, {inner} and {passes}"
        )
    errors, about = np.diag(np.asarray(noise, float) ** 2), None
    for _ in range(passes):
        about = _pass(moments, values, observed, errors, dt / inner, inner, mean, cov, about)
    return about


def _pass(moments, values, observed, errors, h, inner, mean, cov, about):
    """Forward and backward once, expectations under ``about``: means and covariances of the rows,
    None at first.
    """
    n, size = values.shape
    before, after = np.empty((2, n, size))  # means before and after the row's observation
    # shared: row j - 1's state with row j's
    spread_before, spread_after, shared = np.empty((3, n, size, size))
    eye = np.eye(size)
    for j in range(n):
        if j:
            m, p = (mean, cov) if about is None else (about[0][j - 1], about[1][j - 1])
            moved, step, process_noise = _carry(moments, m, p, h, inner, eye)
            shared[j] = cov @ step.T
            mean, cov = moved + step @ (mean - m), step @ shared[j] + process_noise
        before[j], spread_before[j] = mean, cov
        if observed[j]:
            gain = np.linalg.solve(cov + errors, cov).T
            mean, left = mean + gain @ (values[j] - mean), eye - gain
            cov = left @ cov @ left.T + gain @ errors @ gain.T  # Joseph's form stays positive
        after[j], spread_after[j] = mean, cov
    for j in range(n - 2, -1, -1):
        gain = np.linalg.solve(spread_before[j + 1], shared[j + 1].T).T
        after[j] += gain @ (after[j + 1] - before[j + 1])
        spread_after[j] += gain @ (spread_after[j + 1] - spread_before[j + 1]) @ gain.T
    return after, spread_after


def _carry(moments: Moments, mean, cov, h, inner, eye):
    """From N(mean, cov) over a row: the mean there, the matrix that carries deviations, the
    covariance of shocks.
    """
    carried, gathered = eye, 0 * eye
    for _ in range(inner):
        drift, slope, process_noise = moments(mean, cov)
        step = eye + h * slope
        shaken = h * process_noise
        mean, cov, carried = mean + h * drift, step @ cov @ step.T + shaken, step @ carried
        gathered = step @ gathered @ step.T + shaken
    return mean, carried, gathered


def lorenz_moments(mean: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E f, E f' and E g g' of `lorenz` under a Gaussian, exact since f is quadratic: for
    `gaussian_smoother`.

    Args:
        mean, cov: (3,) and (3, 3), not standardised.

    Source: the equations at `lorenz`. Complexity: O(1).

    >>> drift, slope, process_noise = lorenz_moments(np.array([1.0, 2.0, 3.0]), np.zeros((3, 3)))
    >>> drift.tolist(), slope[1].tolist(), np.diag(process_noise).round(4).tolist()
    ([10.0, 23.0, -6.0], [25.0, -1.0, -1.0], [0.0225, 0.09, 0.2025])
    """
    x, y, z = mean.tolist()
    (xx, xy, xz), (_, yy, _), (_, _, zz) = cov.tolist()
    drift = np.array([10 * (y - x), 28 * x - y - x * z - xz, x * y + xy - 8 / 3 * z])
    slope = np.array([[-10.0, 10.0, 0.0], [28 - z, -1.0, -x], [y, x, -8 / 3]])
    a, b, c = 0.0225 * (x * x + xx), 0.0225 * (y * y + yy), 0.0225 * (z * z + zz)
    return drift, slope, np.array([[a, 0.0, 0.0], [0.0, b, 0.0], [0.0, 0.0, c]])


def _check(values, observed, noise, mean, cov) -> None:
    shapes = [part.shape for part in (values, observed, noise, mean, cov)]
    n, size = values.shape if values.ndim == 2 else (0, 0)
    if (
        not n
        or shapes != [(n, size), (n,), (size,), (size,), (size, size)]
        or observed.dtype != bool
    ):
        raise ValueError(
            "expected values (n, Z), observed (n,) bool, noise (Z,), mean (Z,), cov (Z, Z); got "
            f"{', '.join(map(str, shapes))} with observed {observed.dtype}"
        )
