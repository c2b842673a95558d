"""The recurrence-free posterior: its features from the definition, its derivatives, its gaps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fractal_lib.attention.tree import all_levels
from fractal_lib.curves.splines import bspline_weights
from fractal_lib.posterior import DataPyramid, LadderPosterior, Observations, TimeEmbedding

SIZES = [1, 2, 3, 63, 64, 65, 100, 2000]


def make(n, size=3, channels=2, gaps=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, n, channels, generator=generator, dtype=torch.float64)
    observed = torch.rand(size, n, generator=generator) >= gaps
    observed[:, 0] = True
    return Observations(values, observed=observed if gaps else None)


def spline(u):
    u = abs(u)
    return 2 / 3 - u**2 + u**3 / 2 if u < 1 else max(2 - u, 0) ** 3 / 6


def slowly(data, series, x):
    """Value of every level at position x, from the definition, by plain loops; and the share
    observed.
    """
    values = data.values[series]
    there = torch.ones(data.n, dtype=torch.bool) if data.observed is None else data.observed[series]
    found, above = [], None
    for k in reversed(range(all_levels(data.n))):
        width = 2**k
        total, count, missing = torch.zeros(data.channels, dtype=torch.float64), 0.0, 0.0
        for j in range(-(-data.n // width)):
            rows = slice(j * width, min((j + 1) * width, data.n))
            weight = spline((x + 0.5) / width - 0.5 - j) / width
            total += weight * values[rows][there[rows]].sum(0)
            count += weight * there[rows].sum().item()
            missing += weight * (~there[rows]).sum().item()
        if above is None:
            above = total / count
        else:
            above = (total + 0.05 * missing * above) / (count + 0.05 * missing)
        found.append((above, count / (count + missing)))
    return found[::-1]


@pytest.mark.parametrize("gaps", [0.0, 0.6])
@pytest.mark.parametrize("n", [1, 2, 3, 63, 65])
def test_values_are_those_of_the_definition(n, gaps):
    data = make(n, gaps=gaps)
    series = torch.tensor([0, 2])
    t = torch.tensor([[0.0, 0.31, 1.0], [0.5, 0.77, 0.999]], dtype=torch.float64)
    pyramid = DataPyramid(data)
    per_level = 2 * data.channels + (data.observed is not None)
    features = pyramid.read(series, t).value.unflatten(-1, (-1, per_level))
    for b in range(2):
        for q in range(3):
            for k, (value, share) in enumerate(
                slowly(data, int(series[b]), float(t[b, q]) * (n - 1))
            ):
                torch.testing.assert_close(
                    features[b, q, k, : data.channels], value, rtol=0, atol=1e-12
                )
                if data.observed is not None:
                    assert abs(features[b, q, k, -1].item() - share) < 1e-12


@pytest.mark.parametrize("gaps", [0.0, 0.6])
@pytest.mark.parametrize("n", SIZES)
def test_slopes_are_the_derivatives(n, gaps):
    data, step = make(n, gaps=gaps), 1e-6 / n
    pyramid = DataPyramid(data)
    series, t = torch.arange(3), torch.rand(3, 20, dtype=torch.float64) * 0.98 + 0.01
    value, slope = pyramid.read(series, t)
    below, above = pyramid.read(series, t - step).value, pyramid.read(series, t + step).value
    numeric = (above - below) / (2 * step)
    # rounding 1e-16 / step, curvature of at most the third derivative n^3 times step^2; relative to
    # the largest
    torch.testing.assert_close(
        slope, numeric, rtol=1e-6, atol=1e-6 * (1 + slope.abs().max().item())
    )
    assert value.isfinite().all()
    # the second half of each level is the slope in units of the cell's width
    per_level = 2 * data.channels + (data.observed is not None)
    levels = slope.unflatten(-1, (-1, per_level))
    width = 2.0 ** torch.arange(levels.shape[2], dtype=torch.float64).unsqueeze(-1)
    told = value.unflatten(-1, (-1, per_level))[..., data.channels : 2 * data.channels]
    if n > 1:
        torch.testing.assert_close(
            told, levels[..., : data.channels] * width / (n - 1), rtol=1e-9, atol=1e-9
        )


@given(
    n=st.sampled_from([3, 64, 100]),
    row=st.integers(0, 198),
    gaps=st.booleans(),
    seed=st.integers(0, 9),
)
def test_no_jump_in_value_or_slope_at_half_positions(n, row, gaps, seed):
    data = make(n, gaps=0.7 * gaps, seed=seed)
    pyramid, series = DataPyramid(data), torch.arange(3)
    x = (row % (2 * n - 2)) / 2  # cells come in and leave at multiples of a half
    t = torch.tensor([[x - 1e-9, x + 1e-9]], dtype=torch.float64).clamp(0, n - 1).expand(3, -1) / (
        n - 1
    )
    for part in pyramid.read(series, t):
        scale = 1 + part.abs().max().item()
        assert (part[:, 0] - part[:, 1]).abs().max() < 1e-6 * scale


def test_every_row_is_reached_and_no_other_series():
    data = make(100, gaps=0.3)
    values = data.values.clone().requires_grad_()
    again = Observations(values, observed=data.observed)
    DataPyramid(again).read(torch.tensor([1]), torch.tensor([[0.4]])).value.sum().backward()
    assert (values.grad[1][data.observed[1]] != 0).any(1).all()
    assert (values.grad[0] == 0).all() and (values.grad[1][~data.observed[1]] == 0).all()


def test_a_long_gap_is_filled_smoothly():
    values = torch.linspace(0, 1, 512, dtype=torch.float64).view(1, -1, 1)
    observed = torch.ones(512, dtype=torch.bool)
    observed[100:400] = False
    t = torch.linspace(0, 1, 5000, dtype=torch.float64).unsqueeze(0)
    value, slope = DataPyramid(Observations(values, observed=observed)).read(torch.tensor([0]), t)
    assert value.isfinite().all() and slope.isfinite().all()
    share = value[0, :, 2]
    assert share[(t[0] > 0.21) & (t[0] < 0.77)].max() == 0 and share[t[0] < 0.18].min() == 1
    assert value[0, :, 0].min() >= 0 and value[0, :, 0].max() <= 1  # means of means


def posterior(data, **kwargs):
    torch.manual_seed(0)
    model = LadderPosterior.of(data, latent_size=2, hidden_size=8, **kwargs).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("gaps", [0.0, 0.4])
@pytest.mark.parametrize("n", SIZES)
def test_paths_have_true_derivatives(n, gaps):
    data = make(n, gaps=gaps)
    model = posterior(data, time_embedding=TimeEmbedding([0.1], harmonics=2))
    prepared, series, step = model.prepare(data), torch.tensor([2, 0]), 1e-7
    t = torch.rand(2, 9, dtype=torch.float64) * 0.98 + 0.01
    marginals, below, above = (model(prepared, series, at) for at in (t, t - step, t + step))
    for value, slope in (("mean", "mean_dt"), ("std", "std_dt")):
        numeric = (getattr(above, value) - getattr(below, value)) / (2 * step)
        got = getattr(marginals, slope)
        torch.testing.assert_close(
            got, numeric, rtol=1e-4, atol=1e-5 * (1 + got.abs().max().item())
        )


@given(n=st.sampled_from(SIZES), gaps=st.booleans(), single=st.booleans())
def test_a_series_does_not_depend_on_its_batch(n, gaps, single):
    data = make(n, gaps=0.4 * gaps)
    model = posterior(data)
    if single:
        data, model = data.to(torch.float32), model.float()
    t = torch.rand(3, 4, dtype=torch.float64)
    together = model(model.prepare(data), torch.arange(3), t)
    part = torch.tensor([1])
    alone = model(model.prepare(data[part]), torch.tensor([0]), t[1:2])
    tolerance = 1e-5 if single else 1e-12
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(
            a[1:2], b, rtol=tolerance, atol=tolerance * (1 + b.abs().max().item())
        )


def test_fewer_levels_read_less():
    data = make(100)
    assert [posterior(data, levels=k).in_features for k in (3, None)] == [3 * 4, 6 * 4]
    means = (posterior(data, levels=k, features="means").in_features for k in (3, None))
    assert [*means] == [3 * 4, 8 * 4]
    with pytest.raises(ValueError, match="levels from 1 to 8, got 50"):
        posterior(data, levels=50)


def test_spline_derivatives_are_autograds():
    f = torch.rand(50, dtype=torch.float64, requires_grad=True)
    for order in (0, 1):
        weights = bspline_weights(f, order)
        for column in range(4):
            (slope,) = torch.autograd.grad(weights[:, column].sum(), f, retain_graph=True)
            torch.testing.assert_close(
                slope, bspline_weights(f, order + 1)[:, column], rtol=0, atol=1e-13
            )
    with pytest.raises(ValueError, match="0, 1 or 2"):
        bspline_weights(f, 3)


def test_bad_input_is_refused():
    data = make(20)
    with pytest.raises(ValueError, match="levels"):
        DataPyramid(data, levels=0)
    model = posterior(data)
    with pytest.raises(ValueError, match="series of n = 20, the data have n = 21"):
        model.prepare(make(21))
    with pytest.raises(ValueError, match="channels = 2, the data have channels = 3"):
        model.prepare(make(20, channels=3))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        model(model.prepare(data), torch.tensor([0]), torch.tensor([[1.5]]))


@pytest.mark.parametrize("trained_with_gaps", [False, True])
def test_gaps_and_complete_series_are_read_by_one_model(trained_with_gaps):
    """What a model reads does not depend on whether a mask happens to be all True."""
    complete, gappy = make(64), make(64, gaps=0.4)
    masked = Observations(complete.values, observed=torch.ones(3, 64, dtype=torch.bool))
    model = posterior(gappy if trained_with_gaps else complete)
    series, t = torch.arange(3), torch.rand(3, 5, dtype=torch.float64)
    assert all(part.isfinite().all() for part in model(model.prepare(gappy), series, t))
    for one, other in zip(
        model(model.prepare(complete), series, t),
        model(model.prepare(masked), series, t),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert posterior(masked).gaps  # a mask was given: gaps are expected, even if there are none
