"""The ladder: its learned kernel, and a given kernel against dense attention and its own bound."""

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
from fractal_lib.curves.splines import bspline_weights


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
    torch.nn.init.normal_(attention.level_logits)
    t = torch.rand(1, 9, dtype=torch.float64)
    # (Q, n): weight of every row
    got = attention(torch.eye(n, dtype=torch.float64).unsqueeze(0), t)[0]
    levels = attention.levels(n)
    share, row = attention.level_logits[:levels].softmax(0), torch.arange(n).double()
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
        assert FractalAttention().reads(torch.tensor([[0.3]]), n).indices.shape[-1] == 4 * levels
    assert FractalAttention(depth=5).reads(torch.tensor([[0.3]]), 10**6).indices.shape[-1] == 20


@pytest.mark.parametrize(
    ("kernel", "most"),
    [
        (RationalQuadratic(2.0, alpha=0.5), 0.01),
        (RationalQuadratic(20.0 / 2**0.5), 0.02),
        (Matern12(50.0), 0.02),
        (RBF(30.0), 0.08),
    ],
    ids=repr,
)
def test_fit_returns_the_error_it_reached(kernel, most):
    attention = FractalAttention()
    error = attention.fit(kernel, 10_000)
    assert error < most  # "1 to 5 %" of the peak, with room; a Gaussian is the hardest
    d = torch.linspace(0, 9999, 40_001, dtype=torch.float64)
    k, fitted = kernel(d, 10_000), ladder_kernel(attention.level_logits[:14].detach().double(), d)
    # softmax loses the scale, which normalising loses anyway
    scale = (k @ fitted) / (fitted @ fitted)
    assert (scale * fitted - k).abs().max() < 1.2 * error + 1e-3


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


@pytest.mark.parametrize("bad", [dict(source="rows"), dict(depth=0), dict(depth=33)], ids=str)
def test_what_a_ladder_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match=r"source|depth"):
        FractalAttention(**bad)


@pytest.mark.parametrize("bad", [dict(cells=5), dict(cells=2), dict(expansion=2)], ids=str)
def test_what_multilevel_attention_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match=r"cells|expansion"):
        MultilevelAttention(RationalQuadratic(), **bad)


def test_bspline_is_the_kernel_on_its_grid():
    f = torch.tensor([0.25], dtype=torch.float64)
    at = ladder_kernel(torch.zeros(1).double(), f.unsqueeze(-1) - torch.arange(-1, 3))
    torch.testing.assert_close(bspline_weights(f), at)
