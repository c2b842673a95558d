"""SDE Matching: the ELBO's terms against what is known, and samples against the marginals they
must have.
"""

import math

import pytest
import torch
from torch import nn

from fractal_lib import UltimateFractalPosteriorAffine, WindowAttention
from fractal_lib.posterior import (
    ElboTerms,
    KnownPrior,
    LadderPosterior,
    LatentSDE,
    LinearGaussianLikelihood,
    Marginals,
    Observations,
    Posterior,
    PosteriorAffine,
    PriorSDE,
    RecurrentPosterior,
    TimeEmbedding,
)

HEADS = {
    "dense": lambda: PosteriorAffine(3, 8),
    "window": lambda: PosteriorAffine(3, 8, WindowAttention()),
    "ultimate": lambda: UltimateFractalPosteriorAffine(3, 8),
}


class Given(Posterior):
    """A posterior with a formula: m and s as functions of t, slopes by autograd."""

    def __init__(self, m, s):
        super().__init__()
        self.m, self.s = m, s

    def prepare(self, data):
        return None

    def forward(self, context, series, t):
        one = torch.ones_like(t)
        m, dm = torch.func.jvp(self.m, (t,), (one,))
        s, ds = torch.func.jvp(self.s, (t,), (one,))
        return Marginals(*(part.unsqueeze(-1) for part in (m, s, dm, ds)))


def stationary(rate=2.0, g=1.5, noise=0.5, scaled=True, duration=1.0):
    """An Ornstein-Uhlenbeck prior, and as posterior the prior's own marginals."""
    sd = g / math.sqrt(2 * rate)
    prior = KnownPrior(
        lambda z, t: -rate * z,
        lambda z, t: torch.full_like(z, g),
        torch.zeros(1, dtype=torch.float64),
        torch.full((1,), sd, dtype=torch.float64),
    )
    likelihood = LinearGaussianLikelihood(1, 1, noise).double()
    nn.init.ones_(likelihood.net.weight), nn.init.zeros_(likelihood.net.bias)
    posterior = Given(torch.zeros_like, lambda t: torch.full_like(t, sd))
    values = torch.randn(6, 30, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (
        LatentSDE(prior, likelihood, posterior, scaled=scaled),
        Observations(values, duration=duration),
        sd,
    )


@pytest.mark.parametrize("duration", [1.0, 7.0])
def test_the_priors_own_marginals_cost_nothing(duration):
    model, data, _ = stationary(duration=duration)
    terms = model(data, data, torch.arange(6), num_times=50)
    assert terms.kl_initial.abs().max() < 1e-12 and terms.kl_path.abs().max() < 1e-12


def test_the_reconstruction_is_that_of_all_observations_or_of_one():
    model, data, sd = stationary()
    # E log N(x; z, noise^2) under z ~ N(0, sd^2), in closed form
    exact = 0.5 * math.log(2 * math.pi * 0.25) + (data.values**2 + sd**2).mean((1, 2)) / (2 * 0.25)
    many = model(data, data, torch.arange(6), num_times=200_000).nll
    torch.testing.assert_close(many, 30 * exact, rtol=0.02, atol=0)
    model.scaled = False
    one = model(data, data, torch.arange(6), num_times=200_000).nll
    torch.testing.assert_close(one, exact, rtol=0.02, atol=0)


def test_the_drift_moves_the_marginals():
    """Fokker-Planck in one dimension: f p - (g^2 p)' / 2 must be the flux p dz/dt, for a g that
    depends on z.
    """
    torch.manual_seed(0)
    prior = PriorSDE(1, 8).double()
    duration = 3.0
    model = LatentSDE(
        prior,
        LinearGaussianLikelihood(1, 1, 1.0).double(),
        Given(torch.sin, lambda t: (0.3 * t).exp()),
    )
    t = torch.full((1, 1), 0.4, dtype=torch.float64)
    q = model.posterior(None, None, t)
    eps = torch.linspace(-3, 3, 201, dtype=torch.float64).view(1, -1, 1)
    wide = Marginals(*(part.expand(1, 201, 1) for part in q))
    f, g2, z = model.posterior_drift(wide, eps, t.expand(1, 201), duration)

    def g2_times_p(z):
        p = torch.distributions.Normal(q.mean, q.std).log_prob(z).exp()
        return prior.diffusion(z, t.expand(1, 201)) ** 2 * p

    flow = (q.mean_dt + eps * q.std_dt) / duration
    p = torch.distributions.Normal(q.mean, q.std).log_prob(z).exp()
    slope = (g2_times_p(z + 1e-5) - g2_times_p(z - 1e-5)) / 2e-5
    torch.testing.assert_close(f * p - slope / 2, flow * p, rtol=0, atol=1e-8)


def small(kind, n=20, gaps=False, dtype=torch.float64):
    torch.manual_seed(0)
    observed = torch.rand(5, n) > 0.3 if gaps else None
    data = Observations(torch.randn(5, n, 2, dtype=dtype), observed=observed)
    posterior = (
        LadderPosterior.of(data, 3, 8)
        if kind == "ladder"
        else RecurrentPosterior(HEADS[kind](), 2, gaps=gaps)
    )
    return LatentSDE(PriorSDE(3, 8), LinearGaussianLikelihood(3, 2, 0.3), posterior).to(dtype), data


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("kind", ["ladder", *HEADS])
def test_every_posterior_trains_every_parameter(kind, gaps):
    model, data = small(kind, gaps=gaps)
    nn.init.normal_(
        model.posterior.net[-1].weight if kind == "ladder" else model.posterior.head.net[-1].weight
    )
    terms = model(data, model.posterior.prepare(data), torch.tensor([0, 3, 4]), num_times=3)
    assert [part.shape for part in terms] == [(3,)] * 3
    terms.negative_elbo.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", list(HEADS))
def test_one_read_answers_as_one_for_each_time(kind):
    model, data = small(kind)
    series, t = torch.tensor([1, 2]), torch.rand(2, 5, dtype=torch.float64)
    together = model.posterior(data, series, t)
    ctx = model.posterior.encode(data, series)
    for q in range(5):
        (m, s), (dm, ds) = model.posterior.head(ctx, t[:, q : q + 1], return_t_dir=True)
        for got, one in zip(together, (m, s, dm, ds), strict=True):
            torch.testing.assert_close(got[:, q], one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["ladder", "dense"])
def test_many_queries_estimate_what_one_does(kind):
    model, data = small(kind)
    context, series = model.posterior.prepare(data), torch.arange(5)

    def estimates(number, num_times):  # (number, 3 terms, 5 series), each of its own draws
        with torch.no_grad():
            terms = model(data, context, series.repeat(number), num_times)
        return torch.stack(terms).view(3, number, 5).transpose(0, 1)

    one, many = estimates(2000, 1), estimates(200, 16)
    error = (one.var(0) / 2000 + many.var(0) / 200).sqrt() + 1e-12
    assert ((one.mean(0) - many.mean(0)).abs() / error).max() < 5


def test_gaps_are_never_looked_at():
    model, data = small("dense", gaps=True)
    spoilt = torch.where(data.observed.unsqueeze(-1), data.values, torch.nan)
    again = Observations(spoilt, observed=data.observed)
    results = [
        model(
            d, model.posterior.prepare(d), torch.arange(5), 4, torch.Generator().manual_seed(0)
        ).negative_elbo
        for d in (data, again)
    ]
    assert torch.equal(*results)


def test_prior_samples_of_a_known_process():
    model, _, sd = stationary()
    z = model.sample_prior(4000, steps=200, generator=torch.Generator().manual_seed(0))
    assert z.shape == (4000, 201, 1)
    # 4 standard errors of a variance, and the step's own bias rate tau / 2 = 1/200
    assert abs(z[:, -1].var().item() / sd**2 - 1) < 4 * math.sqrt(2 / 4000) + 0.01
    lagged = (z[:, 0] * z[:, 100]).mean().item() / sd**2
    assert abs(lagged - math.exp(-2.0 * 0.5)) < 4 / math.sqrt(4000) + 0.01


def test_posterior_paths_have_the_posteriors_marginals():
    prior = KnownPrior(
        lambda z, t: z,
        lambda z, t: 0.5 + 0.3 * torch.sigmoid(z),
        torch.zeros(1).double(),
        torch.ones(1).double(),
    )
    posterior = Given(lambda t: torch.sin(4 * t), lambda t: 0.5 + 0.3 * t)
    model = LatentSDE(prior, LinearGaussianLikelihood(1, 1, 1.0).double(), posterior)
    data = Observations(torch.zeros(1, 5, 1).double(), duration=2.0)
    z = model.sample_posterior(
        data, torch.zeros(4000, dtype=torch.int64), 400, torch.Generator().manual_seed(1)
    )
    for step in (0, 100, 250, 400):
        t = step / 400
        m, s = math.sin(4 * t), 0.5 + 0.3 * t
        # 4 standard errors, and 1 % for steps of 0.005
        assert abs(z[:, step].mean().item() - m) < 4 * s / math.sqrt(4000) + 0.01
        assert abs(z[:, step].std().item() / s - 1) < 4 / math.sqrt(8000) + 0.01


def test_predictions_carry_both_variances():
    model, data, sd = stationary()
    mean, std = model.predict(data, torch.arange(2), torch.rand(2, 3, dtype=torch.float64))
    assert mean.abs().max() == 0
    torch.testing.assert_close(std, torch.full_like(std, math.sqrt(sd**2 + 0.25)))


def test_the_time_embedding_and_its_derivative():
    time_embedding, t = (
        TimeEmbedding([0.2, 0.05], harmonics=3),
        torch.rand(4, 5, dtype=torch.float64),
    )
    value, slope = time_embedding(t)
    assert value.shape == (4, 5, time_embedding.out_features) == (4, 5, 13)
    _, by_ad = torch.func.jvp(lambda t: time_embedding(t)[0], (t,), (torch.ones_like(t),))
    torch.testing.assert_close(slope, by_ad)
    prior = PriorSDE(2, 8, time_embedding).double()
    z = torch.randn(4, 5, 2, dtype=torch.float64)
    assert not torch.allclose(prior.drift(z, t), prior.drift(z, (t + 0.01) % 1))


def test_diffusion_of_a_coordinate_depends_on_it_alone():
    prior = PriorSDE(3, 8).double()
    z = torch.randn(3, dtype=torch.float64)
    jacobian = torch.func.jacfwd(lambda z: prior.diffusion(z, torch.zeros(())))(z)
    assert (jacobian - jacobian.diag().diag()).abs().max() == 0 and (jacobian.diag() != 0).all()


def test_observations_draws_only_what_was_observed():
    observed = torch.rand(4, 50, generator=torch.Generator().manual_seed(0)) > 0.8
    observed[:, 7] = True
    values = torch.arange(200.0).view(4, 50, 1)
    data = Observations(values, observed=observed)
    series = torch.tensor([3, 0])
    t, _, x, _ = data.sample(series, torch.linspace(0, 1, 501)[:-1].expand(2, -1))
    for b, s in enumerate(series.tolist()):
        rows = (t[b] * 49).round().long()
        assert set(rows.tolist()) == set(observed[s].nonzero().flatten().tolist())
        assert torch.equal(x[b, :, 0], values[s, rows, 0])
    assert data.sample(series, torch.full((2, 1), 1 - 1e-17, dtype=torch.float64))[0].max() <= 1


@pytest.mark.parametrize(
    ("values", "observed", "duration", "error"),
    [
        (torch.zeros(2, 3, 1).long(), None, 1.0, TypeError),
        (torch.zeros(2, 3), None, 1.0, ValueError),
        (torch.zeros(2, 0, 1), None, 1.0, ValueError),
        (torch.zeros(2, 3, 1), torch.ones(2, 3), 1.0, TypeError),
        (torch.zeros(2, 3, 1), torch.ones(3, 2).bool(), 1.0, ValueError),
        (torch.zeros(2, 3, 1), torch.zeros(2, 3).bool(), 1.0, ValueError),
        (torch.full((2, 3, 1), torch.nan), None, 1.0, ValueError),
        (torch.full((2, 3, 1), torch.inf), None, 1.0, ValueError),
        (torch.zeros(2, 3, 1), None, 0.0, ValueError),
        (torch.zeros(2, 3, 1), None, math.inf, ValueError),
    ],
)
def test_bad_observations_are_refused(values, observed, duration, error):
    with pytest.raises(error):
        Observations(values, observed=observed, duration=duration)


@pytest.mark.parametrize("kind", ["ladder", "dense"])
def test_what_was_prepared_from_other_data_is_refused(kind):
    model, data = small(kind)
    other = Observations(data.values + 1)
    with pytest.raises(ValueError, match="other observations"):
        model(data, model.posterior.prepare(other), torch.arange(2))


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="noise"):
        LinearGaussianLikelihood(1, 1, 0.0)
    with pytest.raises(ValueError, match="periods"):
        TimeEmbedding([0.0])
    with pytest.raises(ValueError, match="std"):
        KnownPrior(lambda z, t: -z, lambda z, t: 1, torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="couples coordinates"):
        KnownPrior(lambda z, t: -z, lambda z, t: 1 + z.flip(-1) ** 2, torch.zeros(2), torch.ones(2))
    model, data = small("dense", gaps=True)
    with pytest.raises(ValueError, match="gaps"):
        RecurrentPosterior(PosteriorAffine(3, 8), 2).prepare(data)
    with pytest.raises(ValueError, match="channels"):
        RecurrentPosterior(PosteriorAffine(3, 8), 5, gaps=True).prepare(data)
    assert ElboTerms(torch.ones(2), torch.ones(2), torch.ones(2)).negative_elbo.tolist() == [3, 3]
