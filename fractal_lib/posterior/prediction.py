"""What a trained model says: paths of prior and posterior, predictions, filter and forecast."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fractal_lib.checks import as_float, as_int, as_positive
from fractal_lib.posterior.base import Posterior, as_times
from fractal_lib.posterior.marginals import CorrelatedMarginals, Marginals
from fractal_lib.posterior.observations import Observations, as_observations

__all__ = ["OCTAVES", "Forecast", "Predictor", "scaled"]

OCTAVES = 7  # of 1 + h, that `calibrate` tells apart: to holes of 500 rows


class Forecast(NamedTuple):
    """Paths that may follow.

    Attributes:
        times: (steps + 1,) float64, since the start, in the unit of the data's duration.
        latent: (B, M, steps + 1, Z), M paths of each series.
        values: (B, M, steps + 1, X), observations of them, noise included.
    """

    times: Tensor
    latent: Tensor
    values: Tensor


class Predictor(nn.Module):
    """Prior, likelihood and posterior, and whatever is asked of them after training.

    Args:
        prior, likelihood, posterior: as in `LatentSDE`.

    Raises:
        ValueError: for parts whose ``latent_size`` differs, where they have one.
    """

    prior: Any  # a module, perhaps the user's own
    likelihood: Any
    posterior: Posterior

    def __init__(self, prior: nn.Module, likelihood: nn.Module, posterior: Posterior):
        super().__init__()
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior
        parts = {"prior": prior, "likelihood": likelihood, "posterior": posterior}
        sizes = {name: getattr(part, "latent_size", None) for name, part in parts.items()}
        if len({size for size in sizes.values() if size is not None}) > 1:
            got = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"expected parts of one latent_size, got {got}")
        self.calibration: Tensor
        self.register_buffer("calibration", torch.zeros(OCTAVES + 2, dtype=torch.float64))

    def set_calibration(self, numbers: Any) -> tuple[float, ...]:
        """What `calibrate` found, for `predict`; the numbers are returned."""
        found, expected = as_float(numbers, "calibration"), OCTAVES + 2
        if found.shape != (expected,) or not bool(found.isfinite().all()):
            raise ValueError(
                f"expected calibration as {expected} finite numbers, got {found.tolist()}"
            )
        self.calibration.copy_(found)
        return tuple(found.tolist())

    def posterior_drift(
        self, q: Marginals | CorrelatedMarginals, eps: Tensor, t: Tensor, duration: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The posterior's drift f at z of eps; g^2; z: (B, Q, Z) each."""
        z = q.sample(eps)
        g2, dg2 = self._diffusion(z, t)
        return q.velocity(eps) / duration + g2 * q.score(eps) / 2 + dg2 / 2, g2, z

    def _diffusion(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """g^2 and its derivative in z, (B, Q, Z) each."""
        g2, gradient, *_ = torch.func.vjp(lambda z: self.prior.diffusion(z, t) ** 2, z)
        # g_i depends on z_i alone: this is the derivative of each by its own
        (dg2,) = gradient(torch.ones_like(z))
        return g2, dg2

    @torch.no_grad()
    def sample_prior(
        self,
        samples: int,
        steps: int,
        duration: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Paths of the prior by Euler-Maruyama: (samples, steps + 1, Z), at even times from 0 to
        ``duration``.

        Raises:
            TypeError, ValueError: for numbers that are not positive, or sizes that are not whole.

        Complexity: O(samples steps) calls of the prior, ``steps`` of them one after another.
        """
        samples, steps = as_int(samples, "samples", least=1), as_int(steps, "steps", least=1)
        duration = as_positive(duration, "duration")
        mean, std = self.prior.initial()
        z = mean + std * _normal((samples, len(mean)), mean, generator)
        return self._simulate(z, 0.0, duration, duration, steps, generator)

    @torch.no_grad()
    def sample_posterior(
        self,
        data: Observations,
        series: Any,
        steps: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Paths of the posterior SDE: (B, steps + 1, Z), one for each series (B,).

        At every t its values are distributed as the posterior's marginals, up to the step; the path
        tells how they are correlated in time. A step is exact for a constant diffusion: eps, which
        is (z - mean) / std, is then an Ornstein-Uhlenbeck process, so that no step is too long for
        a small std.

        Raises:
            TypeError, ValueError: for data, series or steps that do not fit.

        Complexity: that of the posterior at ``steps + 1`` times, and ``steps`` calls of the prior.
        """
        series = as_observations(data).series_index(series)
        steps = as_int(steps, "steps", least=1)
        prepared = self.posterior.prepare(data)
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=data.values.device)
        t = t.repeat(len(series), 1)
        q, unit = self.posterior(prepared, series, t), (1 / steps, data.duration)
        eps = _normal(q.mean[:, :1].shape, q.mean, generator)
        path = [q.at(slice(0, 1)).sample(eps)]
        for step in range(steps):
            g2, dg2 = self._diffusion(path[-1], t[:, step : step + 1])
            noise, now = _normal(eps.shape, eps, generator), q.at(slice(step, step + 1))
            eps = now.step(eps, noise, g2, dg2 / 2, *unit)
            path.append(q.at(slice(step + 1, step + 2)).sample(eps))
        return torch.cat(path, 1)

    @torch.no_grad()
    def predict(
        self, data: Observations, series: Any, t: Any, *, noise: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Mean and std of an observation at t (B, Q) of series (B,), given the data: (B, Q, X).

        The std is as `calibrate` scaled it, if it did; without ``noise`` it is that of the path.

        Raises:
            TypeError, ValueError: for data, series or times that do not fit.

        Complexity: that of preparing the data, and of the posterior at B Q times.
        """
        series = as_observations(data).series_index(series)
        prepared, t = self.posterior.prepare(data), as_times(t, series)
        q = self.posterior(prepared, series, t)
        mean, std = self.likelihood.predict(q.mean, q.std, **q.factor)
        if noise and not bool(self.calibration.any()):
            return mean, std
        noises = self.likelihood.predict(q.mean, torch.zeros_like(q.std))[1] ** 2
        path = std**2 - noises
        if bool(self.calibration.any()):
            path, noises = scaled(self.calibration, prepared.spread(series, t), path, noises)
        return mean, (path + noises if noise else path).clamp(min=0).sqrt().to(std)

    @torch.no_grad()
    def filter(self, data: Observations, series: Any, t: Any) -> tuple[Tensor, Tensor]:
        """As `predict`, given what was observed up to each t alone.

        Raises:
            ValueError: for a posterior that reads what comes after t as well.

        Complexity: as `predict`.
        """
        if not getattr(self.posterior, "causal", False):
            raise ValueError(
                "filter needs a posterior that reads the past alone: "
                f"LadderPosterior(..., causal=True), got {type(self.posterior).__name__}"
            )
        return self.predict(data, series, t)

    @torch.no_grad()
    def forecast(
        self,
        data: Observations,
        series: Any,
        horizon: float,
        samples: int = 100,
        *,
        steps: int = 100,
        start: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Forecast:
        """What may follow: paths of the prior from where the posterior is at ``start``.

        Args:
            data: `Observations`; what they hold after ``start`` is not read.
            series: (B,) whole numbers, which of them.
            horizon: how far, in the unit of the data's duration.
            samples: M, paths a series.
            steps: of Euler-Maruyama.
            start: where it begins, in [0, 1] of the duration; default its end.
            generator: of the random numbers.

        Raises:
            TypeError, ValueError: for data, series or numbers that do not fit, or if a series has
                no observation up to ``start``.

        Complexity: that of the posterior at B times, and ``steps`` calls of prior and likelihood.
        """
        index = as_observations(data).series_index(series)
        horizon, samples = as_positive(horizon, "horizon"), as_int(samples, "samples", least=1)
        steps, begin = as_int(steps, "steps", least=1), as_float(start, "start")
        if begin.numel() != 1 or not bool(((begin >= 0) & (begin <= 1)).all()):
            raise ValueError(f"expected start from 0 to 1 of the duration, got {start}")
        start = float(begin)
        some = data[index]
        some = some.hide(some.times > start * data.duration * (1 + 1e-12)) if start < 1 else some
        every = torch.arange(len(some), device=index.device)
        t = torch.full((len(some), 1), start, dtype=torch.float64, device=index.device)
        q = self.posterior(self.posterior.prepare(some), every, t)
        shape = len(some), samples, q.mean.shape[-1]  # (B, M, Z)
        z = q.sample(_normal(shape, q.mean, generator))
        times = torch.linspace(0, horizon, steps + 1, dtype=torch.float64)
        latent = self._simulate(z, start, horizon, data.duration, steps, generator)
        return Forecast(times, latent, self.likelihood.sample(latent, generator))

    def _simulate(
        self,
        z: Tensor,
        start: float,
        horizon: float,
        duration: float,
        steps: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Paths of the prior (..., steps + 1, Z) from z (..., Z), by Euler-Maruyama."""
        path, tau = [z], horizon / steps
        for step in range(steps):
            now = start + step * tau / duration
            t = torch.full(z.shape[:-1], now, device=z.device, dtype=torch.float64)
            noise = _normal(z.shape, z, generator)
            z = z + self.prior.drift(z, t) * tau + self.prior.diffusion(z, t) * noise * tau**0.5
            path.append(z)
        return torch.stack(path, -2)


def _normal(shape, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def scaled(calibration: Tensor, gap: Tensor, path: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Variances of path and noise after `calibrate`; ``gap`` is log(1 + h).

    The logarithm of the path's factor is linear between octaves of 1 + h, and constant beyond the
    last.
    """
    octave = (gap / math.log(2)).clamp(0, OCTAVES).unsqueeze(-1)
    hat = (1 - (octave - torch.arange(OCTAVES + 1, device=gap.device)).abs()).clamp(min=0)
    return (hat.to(calibration) @ calibration[:-1]).exp() * path, calibration[-1].exp() * noise
