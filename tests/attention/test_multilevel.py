"""Multilevel attention against dense attention, its specification and its own bound."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from fractal_lib.attention import multilevel
from fractal_lib.reference import multilevel_weights


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


@pytest.mark.parametrize("expansion", [0, 1])
@pytest.mark.parametrize(
    "kernel", [RBF(1.5), RationalQuadratic(3.0, alpha=0.5), Matern12(6.0)], ids=repr
)
@pytest.mark.parametrize("gaps", [False, True])
def test_weights_are_their_specification(kernel, expansion, gaps):
    n, attention = 67, MultilevelAttention(kernel, cells=4, expansion=expansion)
    observed = torch.ones(n, dtype=torch.bool)
    if gaps:
        observed = torch.rand(n, generator=torch.Generator().manual_seed(1)) < 0.3
        observed[20:45] = False
    eye = torch.eye(n, dtype=torch.float64)[None]
    for x in (0.0, 7.3, 29.0, 33.7, 66.0):
        expected = multilevel_weights(x, n, kernel, 4, expansion, observed)
        out = attention(eye, torch.tensor([[x / (n - 1)]], dtype=torch.float64), observed)
        # first moments are packed as means, and their absolute weights rounded off by 1e-6 each
        atol = 1e-12 if not gaps else 1e-3 * expansion + 1e-12
        torch.testing.assert_close(out[0, 0], expected, rtol=0, atol=atol)


@st.composite
def sparse_masks(draw):
    n = draw(st.integers(2, 400))
    rows = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=12))
    observed = torch.zeros(n, dtype=torch.bool)
    for row in rows:  # a few short runs
        observed[row : row + draw(st.integers(1, 9))] = True
    return n, observed


@given(
    sparse_masks(),
    st.floats(0, 1),
    st.sampled_from(
        [OriginalKernel(), RBF(0.1), RBF(5.0), Matern12(0.5), RationalQuadratic(2.0, alpha=4.0)]
    ),
    st.sampled_from([4, 6, 16]),
)
@settings(max_examples=300)
def test_with_any_mask_first_moments_stay_bounded(mask, t, kernel, cells):
    n, observed = mask
    attention = MultilevelAttention(kernel, cells=cells, expansion=1)
    # the sum of absolute weights is the most that values in [-1, 1] can give
    eye, t = torch.eye(n, dtype=torch.float64)[None], torch.tensor([[t]], dtype=torch.float64)
    assert attention(eye, t, observed).abs().sum() <= 2 + 1e-12


@given(st.integers(0, 99), st.integers(2, 30), st.floats(0, 1))
@settings(max_examples=100)
def test_with_any_times_first_moments_stay_bounded(seed, n, t):
    times = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    eye, t = torch.eye(n, dtype=torch.float64)[None], torch.tensor([[t]], dtype=torch.float64)
    attention = MultilevelAttention(RBF(0.3), cells=4, expansion=1)
    assert attention(Pyramid(eye, times=times, bins=64, expansion=1), t).abs().sum() <= 2 + 1e-12


def test_a_mask_of_true_is_no_mask():
    """Of a kernel so wide that the moments of complete data are large enough to be faded."""
    attention, n = MultilevelAttention(RBF(100.0), cells=4, expansion=1), 300
    values, t = torch.randn(2, n, 2, dtype=torch.float64), torch.rand(2, 50, dtype=torch.float64)
    tree = attention.prepare(values, torch.ones(n, dtype=torch.bool)).tree
    reads = attention.reads(t, n)
    moments = reads.weights[..., reads.weights.shape[-1] // 2 :]
    stride = torch.ones(len(moments[0, 0]), dtype=torch.int64)  # a lower bound of the fade's size
    tree.places = "bins"
    assert (multilevel._fade(moments, stride, tree) < 0.9).any()
    full = attention(values, t, torch.ones(n, dtype=torch.bool))
    torch.testing.assert_close(full, attention(values, t), rtol=0, atol=1e-13)
    # and one sample's gaps do not change another
    observed = torch.ones(2, n, dtype=torch.bool)
    observed[1, 100:200] = False
    mixed = attention(values, t, observed)
    torch.testing.assert_close(mixed[0], attention(values, t)[0], rtol=0, atol=1e-13)


def test_faded_moments_are_smooth_in_t():
    """Through the whole range of the fade: value, slope and curvature against differences."""
    n, attention = 120, MultilevelAttention(RBF(6.0), cells=4, expansion=1)
    observed = torch.zeros(n, dtype=torch.bool)
    observed[[0, 1, 2, 9, 70, 77, 78, 119]] = True
    values = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pyramid = attention.prepare(values[None], observed)
    x = torch.linspace(0.13, n - 1.13, 2000, dtype=torch.float64)

    def at(x):
        return attention(pyramid, (x / (n - 1))[None])[0, :, 0]

    def along(f):
        return lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]

    h = 1e-4
    for f in (at, along(at)):
        slope, central = along(f)(x), (f(x + h) - f(x - h)) / (2 * h)
        # h^2/6 of a derivative, of order 1e4 where a moment's absolute value is rounded off
        torch.testing.assert_close(slope, central, rtol=1e-3, atol=1e-3)


def test_the_reach_of_a_cell_is_that_of_all_masks():
    """What `error_bound` rests on, by brute force over every set of rows of a cell."""
    for level in (1, 2, 3):
        width = 2**level
        sets = (torch.arange(1, 2**width)[:, None] >> torch.arange(width)) & 1
        row = torch.arange(width).double()
        centroid = (sets * row).sum(1) / sets.sum(1)
        reach = ((row - centroid[:, None]).abs() * sets).amax(1)
        complete = multilevel._cell_reach(level, gaps=False)
        assert reach[-1] == complete  # every row
        assert complete <= reach.max() <= multilevel._cell_reach(level, gaps=True)
        if level > 1:
            assert reach.max() > complete


def test_the_bound_with_gaps_covers_what_first_moments_lose_when_they_fade():
    narrow, wide = RBF(60.0), RationalQuadratic(1.0, alpha=0.5)
    for kernel, cells in ((narrow, 32), (wide, 16), (wide, 32)):
        with_gaps = [
            MultilevelAttention(kernel, cells=cells, expansion=e).error_bound(256, gaps=True)
            for e in (0, 1)
        ]
        # few cells: moments may be faded out, which leaves what expansion 0 promises
        assert (with_gaps[1] == with_gaps[0]) == (kernel is narrow or cells == 16)
        attention = MultilevelAttention(kernel, cells=cells, expansion=1)
        eye, t = torch.eye(256, dtype=torch.float64)[None], torch.tensor([[0.0]]).double()
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            observed = torch.rand(256, generator=generator) < 0.02
            observed[200 + seed] = True
            dense = DenseAttention(kernel)(eye, t, observed)
            assert (attention(eye, t, observed) - dense).abs().sum() <= with_gaps[1]


@pytest.mark.parametrize("expansion", [0, 1])
@pytest.mark.parametrize("cells", [4, 16, 32])
def test_reads_are_as_many_as_stated(cells, expansion):
    for n in (2, 100, 1000, 4096, 100_000, 10**6):
        levels = max(math.ceil(math.log2(n / cells)), 0)
        stated = 2 * cells + 3 + (3 * cells // 2 + 4) * levels
        attention = MultilevelAttention(RationalQuadratic(), cells=cells, expansion=expansion)
        reads = attention.reads(torch.tensor([[0.3]]), n)
        assert reads.indices.shape[-1] == reads.weights.shape[-1] == stated * (1 + expansion)
