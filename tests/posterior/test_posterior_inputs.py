"""What users bring to the posterior: taken where it is unambiguous, else one sentence; and nothing
is repeated, wrapped or cut to fit without a word.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fractal_lib.posterior import (
    DataPyramid,
    KnownPrior,
    LadderPosterior,
    LatentSDE,
    LinearGaussianLikelihood,
    Observations,
    PosteriorAffine,
    PriorSDE,
    RecurrentPosterior,
    TimeEmbedding,
    TrainingPlan,
    UltimateFractalPosteriorAffine,
    evaluate,
    fit,
)

VALUES = np.random.default_rng(0).standard_normal((4, 20, 2))


def make(kind="ladder", data=None, latent=3):
    torch.manual_seed(0)
    data = Observations(VALUES.astype(np.float32)) if data is None else data
    if kind == "ladder":
        posterior = LadderPosterior.of(data, latent, 8)
    else:
        posterior = RecurrentPosterior(PosteriorAffine(latent, 8), 2)
    likelihood = LinearGaussianLikelihood(latent, 2, 0.5)
    return LatentSDE(PriorSDE(latent, 8), likelihood, posterior), data


FRAMES = [pd.DataFrame(part) for part in VALUES]
MASK = np.arange(20) % 3 > 0


@pytest.mark.parametrize("values", [VALUES, VALUES.tolist(), FRAMES, torch.from_numpy(VALUES)])
@pytest.mark.parametrize("mask", [MASK, MASK.tolist(), pd.Series(MASK), torch.from_numpy(MASK)])
def test_observations_of_any_kind(values, mask):
    data = Observations(values, observed=mask, duration=np.float32(2))
    assert data.values.shape == (4, 20, 2) and data.counts.tolist() == [13] * 4
    assert type(data.duration) is float and not data.complete


@pytest.mark.parametrize("kind", ["ladder", "recurrent"])
@pytest.mark.parametrize("series", [[1, 3], np.array([1, 3]), pd.Series([1, 3]), (1, np.int64(3))])
def test_predictions_for_series_and_times_of_any_kind(kind, series):
    model, data = make(kind)
    t = torch.rand(2, 5, dtype=torch.float64)
    expected = model.predict(data, torch.tensor([1, 3]), t)
    for times in (t.numpy(), pd.DataFrame(t.numpy())):
        got = model.predict(data, series, times)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    # lists of Python's floats are float32
    assert torch.allclose(model.predict(data, series, t.tolist())[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["ladder", "recurrent"])
def test_one_series_is_one_number(kind):
    model, data = make(kind)
    t = torch.rand(1, 5)
    assert torch.equal(model.predict(data, 2, t)[0], model.predict(data, [np.int64(2)], t)[0])
    paths = model.sample_posterior(data, np.uint8(2), np.int64(3))
    assert paths.shape == (1, 4, 3)
    assert model.sample_prior(np.int64(2), np.int32(3), np.float32(1)).shape == (2, 4, 3)


def test_numbers_of_numpy_make_a_model_and_a_plan_that_is_saved(tmp_path):
    three, data = np.int64(3), Observations(VALUES)
    numbers = dict(lr=np.float32(1e-3), grad_clip=np.float64(1), ema=np.float64(0.9))
    plan = TrainingPlan(steps=three, seed=three, weight_decay=np.float32(0.1), **numbers)
    assert {type(v) for v in vars(plan).values()} <= {int, float, str, type(None)}  # no hiding
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        posterior = LadderPosterior.of(data, three, np.int32(8), levels=np.int64(2))
        likelihood = LinearGaussianLikelihood(three, np.int64(2), np.float32(0.5))
        made.append(LatentSDE(PriorSDE(three, np.int64(8)), likelihood, posterior))
    first = fit(made[0], data, plan, tmp_path / "run.pt")
    assert fit(made[1], data, plan, tmp_path / "run.pt")["nll"] == first["nll"]
    assert evaluate(made[0], data, draws=np.int64(2)).keys() == evaluate(made[1], data).keys()


@pytest.mark.parametrize("mean", [[0.5], np.array([0.5]), pd.Series([0.5]), 0.5])
def test_a_known_prior_of_lists_and_plain_numbers(mean):
    prior = KnownPrior(lambda z, t: -z, lambda z, t: 1.5, mean, [2.0])
    assert prior.initial()[0].tolist() == [0.5] and prior.std.tolist() == [2]
    z = torch.zeros(2, 3, 1)
    assert torch.equal(prior.diffusion(z, torch.zeros(2, 3)), torch.full_like(z, 1.5))


def test_a_head_rounds_a_wider_context():
    head, ctx, t = PosteriorAffine(2, 4), torch.randn(3, 11, 4), torch.rand(3, 1).double().numpy()
    expected = head(ctx.double().float(), torch.from_numpy(t))
    for got in (head(ctx.double(), t), head(ctx.double().numpy(), t)):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_periods_of_any_kind_keep_their_precision():
    expected = TimeEmbedding([1 / 44, 0.5]).rate
    for periods in (np.array([1 / 44, 0.5]), (1 / 44, np.float64(0.5)), pd.Series([1 / 44, 0.5])):
        assert torch.equal(TimeEmbedding(periods).rate, expected)
    assert TimeEmbedding(0.5).rate.tolist() == [4 * np.pi]


LADDER, DATA = make()
RECURRENT, _ = make("recurrent")
GAPPY = Observations(VALUES, observed=MASK)
LATE = Observations(VALUES, duration=3.0)
T = torch.rand(2, 5)
REFUSED = {
    "a negative series": lambda: LADDER.predict(DATA, [-1, 0], T),
    "a series too many": lambda: RECURRENT.predict(DATA, [0, 4], T),
    "a series that is not a number": lambda: LADDER.predict(DATA, [0.5, 1.0], T),
    "a mask for series": lambda: LADDER.predict(DATA, [True, False], T),
    "series (B, 1)": lambda: LADDER.predict(DATA, [[0], [1]], T),
    "one row of times for two": lambda: LADDER.predict(DATA, [0, 1], T[:1]),
    "one row of times for two, recurrent": lambda: RECURRENT.predict(DATA, [0, 1], T[:1]),
    "times (B,)": lambda: RECURRENT.predict(DATA, [0, 1], T[:, 0]),
    "whole times": lambda: LADDER.predict(DATA, [0, 1], T.long()),
    "series too many, in a step": lambda: LADDER(DATA, LADDER.posterior.prepare(DATA), [4]),
    "no times": lambda: LADDER(DATA, LADDER.posterior.prepare(DATA), [0], 0),
    "arrays for data": lambda: LADDER.predict(VALUES, [0, 1], T),
    "arrays to train on": lambda: fit(LADDER, VALUES, TrainingPlan(1)),
    "arrays to evaluate on": lambda: evaluate(LADDER, VALUES),
    "no draws": lambda: evaluate(LADDER, DATA, draws=0),
    "another duration": lambda: LADDER.posterior.prepare(LATE),
    "data that were not prepared": lambda: LADDER.posterior(DATA, [0, 1], T),
    "another ladder's pyramid": lambda: LADDER.posterior(DataPyramid(DATA, 2), [0, 1], T),
    "more levels than there are": lambda: LadderPosterior.of(DATA, 3, 8, levels=99),
    "more levels than there are, pyramid": lambda: DataPyramid(DATA, levels=99),
    "gaps for an encoder without": lambda: RECURRENT.posterior.encode(GAPPY, [0]),
    "fractions for one of two": lambda: DATA.sample([0, 1], torch.rand(1, 3)),
    "a series of floats": lambda: DATA[[0.0]],
    "a head that is none": lambda: RecurrentPosterior(nn.Linear(2, 2), 2),
    "latent sizes": lambda: LatentSDE(PriorSDE(1, 8), LADDER.likelihood, LADDER.posterior),
    "channels": lambda: LinearGaussianLikelihood(3, 2, 0.5).log_prob(T[:, :1], torch.rand(2, 3)),
    "a latent too short": lambda: LinearGaussianLikelihood(3, 2, 0.5).log_prob(T[:, :2], T[:, :1]),
    "noise in words": lambda: LinearGaussianLikelihood(3, 2, "0.5"),
    "half a step": lambda: TrainingPlan(steps=1.5),
    "a rate in words": lambda: TrainingPlan(1, lr="0.1"),
    "an infinite rate": lambda: TrainingPlan(1, lr=np.inf),
    "two durations": lambda: Observations(VALUES, duration=[1.0, 2.0]),
    "a number for drift": lambda: KnownPrior(-1.0, lambda z, t: 1.0, 0.0, 1.0),
    "no diffusion": lambda: KnownPrior(lambda z, t: -z, lambda z, t: 0 * z, 0.0, 1.0),
    "a diffusion of t": lambda: KnownPrior(lambda z, t: -z, lambda z, t: t, [0, 0], [1, 1]),
    "a drift of one row": lambda: KnownPrior(
        lambda z, t: -z[..., :1], lambda z, t: 1, [0, 0], [1, 1]
    ),
    "an infinite mean": lambda: KnownPrior(lambda z, t: -z, lambda z, t: 1, np.inf, 1.0),
    "no hidden units": lambda: PriorSDE(3, 0),
    "half a harmonic": lambda: TimeEmbedding([1.0], harmonics=0.5),
    "a period in words": lambda: TimeEmbedding(["1"]),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_sentence(call):
    with pytest.raises((TypeError, ValueError), match=r"expected|must|reads series|have gaps") as e:
        call()
    assert "\n" not in str(e.value).strip() and len(str(e.value)) < 400


def test_nothing_is_broadcast_to_the_size_of_the_prior():
    posterior = LadderPosterior.of(DATA, 3, 8)
    posterior.latent_size = None  # as a posterior of the user's own, which says nothing
    model = LatentSDE(PriorSDE(3, 8), LADDER.likelihood, posterior)
    model.posterior.net = LadderPosterior.of(DATA, 1, 8).net
    model.likelihood = LinearGaussianLikelihood(1, 2, 0.5)
    with pytest.raises(ValueError, match="latent size 3, the prior's, got 1"):
        model(DATA, model.posterior.prepare(DATA), [0])


def test_a_file_that_is_no_checkpoint_or_another_models_is_refused(tmp_path):
    (tmp_path / "run.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"run.pt as a checkpoint of fit"):
        fit(make()[0], DATA, TrainingPlan(1), tmp_path / "run.pt")
    fit(make()[0], DATA, TrainingPlan(1), tmp_path / "other.pt")
    wider = make(latent=4)[0]
    before = [p.clone() for p in wider.parameters()]
    with pytest.raises(ValueError, match=r"another model: prior.mean \(3,\), not \(4,\)"):
        fit(wider, DATA, TrainingPlan(1), tmp_path / "other.pt")
    assert all(torch.equal(p, q) for p, q in zip(before, wider.parameters(), strict=True))


MODULES = {
    "prior": (lambda **k: PriorSDE(3, 8, TimeEmbedding([0.5]), **k), 45.15868258848786),
    "likelihood": (lambda **k: LinearGaussianLikelihood(3, 2, 0.3, **k), 4.468467701226473),
    "ladder": (lambda **k: LadderPosterior.of(DATA, 3, 8, **k), 38.55189599248115),
    "head": (
        lambda **k: UltimateFractalPosteriorAffine(3, 8, narrow=False, **k),
        33.47841657465324,
    ),
    "recurrent": (
        lambda **k: RecurrentPosterior(PosteriorAffine(3, 8, **k), 2, gaps=True, **k),
        89.10539323638659,
    ),
}


@pytest.mark.parametrize(("build", "total"), MODULES.values(), ids=MODULES)
def test_a_seed_draws_the_parameters_it_always_drew(build, total):
    """Recorded runs start from these; `reset_parameters` draws the same again."""
    torch.manual_seed(0)
    module = build()
    first = [p.detach().clone() for p in module.parameters()]
    assert sum(p.double().abs().sum().item() for p in first) == pytest.approx(total, rel=1e-7)
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(7.0)
    torch.manual_seed(0)
    module.reset_parameters()
    for before, (name, now) in zip(first, module.named_parameters(), strict=True):
        # what belongs to the attention is its own to reset
        assert torch.equal(before, now) or (name.startswith("attention.") and (now == 7).all()), (
            name
        )


@pytest.mark.parametrize("build", [build for build, _ in MODULES.values()], ids=MODULES)
def test_device_and_dtype_are_torchs(build):
    wide = build(dtype=torch.float64)
    assert {p.dtype for p in wide.parameters()} == {torch.float64}
    assert {p.device.type for p in build(device="meta").parameters()} == {"meta"}


def test_a_time_embedding_survives_the_meta_device():
    empty = TimeEmbedding([0.5], device="meta").to_empty(device="cpu")
    empty.reset_parameters()
    assert empty.rate.tolist() == [4 * np.pi]


def test_print_tells_sizes():
    ladder, recurrent = str(LADDER), str(RECURRENT)
    for words in ("scaled=True", "latent_size=3", "hidden_size=8", "channels=2", "levels=6"):
        assert words in ladder, words
    assert "gaps=False" in recurrent and "harmonics=1" in ladder and "learn_noise=False" in ladder
    assert "latent_size=1" in str(KnownPrior(lambda z, t: -z, lambda z, t: 1, 0.0, 1.0))
