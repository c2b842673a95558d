"""The fit finds what made the series, through gaps; its gradient is exact; its units are right."""

import numpy as np
import pytest
import torch

from fractal_lib.inference import autoregression as module
from fractal_lib.inference import fit_autoregression, smooth_autoregression

LAGS = np.array([[1.2, 0.3, -0.4, 0.0], [0.0, 0.7, 0.1, -0.2]])


def simulated(n, seed=0, noise=0.6, missing=0.2):
    generator = np.random.default_rng(seed)
    path = np.zeros((n, 2))
    for j in range(2, n):
        path[j] = LAGS @ np.concatenate([path[j - 1], path[j - 2]])
        path[j] += [0.5, 0.3] * generator.standard_normal(2)
    observed = generator.random(n) > missing
    values = path + noise * generator.standard_normal((n, 2))
    return path, np.where(observed[:, None], values, np.nan), observed


@pytest.fixture(scope="module")
def fitted():
    path, values, observed = simulated(6000)
    with pytest.MonkeyPatch.context() as patch:  # two batches of ten pieces
        patch.setattr(module, "PIECE", 300)
        return path, values, observed, fit_autoregression(values, observed, order=2, tolerance=1e-6)


def test_it_finds_what_made_the_series(fitted):
    *_, model = fitted
    assert model.converged
    # noise and process noise are hard to tell apart: what counts is the next test
    assert model.lags == pytest.approx(LAGS, abs=0.3)
    assert np.diagonal(model.process_noise) == pytest.approx([0.25, 0.09], abs=0.15)
    assert model.noise == pytest.approx([0.36, 0.36], abs=0.15)


def test_the_likelihood_rises_and_ends_above_the_truth(fitted):
    path, values, observed, model = fitted
    assert max(model.log_likelihoods) > model.log_likelihoods[0] + 1
    truth = model._replace(
        lags=LAGS,
        process_noise=np.diag([0.25, 0.09]),
        noise=np.full(2, 0.36),
        centre=np.zeros(2),
    )
    likelihood = [smooth_autoregression(m, values, observed).log_likelihood for m in (model, truth)]
    assert 0 < (likelihood[0] - likelihood[1])[0] < 40
    # the pieces that it was fitted to know less of one another than the whole
    assert likelihood[0][0] == pytest.approx(max(model.log_likelihoods), abs=60)


def test_the_smoother_covers_the_path(fitted):
    path, values, observed, model = fitted
    smooth = smooth_autoregression(model, values, observed)
    assert smooth.mean.shape == smooth.std.shape == (1, 6000, 2)
    z = (path - smooth.mean[0]) / smooth.std[0]
    assert z.std() == pytest.approx(1, abs=0.05)
    assert np.abs(path - smooth.mean[0])[observed].mean() < np.abs(path - values)[observed].mean()


def test_the_gradient_is_the_likelihoods():
    """Fisher's identity, against differences."""
    _, values, observed = simulated(300)
    pieces = module._pieces(np.where(observed[:, None], values, 0), observed)
    model = module._start(pieces, 2)
    for _ in range(2):
        model = module._maximised(model, module._moments(model, pieces))
    white = module._Whitened(model, module._moments(model, pieces))

    def moments(numbers):
        lags, root, noise = white.parameters(numbers)
        at = [part.detach().numpy() for part in (lags, root @ root.mT, noise)]
        return module._moments(module.Autoregression(*at, *model[3:]), pieces)

    start = torch.from_numpy(0.3 * np.random.default_rng(1).standard_normal(white.count))
    x = start.clone().requires_grad_()
    module._expected(*white.parameters(x), moments(x)).backward()
    for i in range(white.count):
        step = torch.zeros(white.count, dtype=torch.float64)
        step[i] = 1e-4
        after, before = (moments(start + s * step).log_likelihood for s in (1, -1))
        assert (after - before) / 2e-4 == pytest.approx(float(x.grad[i]), abs=1e-4, rel=1e-4)


def test_another_unit_changes_nothing_else(fitted):
    _, values, observed = simulated(500)
    scale, shift = np.array([100.0, 0.01]), np.array([5.0, -3.0])
    one = fit_autoregression(values, observed, 1, most=30)
    two = fit_autoregression(values * scale + shift, observed, 1, most=30)
    both = (
        smooth_autoregression(one, values, observed),
        smooth_autoregression(two, values * scale + shift, observed),
    )
    np.testing.assert_allclose(both[1].mean, both[0].mean * scale + shift, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(both[1].std, both[0].std * scale, rtol=1e-5)
    change = np.log(scale).sum() * observed.sum()
    shifted = np.array(one.log_likelihoods) - change
    np.testing.assert_allclose(two.log_likelihoods[:3], shifted[:3], rtol=1e-8)
    assert one.log_likelihoods[-1] == pytest.approx(
        smooth_autoregression(one, values, observed).log_likelihood[0], abs=1.0
    )


def test_missing_values_are_not_read(fitted):
    _, values, observed = simulated(200)
    other = np.where(observed[:, None], values, 1e9)
    one, two = (fit_autoregression(v, observed, 1, most=3) for v in (values, other))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


X = np.random.default_rng(0).standard_normal((50, 2))
HERE = np.ones(50, bool)
REFUSED = {
    "a constant channel": lambda: fit_autoregression(X * [1, 0], HERE),
    "nothing observed": lambda: fit_autoregression(X, ~HERE),
    "fewer rows than lags": lambda: fit_autoregression(X, np.arange(50) < 5, order=4),
    "one number a row": lambda: fit_autoregression(X[:, 0], HERE),
    "a mask of another length": lambda: fit_autoregression(X, HERE[1:]),
    "a mask of numbers": lambda: fit_autoregression(X, HERE.astype(float)),
    "NaN that is observed": lambda: fit_autoregression(X * np.nan, HERE),
    "no lags": lambda: fit_autoregression(X, HERE, order=0),
    "no tolerance": lambda: fit_autoregression(X, HERE, tolerance=0.0),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_sentence(call):
    with pytest.raises((TypeError, ValueError), match=r"expected|must") as error:
        call()
    assert "\n" not in str(error.value)
