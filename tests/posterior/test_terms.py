"""The ELBO's terms against closed forms away from the optimum, and training's small print: faults
that leave a trained model plausible.
"""

import math

import pytest
import torch

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
    TrainingPlan,
    evaluate,
    fit,
)

MEAN, STD, PRIOR_MEAN, PRIOR_STD, RATE, G, T = 0.7, 0.3, -0.2, 1.1, 2.0, 1.5, 3.0


class Constant(Posterior):
    """N(MEAN, STD^2) at all times."""

    def prepare(self, data):
        return data

    def forward(self, prepared, series, t):
        one = torch.ones(*t.shape, 1, dtype=torch.float64)
        return Marginals(MEAN * one, STD * one, 0 * one, 0 * one)


def constant(values, observed=None):
    mean, std = (torch.tensor([part], dtype=torch.float64) for part in (PRIOR_MEAN, PRIOR_STD))
    likelihood = LinearGaussianLikelihood(1, 1, 0.5, dtype=torch.float64)
    torch.nn.init.ones_(likelihood.net.weight)
    torch.nn.init.zeros_(likelihood.net.bias)
    model = LatentSDE(
        KnownPrior(lambda z, t: -RATE * z, lambda z, t: G, mean, std), likelihood, Constant()
    )
    data = Observations(values, observed=observed, duration=T)
    return model(data, data, range(len(data)), 100_000, torch.Generator().manual_seed(0))


def test_each_term_is_its_closed_form():
    values = torch.randn(2, 30, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    observed = torch.arange(30) % 3 == 0
    observed = torch.stack([observed, torch.arange(30) % 5 > 0])  # 10 rows and 24
    terms = constant(values, observed)
    ratio = (STD / PRIOR_STD) ** 2
    kl = (ratio + ((MEAN - PRIOR_MEAN) / PRIOR_STD) ** 2 - 1 - math.log(ratio)) / 2
    assert terms.kl_initial.tolist() == pytest.approx([kl] * 2, rel=1e-12)
    # f = -g^2 eps / (2 s) and h = -rate (m + s eps)
    path = T / (2 * G**2) * ((RATE * MEAN) ** 2 + (RATE * STD - G**2 / (2 * STD)) ** 2)
    # 100000 draws of a square of relative std about 2: four standard errors are below 3 %
    assert terms.kl_path.tolist() == pytest.approx([path] * 2, rel=0.03)
    for b, count in enumerate((10, 24)):
        squares = ((values[b][observed[b]] - MEAN) ** 2).mean().item() + STD**2
        nll = count * (squares / (2 * 0.25) + math.log(2 * math.pi * 0.25) / 2)
        assert terms.nll[b].item() == pytest.approx(nll, rel=0.03)


def test_the_recurrent_context_is_the_last_state_then_all_and_sees_the_mask():
    torch.manual_seed(0)
    observed = torch.rand(4, 9) > 0.4
    observed[:, 0] = True
    data = Observations(torch.randn(4, 9, 2), observed=observed)
    posterior, seen = RecurrentPosterior(PosteriorAffine(2, 8), 2, gaps=True), []
    posterior.gru.register_forward_hook(lambda gru, args, out: seen.append((args[0], out[0])))
    context = posterior.encode(data, [2, 0])
    (inputs, states), *_ = seen
    assert torch.equal(context[:, 0], states[:, -1]) and torch.equal(context[:, 1:], states)
    assert torch.equal(inputs[..., 2], observed[[2, 0]].float())  # 1 where a row is there
    assert torch.equal(inputs[..., :2], data.values[[2, 0]])


def test_rows_drawn_are_the_observed_ones_and_so_are_the_counts():
    observed = torch.tensor([[True, False, False], [False, True, True]])
    data = Observations(torch.arange(6.0).view(2, 3, 1), observed=observed)
    assert data.counts.tolist() == [1, 2] and data.values.flatten().tolist() == [0, 0, 0, 0, 4, 5]
    t, _, x, _ = data.sample([0, 1], torch.tensor([[0.0, 0.9], [0.0, 0.9]]))
    assert t.tolist() == [[0, 0], [0.5, 1]] and x.flatten().tolist() == [0, 0, 4, 5]


def make():
    torch.manual_seed(0)
    data = Observations(torch.randn(10, 20, 2))
    likelihood = LinearGaussianLikelihood(2, 2, 0.5)
    return LatentSDE(PriorSDE(2, 8), likelihood, LadderPosterior.of(data, 2, 8)), data


@pytest.fixture
def steps(monkeypatch):
    """(learning rate, norm of the gradient) at each of Adam's steps."""
    found, plain = [], torch.optim.Adam.step

    def step(self, *args, **kwargs):
        (group,) = self.param_groups
        norm = math.sqrt(sum(p.grad.norm().item() ** 2 for p in group["params"]))
        found.append((group["lr"], norm))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    return found


def test_the_gradient_is_clipped_before_the_step(steps):
    fit(*make(), TrainingPlan(steps=3, grad_clip=1e-3))
    assert [norm for _, norm in steps] == pytest.approx([1e-3] * 3, rel=1e-3)
    steps.clear()
    fit(*make(), TrainingPlan(steps=3))
    assert min(norm for _, norm in steps) > 1e-2


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_schedule_sets_the_rate_of_every_step(steps, schedule):
    fit(*make(), TrainingPlan(steps=4, lr=0.02, schedule=schedule))
    cosine = [0.01 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    expected = cosine if schedule == "cosine" else [0.02] * 4
    assert [lr for lr, _ in steps] == pytest.approx(expected, rel=1e-12)


def test_the_plans_seed_decides():
    plan = dict(steps=3, batch_size=4)
    first, same, other = (
        fit(*make(), TrainingPlan(**plan, seed=seed))["negative_elbo"] for seed in (1, 1, 2)
    )
    assert first == same and not set(first) & set(other)
    model, data = make()
    of_seed = [evaluate(model, data, draws=2, seed=seed)["negative_elbo"] for seed in (1, 1, 2)]
    assert of_seed[0] == of_seed[1] != of_seed[2]


class Scripted:
    """A model whose estimates are known: four series in parts of three, three draws."""

    def __init__(self):
        self.posterior, self.draws = Constant(), iter([1.0, 1.0, 2.0, 2.0, 6.0, 6.0])

    def __call__(self, data, prepared, series, num_times, generator):
        one = torch.full((len(series),), next(self.draws))
        return ElboTerms(one, 2 * one, 3 * one)


def test_evaluate_is_a_mean_over_series_with_its_standard_error():
    got = evaluate(Scripted(), Observations(torch.zeros(4, 3, 1)), draws=3, batch_size=3)
    assert got["kl_initial"] == 3 and got["kl_path"] == 6 and got["nll"] == 9
    assert got["negative_elbo"] == 18
    # totals 6, 12 and 36: deviations -12, -6 and 18
    std = math.sqrt((12**2 + 6**2 + 18**2) / 2)
    assert got["standard_error"] == pytest.approx(std / math.sqrt(3), rel=1e-12)
