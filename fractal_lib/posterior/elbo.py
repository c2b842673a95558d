"""SDE Matching: a latent SDE trained without simulating it (chapter ``posterior/latent_sde``)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fractal_lib.checks import as_int
from fractal_lib.posterior.base import Posterior
from fractal_lib.posterior.marginals import CorrelatedMarginals, Marginals
from fractal_lib.posterior.observations import Drawn, Observations, as_observations
from fractal_lib.posterior.prediction import Predictor
from fractal_lib.posterior.tables import any_channel

__all__ = ["ElboTerms", "LatentSDE"]


class ElboTerms(NamedTuple):
    """The three terms of the negative ELBO, in nats a series; (B,) each.

    Attributes:
        kl_initial: KL divergence of q(z_0) from p(z_0) (torchsde's logqp0).
        kl_path: that of the posterior's path from the prior's (torchsde's logqp_path).
        nll: expected negative log likelihood of the observations.
    """

    kl_initial: Tensor
    kl_path: Tensor
    nll: Tensor

    @property
    def negative_elbo(self) -> Tensor:
        """Their sum, (B,): at least -log p(x) on average, if ``nll`` counts all observations."""
        return self.kl_initial + self.kl_path + self.nll


class LatentSDE(Predictor):
    """A prior SDE, a likelihood and an amortised posterior, and the negative ELBO that trains all
    three.

    Args:
        prior: `PriorSDE` or `KnownPrior`.
        likelihood: `LinearGaussianLikelihood`, or another module with ``log_prob(x, z)``, and
            ``log_prob(x, z, observed)`` if single channels may be missing.
        posterior: a `Posterior`.
        scaled: True for the likelihood of all observations of a series, as the ELBO has it; False
            for that of one, as the method's public notebook has it. With False it is no bound, and
            with many noisy observations the posterior collapses.

    The negative log likelihood of a series is at most its negative ELBO,

        KL(q(z_0) || p(z_0)) + T E_t E_q [ |f - h|^2 / (2 g^2) ] - N E_i E_q [ log p(x_i | z_i) ],

    with t uniform on [0, 1], i uniform over the N observations, each at its exact time, and the
    posterior's drift

        f = (dm/dt + eps ds/dt) / T  -  g^2 eps / (2 s)  +  d(g^2)/dz / 2,     z = m + s eps.

    Where the posterior's coordinates are correlated, s is a triangular matrix L, and

        f = (dm/dt + dL/dt eps + L K eps) / T  -  g^2 L^-T eps / 2  +  d(g^2)/dz / 2,

    with K antisymmetric: marginals alone do not tell how a process turns within them.

    Raises:
        ValueError: for parts whose ``latent_size`` differs, where they have one.

    Complexity: a step costs that of the posterior at 1 + 2 Q times, whatever N is. Source: Bartosh,
    Vetrov and Naesseth (2025), SDE Matching, its terms L_prior, L_diff and L_rec; chapter
    ``posterior/latent_sde``.

    >>> from fractal_lib.posterior import LadderPosterior, LinearGaussianLikelihood, PriorSDE
    >>> data = Observations(torch.randn(5, 41, 2))
    >>> likelihood = LinearGaussianLikelihood(3, 2, noise=0.1)
    >>> model = LatentSDE(PriorSDE(3, 16), likelihood, LadderPosterior.of(data, 3, 16))
    >>> model(data, model.posterior.prepare(data), [0, 1, 4]).negative_elbo.shape
    torch.Size([3])
    """

    def __init__(
        self,
        prior: nn.Module,
        likelihood: nn.Module,
        posterior: Posterior,
        *,
        scaled: bool = True,
    ):
        super().__init__(prior, likelihood, posterior)
        self.scaled = bool(scaled)

    def extra_repr(self) -> str:
        """How the likelihood counts."""
        return f"scaled={self.scaled}"

    def forward(
        self,
        data: Observations,
        prepared: Any,
        series: Any,
        num_times: int = 1,
        generator: torch.Generator | None = None,
        hidden_weight: float = 1.0,
    ) -> ElboTerms:
        """One unbiased estimate of the negative ELBO's terms for each series (B,).

        Args:
            data: `Observations`.
            prepared: ``posterior.prepare(data)``, of the same ``data``, or of ``data.hide(...)``:
                the posterior then reads less than the likelihood counts. A hidden observation
                counts by the log density that the posterior predicts for it, a proper score, and
                the sum is then at most the negative ELBO.
            series: (B,) whole numbers, which of them.
            num_times: Q, times drawn for the drift and observations drawn for the likelihood, a
                series.
            generator: of the random numbers, on the device of the data.
            hidden_weight: of what a hidden observation counts, see `Hiding`.

        Raises:
            TypeError: for data that are not `Observations`, or series that are no whole numbers.
            ValueError: if ``prepared`` was made from other observations, a series is not among
                them, or a size of the posterior, the prior or the likelihood does not fit.

        Complexity: the posterior is evaluated once, at 1 + 2 Q times.
        """
        series = as_observations(data).series_index(series)
        num_times = as_int(num_times, "num_times", least=1)
        if getattr(prepared, "data", prepared).whole is not data:
            raise ValueError("prepared was made from other observations: posterior.prepare(data)")
        shape, device = (len(series), num_times), data.values.device

        def uniform() -> Tensor:
            return torch.rand(shape, generator=generator, device=device, dtype=torch.float64)

        # stratified: one in each part
        begin, end = data.span
        at_drift = (torch.arange(num_times, device=device) + uniform()) / num_times
        at_drift = begin + (end - begin) * at_drift
        row = data.sample(series, uniform())
        start = torch.full((len(series), 1), begin, device=device, dtype=torch.float64)
        q = self.posterior(prepared, series, torch.cat([start, at_drift, row.t], 1))  # (B, 1 + 2 Q)
        noise = torch.randn(q.mean.shape, generator=generator, device=device, dtype=q.mean.dtype)
        first, middle, last = slice(0, 1), slice(1, 1 + num_times), slice(1 + num_times, None)
        kl_initial = self._kl(q.at(first))  # first: it compares the sizes
        seen = getattr(prepared, "data", prepared)
        log_prob = self._log_prob(
            q.at(last), row, noise[:, last], seen, series, hidden_weight
        ).mean(1)  # (B,)
        mismatch = self._mismatch(q.at(middle), noise[:, middle], at_drift, data.duration).mean(1)
        return ElboTerms(
            kl_initial if begin == 0 else 0 * kl_initial,  # the first stretch has it
            data.duration * (end - begin) * mismatch,
            -(data.counts[series].to(log_prob) if self.scaled else 1) * log_prob,
        )

    def _log_prob(
        self,
        q: Marginals | CorrelatedMarginals,
        row: Drawn,
        noise: Tensor,
        seen: Observations,
        series: Tensor,
        hidden_weight: float,
    ) -> Tensor:
        """Of observations (B, Q), where z ~ q; of those that the posterior did not see, the log
        density of what it predicts.
        """
        z = q.sample(noise)
        x, channels = row.values.to(z), () if row.observed is None else (row.observed,)
        log_prob = self.likelihood.log_prob(x, z, *channels)
        if seen.whole is seen or not hasattr(self.likelihood, "log_predictive"):
            return log_prob
        there = any_channel(seen.observed)
        assert there is not None  # some rows are hidden
        predictive = self.likelihood.log_predictive(x, q.mean, q.std, *channels, **q.factor)
        there = there[series.unsqueeze(1), row.row]
        return torch.where(there, log_prob, hidden_weight * predictive)

    def _kl(self, q: Marginals | CorrelatedMarginals) -> Tensor:
        """KL(q(z_0) || p(z_0)), (B,)."""
        initial = self.prior.initial()
        if q.mean.shape[-1:] != initial[0].shape:  # nothing is repeated to fit
            raise ValueError(
                f"expected a posterior of latent size {len(initial[0])}, the prior's, got "
                f"{q.mean.shape[-1]}"
            )
        return q.kl(*initial).sum(1)

    def _mismatch(
        self, q: Marginals | CorrelatedMarginals, eps: Tensor, t: Tensor, duration: float
    ) -> Tensor:
        """|f - h|^2 / (2 g^2), (B, Q)."""
        f, g2, z = self.posterior_drift(q, eps, t, duration)
        return ((f - self.prior.drift(z, t)) ** 2 / (2 * g2)).sum(-1)
