"""Multilevel attention against dense attention, its specification and its own bound."""

import pytest
import torch

from fractal_lib import (
    RBF,
    DenseAttention,
    FractalAttention,
    Matern12,
    MultilevelAttention,
    OriginalKernel,
    Pyramid,
    RationalQuadratic,
)


@pytest.mark.parametrize(
    "kernel",
    [RationalQuadratic(1.0, alpha=0.5), RationalQuadratic(5.0 / 2**0.5), Matern12(40.0)],
    ids=repr,
)
@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize("cells", [8, 16, 32])
@pytest.mark.parametrize("expansion", [0, 1])
def test_given_kernel_is_within_its_bound(kernel, n, cells, expansion):
    attention = MultilevelAttention(kernel, cells=cells, expansion=expansion)
    generator = torch.Generator().manual_seed(n)
    noise = torch.randn(1, n, 4, dtype=torch.float64, generator=generator).sign()
    t = torch.rand(1, 32, dtype=torch.float64, generator=generator)
    error = (attention(noise, t) - DenseAttention(kernel)(noise, t)).abs().max()
    assert 0 < error < attention.error_bound(n)


@pytest.mark.parametrize(
    "kernel",
    [RationalQuadratic(1.0, alpha=0.5), RationalQuadratic(5.0 / 2**0.5), Matern12(40.0)],
    ids=repr,
)
@pytest.mark.parametrize("expansion", [0, 1])
@pytest.mark.parametrize("gaps", [False, True])
def test_the_worst_rows_are_within_the_bound(kernel, expansion, gaps):
    """Rows that mark themselves show every weight; the L1 distance is the error of the worst +-1
    rows.
    """
    n, attention = 400, MultilevelAttention(kernel, cells=32, expansion=expansion)
    values, t = (
        torch.eye(n, dtype=torch.float64).unsqueeze(0),
        torch.linspace(0, 1, 97, dtype=torch.float64)[None],
    )
    observed = torch.rand(n, generator=torch.Generator().manual_seed(3)) < (0.2 if gaps else 2)
    ours, dense = attention(values, t, observed), DenseAttention(kernel)(values, t, observed)
    worst = (ours - dense).abs().sum(-1).max()
    assert 1e-5 < worst < attention.error_bound(n, gaps)


def test_more_cells_and_a_higher_order_err_less():
    bounds = [
        MultilevelAttention(RationalQuadratic(1.0, alpha=0.5), cells=w, expansion=o).error_bound(
            10_000
        )
        for o in (0, 1)
        for w in (16, 32, 64)
    ]
    assert bounds[0] > 1.5 * bounds[1] > 3 * bounds[2]  # ~ 1/w
    assert bounds[3] > 3 * bounds[4] > 9 * bounds[5]  # ~ 1/w^2
    # too few cells to promise anything: it says so
    assert MultilevelAttention(RationalQuadratic(1.0, alpha=0.5), cells=4).error_bound(
        10**5
    ) == float("inf")


@pytest.mark.parametrize("expansion", [0, 1])
def test_exact_while_every_row_is_near(expansion):
    attention = MultilevelAttention(RationalQuadratic(3.0 / 2**0.5), cells=64, expansion=expansion)
    with torch.no_grad():  # as an evaluation would ask it
        assert attention.error_bound(64) == 0 < attention.error_bound(1000)
    values, t = torch.randn(2, 64, 3, dtype=torch.float64), torch.rand(2, 7, dtype=torch.float64)
    torch.testing.assert_close(
        attention(values, t),
        DenseAttention(RationalQuadratic(3.0 / 2**0.5))(values, t),
        rtol=0,
        atol=1e-13,
    )


@pytest.mark.parametrize("kernel", [RBF(1e-3), Matern12(1e-3), OriginalKernel()], ids=repr)
def test_a_needle_of_a_kernel_does_not_underflow(kernel):
    attention = MultilevelAttention(kernel)
    values, t = torch.randn(1, 1000, 2, dtype=torch.float64), torch.rand(1, 50, dtype=torch.float64)
    torch.testing.assert_close(
        attention(values, t), DenseAttention(kernel)(values, t), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("expansion", [0, 1])
def test_irregular_times_approach_dense(expansion):
    """Binning moves a row by less than half a bin, or to expansion 1 only bends it: errors fall
    with bins.
    """
    generator = torch.Generator().manual_seed(0)
    n, kernel = 300, RBF(0.05, unit="time")
    values = torch.randn(1, n, 3, dtype=torch.float64, generator=generator)
    times = torch.rand(n, dtype=torch.float64, generator=generator)
    t = torch.rand(1, 40, dtype=torch.float64, generator=generator)
    exact = DenseAttention(kernel)(values, t, times=times)
    errors = []
    for bins in (300, 1200, 4800):
        # all near: binning alone
        attention = MultilevelAttention(kernel, cells=bins + bins % 2, expansion=expansion)
        pyramid = Pyramid(values, times=times, bins=bins, expansion=expansion)
        errors.append((attention(pyramid, t) - exact).abs().max())
    rate = 3 if expansion == 0 else 10  # a quarter of the bin: error / 4, or / 16
    assert errors[0] > rate * errors[1] > rate**2 * errors[2]
    learned = FractalAttention(source="pyramid")(values, t, times=times)
    assert learned.isfinite().all()


@pytest.mark.parametrize("bad", [dict(cells=5), dict(cells=2), dict(expansion=2)], ids=str)
def test_what_multilevel_attention_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match=r"cells|expansion"):
        MultilevelAttention(RationalQuadratic(), **bad)
