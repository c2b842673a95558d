"""A vector autoregression observed with noise, fitted by maximum likelihood through gaps."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fractal_lib.checks import as_int, as_positive, optional
from fractal_lib.inference.linear import Smoothed, kalman_smoother
from fractal_lib.inference.series import as_array, as_series

__all__ = ["Autoregression", "fit_autoregression", "smooth_autoregression"]

PIECE, TOGETHER = 2000, 10  # rows of a piece, and pieces that are worked on at once


class Autoregression(NamedTuple):
    """x_j = sum_k A_k x_(j-k) + N(0, Q), seen as x_j + centre + N(0, diag(noise)).

    Attributes:
        lags: (X, p X) float64, A_1 to A_p side by side.
        process_noise: Q, (X, X).
        noise: (X,), variances.
        centre: (X,).
        cov: (p X, p X), of the first row and those before it.
        log_likelihoods: of all rows, in nats, one for every pass of L-BFGS over them, in order.
        converged: whether the last step gained less than was asked.
    """

    lags: np.ndarray
    process_noise: np.ndarray
    noise: np.ndarray
    centre: np.ndarray
    cov: np.ndarray
    log_likelihoods: list[float]
    converged: bool


def fit_autoregression(
    values: Any,
    observed: Any,
    order: int = 4,
    *,
    rounds: int = 10,
    tolerance: float = 1e-7,
    most: int = 400,
) -> Autoregression:
    """Matrices and noise of greatest likelihood, given the rows that are there.

    A few rounds of expectation maximisation, then L-BFGS: the smoother's second moments are the
    exact gradient too, by Fisher's identity, and expectation maximisation alone would need hundreds
    of rounds where noise and process noise are hard to tell apart. The first 20 000 rows come
    first, for time; then all. Rows are cut into pieces of 2000, taken to be independent, so that
    memory does not grow with n.

    Args:
        values: (n, X), more rows than ``order``; whatever stands in a missing row is not read.
        observed: (n,) bool, True where a row is there.
        order: p, at least 1.
        rounds: of expectation maximisation on the first rows, before L-BFGS.
        tolerance: converged when a step of it gains less than this times the log likelihood.
        most: passes over the rows by L-BFGS, of the first and of all.

    Returns:
        `Autoregression`; a constant channel has no likelihood and is refused.

    Raises:
        ImportError: if scipy is not installed.
        TypeError: for what is not made of numbers, or a mask that is not bool.
        ValueError: for shapes that do not fit, values that are not finite where they are observed,
            too few rows, or a channel that is constant.

    Complexity: O(n (p X)^3) a pass, a Python loop over n / 10 steps. Source: Shumway and Stoffer
    (1982) for the rounds; Salakhutdinov, Roweis and Ghahramani (2003) for the gradient.

    >>> noise = np.random.default_rng(0).standard_normal((2, 400, 1))
    >>> path = np.zeros((400, 1))
    >>> for j in range(1, 400):
    ...     path[j] = 0.9 * path[j - 1] + noise[0, j]
    >>> model = fit_autoregression(path + 0.5 * noise[1], np.arange(400) % 5 > 0, order=1)
    >>> model.converged, model.lags.round(1).tolist()
    (True, [[0.9]])
    """
    order, most = as_int(order, "order", least=1), as_int(most, "most", least=1)
    rounds, tolerance = as_int(rounds, "rounds", least=1), as_positive(tolerance, "tolerance")
    optional("scipy.optimize", "fit_autoregression()")
    series, there = (part[0] for part in as_series(as_array(values, "values")[None], observed))
    if there.sum() <= order + 2:
        raise ValueError(f"expected more than {order + 2} observed rows, got {there.sum()}")
    scale, centre = series[there].std(0), series[there].mean(0)
    if not (scale > 0).all():
        raise ValueError(f"expected channels that vary, got standard deviations {scale.tolist()}")
    pieces = _pieces((series - centre) / scale, there)
    model = _start(pieces, order)
    for _ in range(rounds):
        model = _maximised(model, _moments(model, pieces[:1]))
    # the first rows are enough to come near; all of them decide
    model = _climbed(model, pieces[:1], tolerance, most)
    if len(pieces) > 1:
        model = _climbed(model, pieces, tolerance, most)
    each, all_lags = np.outer(scale, scale), np.tile(scale, order)
    # back to the unit of the values; the density of a standardised value is `scale` times as high
    shift = float(np.log(scale).sum()) * int(there.sum())
    return Autoregression(
        model.lags * scale[:, None] / all_lags,
        model.process_noise * each,
        model.noise * scale**2,
        centre,
        model.cov * np.outer(all_lags, all_lags),
        [likelihood - shift for likelihood in model.log_likelihoods],
        model.converged,
    )


def smooth_autoregression(model: Autoregression, values: Any, observed: Any) -> Smoothed:
    """The exact posterior of the noiseless rows, given all that are there: `kalman_smoother`'s.

    Args:
        model: as fitted.
        values, observed: (n, X) and (n,) bool, not necessarily those that it was fitted to.

    Returns:
        `Smoothed` of one series and X channels: means (1, n, X), with the centre.

    Raises:
        TypeError, ValueError: as `kalman_smoother`.

    Complexity: O(n (p X)^3).
    """
    channels, centred = len(model.lags), as_array(values, "values")[None] - model.centre
    found = kalman_smoother(centred, observed, *_companion(model, model.cov))
    return Smoothed(
        found.mean[..., :channels] + model.centre,
        found.std[..., :channels],
        found.log_likelihood,
        found.cov[..., :channels, :channels],
    )


class _Moments(NamedTuple):
    """Sums over rows of what the smoother says, of a row and the p before it."""

    log_likelihood: float
    products: np.ndarray  # ((p + 1) X, (p + 1) X) second moments over all transitions
    transitions: int
    errors: np.ndarray  # (X,) squares of an observed row less the path
    rows: int


def _pieces(series: np.ndarray, there: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches (B, PIECE, X) and (B, PIECE), the last piece filled up with missing rows."""
    n, channels = series.shape
    length = min(PIECE, n)
    filled = -n % length
    series = np.pad(series, ((0, filled), (0, 0))).reshape(-1, length, channels)
    there = np.pad(there, (0, filled)).reshape(-1, length)
    parts = range(0, len(series), TOGETHER)
    return [(series[i : i + TOGETHER], there[i : i + TOGETHER]) for i in parts]


def _start(pieces: list[tuple[np.ndarray, np.ndarray]], order: int) -> Autoregression:
    """A random walk, and the noise that second differences would have if the path were straight."""
    channels = pieces[0][0].shape[2]
    seconds = [np.diff(np.where(t[..., None], v, np.nan), 2, axis=1) for v, t in pieces]
    seconds = np.concatenate([part.reshape(-1, channels) for part in seconds])
    seconds = seconds[np.isfinite(seconds).all(1)]
    # of standardised values, if no three rows in turn are there
    noise = np.maximum(seconds.var(0) / 6, 1e-6) if len(seconds) > 1 else np.full(channels, 0.1)
    lags, cov = np.eye(channels, order * channels), np.eye(order * channels)
    return Autoregression(lags, np.diag(noise), noise, np.zeros(channels), cov, [], False)


def _companion(model: Autoregression, cov: np.ndarray) -> tuple[np.ndarray, ...]:
    """As `kalman_smoother` takes it, with as many lags in the state as ``cov`` has."""
    channels, size = len(model.lags), len(cov)
    transition, kicks = np.eye(size, k=-channels), np.zeros((size, size))
    transition[:channels, : model.lags.shape[1]] = model.lags
    kicks[:channels, :channels] = model.process_noise
    emission = np.eye(channels, size)
    return transition, kicks, emission, np.diag(model.noise), np.zeros(size), cov


def _moments(model: Autoregression, pieces: list[tuple[np.ndarray, np.ndarray]]) -> _Moments:
    """A pass over all rows; the state holds one lag more than the model, so that its covariances
    are all that is needed.
    """
    channels, size = len(model.lags), len(model.cov)
    cov = np.eye(size + channels)  # of the lag before the first row nothing is read
    cov[:size, :size] = model.cov
    products, errors = np.zeros(cov.shape), np.zeros(channels)
    likelihood, transitions, rows = 0.0, 0, 0
    for values, there in pieces:
        fit = kalman_smoother(values, there, *_companion(model, cov))
        likelihood += float(fit.log_likelihood.sum())
        mean = fit.mean[:, 1:].reshape(-1, len(cov))
        products += mean.T @ mean + fit.cov[:, 1:].sum((0, 1))
        transitions += len(mean)
        seen = fit.mean[there][:, :channels], fit.std[there][:, :channels]
        errors += ((values[there] - seen[0]) ** 2 + seen[1] ** 2).sum(0)
        rows += int(there.sum())
    return _Moments(likelihood, products, transitions, errors, rows)


def _maximised(model: Autoregression, moments: _Moments) -> Autoregression:
    """A round of expectation maximisation; rows before the first are as uncertain as any."""
    channels = len(model.lags)
    together = moments.products / moments.transitions
    past = together[channels:, channels:], together[channels:, :channels]
    lags = np.linalg.solve(*past).T
    process_noise = together[:channels, :channels] - lags @ past[1]
    return model._replace(
        lags=lags,
        process_noise=(process_noise + process_noise.T) / 2,
        noise=moments.errors / moments.rows,
        cov=(together + together.T)[:-channels, :-channels] / 2,
    )


def _climbed(model: Autoregression, pieces: list, tolerance: float, most: int) -> Autoregression:
    """Up the log likelihood of the pieces by L-BFGS, after a round of expectation maximisation."""
    model = _maximised(model, _moments(model, pieces))
    moments = _moments(model, pieces)
    white, likelihoods = _Whitened(model, moments), [moments.log_likelihood]

    def loss(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(numbers.copy()).requires_grad_()
        lags, root, noise = white.parameters(parameters)
        at = [part.detach().numpy() for part in (lags, root @ root.mT, noise)]
        there = model._replace(lags=at[0], process_noise=at[1], noise=at[2])
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                moments = _moments(there, pieces)
        except (ValueError, np.linalg.LinAlgError):  # a step too far: it explodes within a piece
            return 10 * abs(likelihoods[0]), np.zeros(white.count)
        likelihoods.append(moments.log_likelihood)
        _expected(lags, root, noise, moments).backward()
        assert parameters.grad is not None
        return -moments.log_likelihood, -parameters.grad.numpy()

    found = optional("scipy.optimize", "fit_autoregression()").minimize(
        loss,
        np.zeros(white.count),
        jac=True,
        method="L-BFGS-B",
        options={"ftol": tolerance, "gtol": 0, "maxcor": 50, "maxfun": most, "maxiter": most},
    )
    lags, root, noise = (part.numpy() for part in white.parameters(torch.from_numpy(found.x)))
    return model._replace(
        lags=lags,
        process_noise=root @ root.T,
        noise=noise,
        log_likelihoods=likelihoods,
        converged=bool(found.success),
    )


class _Whitened:
    """Numbers without constraints around a model, 0 at the model itself.

    In them the expected log density of path and rows, at the model, falls off alike in every
    direction, so that L-BFGS begins as expectation maximisation goes on, and does better from
    there. Source: Jamshidian and Jennrich (1997).
    """

    def __init__(self, model: Autoregression, moments: _Moments):
        channels = len(model.lags)
        past = np.linalg.cholesky(moments.products[channels:, channels:])
        self.lags, self.noise = torch.from_numpy(model.lags), torch.from_numpy(model.noise)
        self.root = torch.from_numpy(np.linalg.cholesky(model.process_noise))
        self.past = torch.from_numpy(np.linalg.inv(past))
        self.transitions, self.rows = moments.transitions, moments.rows
        self.lower = torch.tril_indices(channels, channels)
        self.parts = model.lags.size, self.lower.shape[1], channels
        self.count = sum(self.parts)

    def parameters(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lags, the root of the process noise, the variances of the noise."""
        lags, lower, noise = numbers.split(self.parts)
        change = torch.zeros_like(self.root).index_put(tuple(self.lower), lower)
        change = change / self.transitions**0.5
        change = change.tril(-1) + (change.diagonal() / 2**0.5).exp().diag()
        return (
            self.lags + self.root @ lags.view(self.lags.shape) @ self.past,
            self.root @ change,
            self.noise * (noise * (2 / self.rows) ** 0.5).exp(),
        )


def _expected(lags: Tensor, root: Tensor, noise: Tensor, moments: _Moments) -> Tensor:
    """The expected log density of path and rows, up to a constant: its gradient is that of the
    log likelihood where the moments were taken.
    """
    channels = len(lags)
    joint = torch.cat([torch.eye(channels, dtype=lags.dtype), -lags], 1)  # a row less its forecast
    forecast_errors = joint @ torch.from_numpy(moments.products) @ joint.mT
    path = (torch.cholesky_inverse(root) * forecast_errors).sum()
    path = path + 2 * moments.transitions * root.diagonal().log().sum()
    seen = (torch.from_numpy(moments.errors) / noise + moments.rows * noise.log()).sum()
    return -(path + seen) / 2
