"""A posterior whose coordinates are correlated and turn: against distributions of torch, the
Fokker-Planck equation, a rotating process and its exact smoother.
"""

import math

import numpy as np
import pytest
import torch

from fractal_lib.inference import kalman_smoother
from fractal_lib.posterior import (
    CorrelatedMarginals,
    KnownPrior,
    LadderAffine,
    LadderPosterior,
    LatentSDE,
    LinearGaussianLikelihood,
    Marginals,
    Observations,
    Posterior,
    PriorSDE,
    TrainingPlan,
    evaluate,
    fit,
    load_model,
    save_model,
)

SIZE = 3
RATE, TURN, STD = 1.0, 4.0, 1.0  # of the rotating process, in two dimensions


def outputs(t, size=SIZE):
    """(..., Z (Z + 1)) smooth functions of t (...), as a network's."""
    k = torch.arange(size * (size + 1), dtype=torch.float64)
    return torch.sin(1.3 * k + (0.5 + k / 5) * t.unsqueeze(-1)) / 2


def marginals(t, size=SIZE):
    y, dy = torch.func.jvp(lambda t: outputs(t, size), (t,), (torch.ones_like(t),))
    return CorrelatedMarginals.of(y, dy)


def law(q):
    return torch.distributions.MultivariateNormal(q.mean, scale_tril=q.scale)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, SIZE])
def test_values_are_those_of_the_multivariate_normal(size):
    q, eps = marginals(torch.rand(4, 5, dtype=torch.float64), size), normal(4, 5, size)
    assert bool((q.scale.diagonal(dim1=-2, dim2=-1) > 0).all())
    assert bool((q.scale.triu(1) == 0).all()) and torch.equal(q.spin, -q.spin.mT)
    p, z = law(q), q.sample(eps)
    torch.testing.assert_close(q.std, p.stddev)
    (score,) = torch.autograd.grad(p.log_prob(z.requires_grad_()).sum(), z)
    torch.testing.assert_close(q.score(eps), score)
    other = torch.linspace(-1, 1, size).double(), torch.linspace(0.5, 2, size).double()
    fixed = torch.distributions.MultivariateNormal(other[0], scale_tril=other[1].diag())
    torch.testing.assert_close(q.kl(*other), torch.distributions.kl_divergence(p, fixed))
    likelihood = LinearGaussianLikelihood(size, 4, 0.3).double()
    weight = likelihood.net.weight
    exact = (weight @ p.covariance_matrix @ weight.mT).diagonal(dim1=-2, dim2=-1) + 0.3**2
    torch.testing.assert_close(likelihood.predict(q.mean, q.std, **q.factor)[1], exact.sqrt())
    x = normal(4, 5, 4, seed=1)
    one = torch.distributions.Normal(likelihood.net(q.mean), exact.sqrt()).log_prob(x).sum(-1)
    torch.testing.assert_close(likelihood.log_predictive(x, q.mean, q.std, **q.factor), one)


def test_slopes_are_the_derivatives_and_gradients_flow():
    t = torch.rand(2, 3, dtype=torch.float64)
    q, one = marginals(t), torch.ones_like(t)
    for name in ("mean", "scale"):
        _, slope = torch.func.jvp(lambda t, name=name: getattr(marginals(t), name), (t,), (one,))
        torch.testing.assert_close(getattr(q, name + "_dt"), slope)
    eps, unit = normal(2, 3, SIZE), torch.ones(SIZE, dtype=torch.float64)

    def everything(y, dy):
        q = CorrelatedMarginals.of(y, dy)
        return q.sample(eps), q.velocity(eps), q.score(eps), q.kl(unit, 2 * unit), q.std

    y = normal(2, 3, SIZE * (SIZE + 1)).requires_grad_()
    assert torch.autograd.gradcheck(everything, (y, normal(*y.shape, seed=1).requires_grad_()))


def test_the_drift_moves_the_marginals():
    """Fokker-Planck for a g that depends on z: d log q / dt + div v + v . score = 0, with v what
    the drift leaves without its noise, f - g^2 score / 2 - d(g^2)/dz / 2.
    """
    torch.manual_seed(0)
    prior, duration = PriorSDE(SIZE, 8).double(), 3.0
    parts = LinearGaussianLikelihood(SIZE, 1, 1.0).double(), LadderPosterior(SIZE, 8, 1, 5)
    model, t = LatentSDE(prior, *parts), torch.tensor([[0.4]], dtype=torch.float64)
    q = marginals(t)

    def flow(z):
        eps = torch.linalg.solve(q.scale[0, 0], z - q.mean[0, 0])
        f, g2, same = model.posterior_drift(q, eps.view(1, 1, -1), t, duration)
        slope = torch.func.jacrev(lambda z: prior.diffusion(z, t[0, 0]) ** 2)(z).diagonal()
        score = torch.func.grad(lambda z: law(q).log_prob(z).sum())(z)
        torch.testing.assert_close(same[0, 0], z)
        return (f[0, 0] - g2[0, 0] * score / 2 - slope / 2) * duration, score

    for z in (q.sample(normal(1, 20, SIZE)))[0]:
        slope = torch.func.jacrev(lambda t, z=z: law(marginals(t)).log_prob(z).sum())(t).sum()
        v, score = flow(z)
        divergence = torch.func.jacrev(lambda z: flow(z)[0])(z).trace()
        torch.testing.assert_close(slope + divergence + v @ score, 0 * slope, rtol=0, atol=1e-9)


def test_without_correlation_it_is_the_independent_one():
    t = torch.rand(2, 3, dtype=torch.float64)
    y, dy = torch.func.jvp(outputs, (t,), (torch.ones_like(t),))
    keep = torch.arange(y.shape[-1]) < 2 * SIZE
    one = Marginals.of(y[..., : 2 * SIZE], dy[..., : 2 * SIZE])
    two = CorrelatedMarginals.of(y * keep, dy * keep)
    eps, g2 = normal(2, 3, SIZE), normal(2, 3, SIZE, seed=2) ** 2
    for name in ("sample", "velocity", "score"):
        torch.testing.assert_close(getattr(one, name)(eps), getattr(two, name)(eps))
    unit = torch.ones(SIZE, dtype=torch.float64)
    torch.testing.assert_close(one.kl(unit, 2 * unit), two.kl(unit, 2 * unit))
    # the root of a covariance is not unique: without noise, and its square
    step = g2, 0 * g2 + 0.7, 0.01, 3.0
    torch.testing.assert_close(one.step(eps, 0 * eps, *step), two.step(eps, 0 * eps, *step))
    for part in (one, two):
        spread = torch.stack(
            [
                part.step(0 * eps, unit[i] * e, g2, 0 * g2, 0.01, 3.0)
                for i, e in enumerate(torch.eye(SIZE).double())
            ],
            -1,
        )
        square = spread @ spread.mT
        exact = torch.diag_embed(-torch.expm1(-g2 / one.std**2 * 0.03))
        torch.testing.assert_close(square, exact, rtol=1e-9, atol=1e-12)


class Stationary(Posterior):
    """The rotating process's own marginals, which turn as told."""

    correlated = True

    def __init__(self, spin, std=STD):
        super().__init__()
        self.spin, self.std = spin, std

    def prepare(self, data):
        return data

    def forward(self, prepared, series, t):
        zero = torch.zeros(*t.shape, 2, dtype=torch.float64)
        matrix = torch.zeros(*t.shape, 2, 2, dtype=torch.float64)
        antisymmetric = torch.tensor([[0.0, -1], [1, 0]]).double()
        scale = matrix + self.std * torch.eye(2)
        return CorrelatedMarginals(zero, scale, zero, matrix, matrix + self.spin * antisymmetric)


def rotating(posterior, channels, noise):
    """dz = -RATE z + TURN (z turned by 90 degrees) + g dw, stationary with std STD."""
    drift = torch.tensor([[-RATE, -TURN], [TURN, -RATE]])
    g = STD * (2 * RATE) ** 0.5
    prior = KnownPrior(lambda z, t: z @ drift.to(z).mT, lambda z, t: g, [0.0, 0.0], [STD, STD])
    likelihood = LinearGaussianLikelihood(2, channels, noise).requires_grad_(False)
    torch.nn.init.zeros_(likelihood.net.bias)
    likelihood.net.weight.copy_(torch.eye(2)[:channels] + torch.eye(2).flip(0)[:channels] / 2)
    return LatentSDE(prior, likelihood, posterior)


@pytest.mark.parametrize("duration", [1.0, 3.0])
def test_a_process_that_turns_costs_nothing_by_its_own_spin(duration):
    data = Observations(normal(6, 10, 2), duration=duration)
    model = rotating(Stationary(TURN * duration), 2, 0.5).double()
    terms = model(data, data, torch.arange(6), num_times=50)
    assert terms.kl_initial.abs().max() < 1e-12 and terms.kl_path.abs().max() < 1e-12
    # without a spin the mismatch is TURN |z|: twice its square over 4 RATE a unit of time
    model = rotating(Stationary(0.0), 2, 0.5).double()
    cost = model(data, data, torch.arange(6), num_times=20_000).kl_path
    exact = torch.full_like(cost, TURN**2 / (2 * RATE) * duration)
    torch.testing.assert_close(cost, exact, rtol=0.05, atol=0)


def test_paths_of_the_posterior_turn_as_the_process_does():
    duration, steps = 2.0, 20
    data = Observations(normal(1, 5, 2), duration=duration)
    model = rotating(Stationary(TURN * duration), 2, 0.5).double()
    z = model.sample_posterior(data, [0] * 20_000, steps, torch.Generator().manual_seed(0))
    error = 5 / 20_000**0.5
    for lag in (1, 4):
        tau = lag * duration / steps
        cos, sin = math.cos(TURN * tau), math.sin(TURN * tau)
        exact = math.exp(-RATE * tau) * torch.tensor([[cos, -sin], [sin, cos]]).double()
        found = z[:, 7 + lag].mT @ z[:, 7] / 20_000
        assert (found - exact).abs().max() < error
    assert (z[:, -1].mT @ z[:, -1] / 20_000 - torch.eye(2)).abs().max() < error * 2**0.5
    narrow = rotating(Stationary(0.0, std=0.01), 2, 0.5).double()  # far below the step
    z = narrow.sample_posterior(data, [0] * 4000, steps, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(z.std(0), 0.01, rtol=0.06)  # a std is known to 1.1 %


def series(size=48, n=41, duration=2.0, noise=0.3):
    """One channel of rotating paths, and what `kalman_smoother` says of them."""
    decay, angle = math.exp(-RATE * duration / (n - 1)), TURN * duration / (n - 1)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    transition, process = decay * turn, STD**2 * (1 - decay**2) * np.eye(2)
    rng, emission = np.random.default_rng(0), np.array([[1.0, 0.5]])
    path = [STD * rng.normal(size=(size, 2))]
    for _ in range(n - 1):
        step = process[0, 0] ** 0.5 * rng.normal(size=(size, 2))
        path.append(path[-1] @ transition.T + step)
    values = np.stack(path, 1) @ emission.T + noise * rng.normal(size=(size, n, 1))
    model = transition, process, emission, noise**2 * np.eye(1), np.zeros(2), STD**2 * np.eye(2)
    return Observations(torch.tensor(values).float(), duration=duration), kalman_smoother(
        values, np.ones(n, dtype=bool), *model
    )


def test_training_comes_nearer_to_the_exact_smoother_of_a_rotation():
    """One channel is seen: given it the coordinates are correlated, and the drift rotates."""
    data, exact = series()
    least, gap, apart = -exact.log_likelihood.mean(), {}, {}
    for correlated in (False, True):
        torch.manual_seed(0)
        posterior = LadderPosterior.of(data, 2, 64, correlated=correlated)
        model = rotating(posterior, 1, 0.3)
        plan = TrainingPlan(300, batch_size=48, num_times=4, lr=5e-3, schedule="cosine")
        fit(model, data, plan)
        found = evaluate(model, data, draws=20, num_times=41)
        gap[correlated] = found["negative_elbo"] - least
        assert gap[correlated] > -4 * found["standard_error"]  # a bound
        t = torch.linspace(0, 1, data.n).double().expand(len(data), -1)
        q = posterior(posterior.prepare(data), torch.arange(len(data)), t)
        apart[correlated] = np.log(q.std.detach().numpy() / exact.std)
    cov = (q.scale @ q.scale.mT).detach().numpy()
    found, true = (c[..., 0, 1] / (c[..., 0, 0] * c[..., 1, 1]) ** 0.5 for c in (cov, exact.cov))
    assert gap[True] < gap[False] / 2, gap
    assert abs(apart[True]).mean() < 0.1 < 0.3 < abs(apart[False]).mean()  # too sure, by far
    assert abs(found - true).mean() < 0.1 and abs(true).mean() > 0.5


def test_it_is_saved_predicts_and_trains_every_parameter(tmp_path):
    torch.manual_seed(0)
    data = Observations(torch.randn(3, 20, 2), observed=torch.rand(3, 20) > 0.3)
    posterior = LadderPosterior.of(data, SIZE, 8, correlated=True)
    torch.nn.init.normal_(posterior.net[-1].weight, std=0.1)
    model = LatentSDE(PriorSDE(SIZE, 8), LinearGaussianLikelihood(SIZE, 2, 0.3), posterior)
    prepared, t = posterior.prepare(data), torch.rand(3, 4)
    model(data, prepared, [0, 1, 2], 3).negative_elbo.sum().backward()
    for name, parameter in posterior.named_parameters():
        assert parameter.grad.isfinite().all() and bool(parameter.grad.any()), name
    save_model(model, tmp_path / "model.pt")
    again, _ = load_model(tmp_path / "model.pt")
    for one, two in zip(*(m.predict(data, [0, 1, 2], t) for m in (model, again)), strict=True):
        assert torch.equal(one, two) and one.shape == (3, 4, 2)
    found = model.forecast(data, [1], 1.0, 5000, steps=1, start=1.0)
    q = posterior(prepared, torch.tensor([1]), torch.ones(1, 1))
    cov = (q.scale @ q.scale.mT)[0, 0]
    # a product of two normals has a std of at most 2^(1/2) times the product of theirs
    error = 5 * (2 / 5000) ** 0.5 * (q.std[0, 0].unsqueeze(0) * q.std[0, 0].unsqueeze(1))
    assert bool(((torch.cov(found.latent[0, :, 0].mT) - cov).abs() < error).all())
    with pytest.raises(ValueError, match="correlated=False"):
        LadderAffine(posterior)
