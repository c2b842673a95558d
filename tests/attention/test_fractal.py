"""The ladder: its learned kernel, and a given kernel against dense attention and its own bound."""

import pytest
import torch

from fractal_lib import (
    Cauchy,
    DenseAttention,
    Exponential,
    FractalAttention,
    Gaussian,
    OriginalKernel,
    PowerLaw,
    Pyramid,
)
from fractal_lib.curves.cantor import bspline_weights


def ladder_kernel(scales, d):
    """sum_k a_k 2^-k beta(d / 2^k), written with beta itself."""
    u = d.abs().unsqueeze(-1) * 0.5 ** torch.arange(len(scales))
    beta = (2 - u).clamp(min=0) ** 3 / 6 - (1 - u).clamp(min=0) ** 3 * 2 / 3
    return (scales.softmax(0) * 0.5 ** torch.arange(len(scales)) * beta).sum(-1)


@pytest.mark.parametrize("n", [2, 64, 100])
@pytest.mark.parametrize("source", ["sample", "pyramid"])
def test_learned_scales_are_their_formula(n, source):
    """Row by row: level k gives each row of its grid (or each row behind its cells) a_k beta."""
    attention = FractalAttention(source=source).double()
    torch.nn.init.normal_(attention.scales)
    t = torch.rand(1, 9, dtype=torch.float64)
    got = attention(torch.eye(n, dtype=torch.float64).unsqueeze(0), t)[0]  # (Q, n): weight of every row
    levels = attention.levels(n)
    share, row = attention.scales[:levels].softmax(0), torch.arange(n).double()
    expected = torch.zeros(9, n, dtype=torch.float64)
    for q in range(9):
        x = t[0, q] * (n - 1)
        for k in range(levels):
            if source == "sample":
                u, part = (x - row) / 2**k, (row % 2**k == 0).double()
            else:
                u, part = (x - ((row // 2**k) * 2**k + (2**k - 1) / 2)) / 2**k, 0.5**k
            u = u.abs()
            beta = (2 - u).clamp(min=0) ** 3 / 6 - (1 - u).clamp(min=0) ** 3 * 2 / 3
            expected[q] += share[k] * beta * part
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def test_reads_grow_as_four_times_log2():
    for n, levels in ((2, 1), (1000, 10), (1024, 10), (1025, 11), (10**6, 20)):
        assert FractalAttention().reads(torch.tensor([[0.3]]), n).index.shape[-1] == 4 * levels
    assert FractalAttention(depth=5).reads(torch.tensor([[0.3]]), 10**6).index.shape[-1] == 20


@pytest.mark.parametrize(
    ("kernel", "most"),
    [(PowerLaw(2.0), 0.01), (Cauchy(20.0), 0.02), (Exponential(50.0), 0.02), (Gaussian(30.0), 0.08)],
    ids=repr,
)
def test_fit_returns_the_error_it_reached(kernel, most):
    attention = FractalAttention()
    error = attention.fit(kernel, 10_000)
    assert error < most  # "1 to 5 %" of the peak, with room; a Gaussian is the hardest
    d = torch.linspace(0, 9999, 40_001, dtype=torch.float64)
    k, fitted = kernel(d, 10_000), ladder_kernel(attention.scales[:14].detach().double(), d)
    scale = (k @ fitted) / (fitted @ fitted)  # softmax loses the scale, which normalising loses anyway
    assert (scale * fitted - k).abs().max() < 1.2 * error + 1e-3


@pytest.mark.parametrize("kernel", [PowerLaw(1.0), Cauchy(5.0), Exponential(40.0)], ids=repr)
@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize("cells", [8, 16, 32])
@pytest.mark.parametrize("order", [0, 1])
def test_given_kernel_is_within_its_bound(kernel, n, cells, order):
    attention = FractalAttention(kernel=kernel, cells=cells, order=order)
    generator = torch.Generator().manual_seed(n)
    noise = torch.randn(1, n, 4, dtype=torch.float64, generator=generator).sign()
    t = torch.rand(1, 32, dtype=torch.float64, generator=generator)
    error = (attention(noise, t) - DenseAttention(kernel)(noise, t)).abs().max()
    assert 0 < error < attention.error_bound(n)


@pytest.mark.parametrize("kernel", [PowerLaw(1.0), Cauchy(5.0), Exponential(40.0)], ids=repr)
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("gaps", [False, True])
def test_the_worst_rows_are_within_the_bound(kernel, order, gaps):
    """Rows that mark themselves show every weight; the L1 distance is the error of the worst +-1 rows."""
    n, attention = 400, FractalAttention(kernel=kernel, cells=32, order=order)
    rows, t = torch.eye(n, dtype=torch.float64).unsqueeze(0), torch.linspace(0, 1, 97, dtype=torch.float64)[None]
    observed = torch.rand(n, generator=torch.Generator().manual_seed(3)) < (0.2 if gaps else 2)
    ours, dense = attention(rows, t, observed), DenseAttention(kernel)(rows, t, observed)
    worst = (ours - dense).abs().sum(-1).max()
    assert 1e-5 < worst < attention.error_bound(n, gaps)


def test_more_cells_and_a_higher_order_err_less():
    bounds = [
        FractalAttention(kernel=PowerLaw(1.0), cells=w, order=o).error_bound(10_000)
        for o in (0, 1)
        for w in (16, 32, 64)
    ]
    assert bounds[0] > 1.5 * bounds[1] > 3 * bounds[2]  # ~ 1/w
    assert bounds[3] > 3 * bounds[4] > 9 * bounds[5]  # ~ 1/w^2
    # too few cells to promise anything: it says so
    assert FractalAttention(kernel=PowerLaw(1.0), cells=4).error_bound(10**5) == float("inf")


@pytest.mark.parametrize("order", [0, 1])
def test_exact_while_every_row_is_near(order):
    attention = FractalAttention(kernel=Cauchy(3.0), cells=64, order=order)
    with torch.no_grad():  # as an evaluation would ask it
        assert attention.error_bound(64) == 0 < attention.error_bound(1000)
    rows, t = torch.randn(2, 64, 3, dtype=torch.float64), torch.rand(2, 7, dtype=torch.float64)
    torch.testing.assert_close(attention(rows, t), DenseAttention(Cauchy(3.0))(rows, t), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", [Gaussian(1e-3), Exponential(1e-3), OriginalKernel()], ids=repr)
def test_a_needle_of_a_kernel_does_not_underflow(kernel):
    attention = FractalAttention(kernel=kernel)
    rows, t = torch.randn(1, 1000, 2, dtype=torch.float64), torch.rand(1, 50, dtype=torch.float64)
    torch.testing.assert_close(attention(rows, t), DenseAttention(kernel)(rows, t), rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", [0, 1])
def test_irregular_times_approach_dense(order):
    """Binning moves a row by less than half a bin, or to order 1 only bends it: errors fall with bins."""
    generator = torch.Generator().manual_seed(0)
    n, kernel = 300, Gaussian(0.05, unit="time")
    rows = torch.randn(1, n, 3, dtype=torch.float64, generator=generator)
    times = torch.rand(n, dtype=torch.float64, generator=generator)
    t = torch.rand(1, 40, dtype=torch.float64, generator=generator)
    exact = DenseAttention(kernel)(rows, t, times=times)
    errors = []
    for bins in (300, 1200, 4800):
        attention = FractalAttention(kernel=kernel, cells=bins + bins % 2, order=order)  # all near: binning alone
        pyramid = Pyramid(rows, times=times, bins=bins, order=order)
        errors.append((attention(pyramid, t) - exact).abs().max())
    rate = 3 if order == 0 else 10  # a quarter of the bin: error / 4, or / 16
    assert errors[0] > rate * errors[1] > rate**2 * errors[2]
    learned = FractalAttention(source="pyramid")(rows, t, times=times)
    assert learned.isfinite().all()


def test_contradictions_are_refused():
    for bad in (
        dict(kernel=Cauchy(), source="sample"), dict(kernel=Cauchy(), depth=3), dict(source="rows"), dict(depth=0),
        dict(cells=5), dict(cells=2), dict(order=1), dict(kernel=Cauchy(), order=2),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"kernel|source|depth|cells"):
            FractalAttention(**bad)
    with pytest.raises(ValueError, match="no scales"):
        FractalAttention(kernel=Cauchy()).fit(Cauchy(), 10)
    with pytest.raises(ValueError, match="given kernel"):
        FractalAttention().error_bound(10)


def test_bspline_is_the_kernel_on_its_grid():
    f = torch.tensor([0.25], dtype=torch.float64)
    at = ladder_kernel(torch.zeros(1).double(), f.unsqueeze(-1) - torch.arange(-1, 3))
    torch.testing.assert_close(bspline_weights(f), at)
