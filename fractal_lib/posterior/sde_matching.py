"""SDE Matching: a latent SDE trained without simulating it (chapter ``posterior/latent_sde``)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fractal_lib.posterior.context import Observations
from fractal_lib.posterior.heads import Paths
from fractal_lib.posterior.posteriors import Posterior


class Terms(NamedTuple):
    """The three terms of the bound, in nats a series; (B,) each."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def bound(self) -> Tensor:
        """Their sum, (B,): at least -log p(x) on average, if the reconstruction is that of all observations."""
        return self.prior + self.diffusion + self.reconstruction


class LatentSDE(nn.Module):
    """A prior SDE, an observation model and a posterior, and the bound that trains all three at once.

    Args:
        prior: `PriorSDE` or `KnownPrior`.
        observation: `LinearObservation`, or another module with ``log_prob(x, z)``.
        posterior: a `Posterior`.
        scaled: True for the reconstruction of all observations of a series, as the bound has it; False for that of
            one, as the method's public notebook has it. With False it is no bound, and with many noisy
            observations the posterior collapses.

    The negative log likelihood of a series is at most

        KL(q(z_0) || p(z_0))  +  T E_t E_q [ |f - h|^2 / (2 g^2) ]  -  N E_i E_q [ log p(x_i | z_i) ],

    with t uniform on [0, 1], i uniform over the N observations, and the posterior's drift

        f = (dm/dt + eps ds/dt) / T  -  g^2 eps / (2 s)  +  d(g^2)/dz / 2,     z = m + s eps.

    Source: Bartosh, Vetrov and Naesseth (2025), SDE Matching, its terms L_prior, L_diff and L_rec; chapter
    ``posterior/latent_sde``.

    >>> from fractal_lib.posterior import LadderPosterior, LinearObservation, PriorSDE
    >>> data = Observations(torch.randn(5, 41, 2))
    >>> model = LatentSDE(PriorSDE(3, 16), LinearObservation(3, 2, noise=0.1), LadderPosterior(data, 3, 16))
    >>> series = torch.tensor([0, 1, 4])
    >>> model(data, model.posterior.prepare(data), series).bound.shape
    torch.Size([3])
    """

    def __init__(self, prior: nn.Module, observation: nn.Module, posterior: Posterior, scaled: bool = True):
        super().__init__()
        self.prior, self.observation, self.posterior, self.scaled = prior, observation, posterior, scaled

    def forward(
        self,
        data: Observations,
        context,
        series: Tensor,
        queries: int = 1,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """One unbiased estimate of the bound's terms for each series (B,).

        Args:
            data: `Observations`.
            context: ``posterior.prepare(data)``.
            series: (B,) int64, which of them.
            queries: Q, times drawn for the drift and observations drawn for the reconstruction, a series.
            generator: of the random numbers, on the device of the data.

        Complexity: the posterior is asked once, at 1 + 2 Q times.
        """
        batch, device, dtype = len(series), data.values.device, data.values.dtype

        def uniform() -> Tensor:
            return torch.rand(batch, queries, generator=generator, device=device, dtype=torch.float64)

        share = (torch.arange(queries, device=device) + uniform()) / queries  # stratified: one in each part
        at, x = data.draw(series, uniform())
        t = torch.cat([torch.zeros(batch, 1, device=device, dtype=torch.float64), share, at], 1)  # (B, 1 + 2 Q)
        paths = self.posterior(context, series, t)
        noise = torch.randn(paths.m.shape, generator=generator, device=device, dtype=dtype)
        first, middle, last = slice(0, 1), slice(1, 1 + queries), slice(1 + queries, None)
        within = Paths(*(part[:, middle] for part in paths))
        z = paths.m[:, last] + paths.s[:, last] * noise[:, last]
        log_prob = self.observation.log_prob(x, z).mean(1)  # (B,)
        return Terms(
            self._kl(paths.m[:, first], paths.s[:, first]),
            data.duration * self._mismatch(within, noise[:, middle], share, data.duration).mean(1),
            -(data.counts[series].to(dtype) if self.scaled else 1) * log_prob,
        )

    def _kl(self, m: Tensor, s: Tensor) -> Tensor:
        """KL(q(z_0) || p(z_0)), (B,)."""
        normal = torch.distributions.Normal
        p, q = normal(*self.prior.initial(), validate_args=False), normal(m, s, validate_args=False)
        return torch.distributions.kl_divergence(q, p).sum((1, 2))

    def _mismatch(self, paths: Paths, eps: Tensor, t: Tensor, duration: float) -> Tensor:
        """|f - h|^2 / (2 g^2), (B, Q)."""
        f, g2, z = self._drift(paths, eps, t, duration)
        return ((f - self.prior.drift(z, t)) ** 2 / (2 * g2)).sum(-1)

    def _drift(self, paths: Paths, eps: Tensor, t: Tensor, duration: float) -> tuple[Tensor, Tensor, Tensor]:
        """The posterior's drift f at z = m + s eps; g^2; z: (B, Q, Z) each."""
        z = paths.m + paths.s * eps
        g2, pull = torch.func.vjp(lambda z: self.prior.diffusion(z, t) ** 2, z)
        (dg2,) = pull(torch.ones_like(z))  # g_i depends on z_i alone: this is the derivative of each by its own
        return (paths.dm + paths.ds * eps) / duration - g2 * eps / (2 * paths.s) + dg2 / 2, g2, z

    @torch.no_grad()
    def sample_prior(
        self, samples: int, steps: int, duration: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Paths of the prior by Euler-Maruyama: (samples, steps + 1, Z), at even times from 0 to ``duration``."""
        mean, sd = self.prior.initial()
        z = mean + sd * _normal((samples, len(mean)), mean, generator)
        path, tau = [z], duration / steps
        for step in range(steps):
            t = torch.full((samples,), step / steps, device=z.device, dtype=torch.float64)
            noise = _normal(z.shape, z, generator)
            z = z + self.prior.drift(z, t) * tau + self.prior.diffusion(z, t) * noise * tau**0.5
            path.append(z)
        return torch.stack(path, 1)

    @torch.no_grad()
    def sample_posterior(
        self, data: Observations, series: Tensor, steps: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Paths of the posterior SDE by Euler-Maruyama: (B, steps + 1, Z), one for each series (B,).

        At every t its values are distributed as N(m(t), s(t)^2), up to the step; the path tells how they hang
        together. Choose the step well below the time in which the posterior forgets, min s^2 / g^2.
        """
        context = self.posterior.prepare(data)
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=data.values.device).repeat(len(series), 1)
        paths, tau = self.posterior(context, series, t), data.duration / steps
        z = paths.m[:, 0] + paths.s[:, 0] * _normal(paths.m[:, 0].shape, paths.m, generator)
        path = [z]
        for step in range(steps):
            now = Paths(*(part[:, step : step + 1] for part in paths))
            eps = (z.unsqueeze(1) - now.m) / now.s
            f, g2, _ = self._drift(now, eps, t[:, step : step + 1], data.duration)
            z = z + f.squeeze(1) * tau + (g2.squeeze(1) * tau).sqrt() * _normal(z.shape, z, generator)
            path.append(z)
        return torch.stack(path, 1)

    @torch.no_grad()
    def predict(self, data: Observations, series: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sd of an observation at t (B, Q) of series (B,), given all that was observed: (B, Q, X) each."""
        paths = self.posterior(self.posterior.prepare(data), series, t)
        return self.observation.predict(paths.m, paths.s)


def _normal(shape, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
