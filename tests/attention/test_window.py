"""The window's stated bound, for every mask: an error, or within it of dense attention."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fractal_lib import (
    RBF,
    DenseAttention,
    Matern12,
    OriginalKernel,
    Pyramid,
    RationalQuadratic,
    WindowAttention,
)

KERNELS = [
    OriginalKernel(),
    RBF(0.2),
    RBF(3.0),
    RBF(0.02, unit="time"),
    Matern12(0.7),
    RationalQuadratic(0.05),
    RationalQuadratic(1.0, alpha=2.0),
]


def worst_error(attention, x, n, observed):
    """L1 distance of the weights from dense attention's: the error of the worst values."""
    values = torch.eye(n, dtype=torch.float64).unsqueeze(0)
    t = torch.tensor([[x / (n - 1)]], dtype=torch.float64)
    out = attention(values, t, observed=observed)
    return (out - DenseAttention(attention.kernel)(values, t, observed=observed)).abs().sum().item()


@st.composite
def masks(draw):
    """A few runs of missing rows, the longest near the query."""
    n = draw(st.integers(2, 300))
    x = draw(st.floats(0, n - 1))
    observed = torch.rand(n, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) < (
        draw(st.sampled_from([0.1, 0.5, 0.9, 2.0]))
    )
    before, after = draw(st.integers(0, 30)), draw(st.integers(0, 30))
    observed[max(round(x) - before, 0) : round(x) + after] = False
    if not observed.any():
        observed[draw(st.integers(0, n - 1))] = True
    return n, x, observed


@given(
    masks(), st.sampled_from(KERNELS), st.sampled_from([1e-9, 1e-4, 0.1]), st.sampled_from([0, 6])
)
@settings(max_examples=400)
def test_with_any_mask_the_bound_holds_or_there_is_an_error(case, kernel, tail, gap):
    n, x, observed = case
    attention = WindowAttention(kernel, tail=tail, gap=gap)
    row = torch.arange(n)[observed]
    nearest = (row - x).abs().min()
    try:
        error = worst_error(attention, x, n, observed)
    except ValueError:
        with pytest.raises(ValueError, match="no observed row lies near enough"):
            worst_error(attention, x, n, observed)
        assert not gap or nearest > gap + 0.5  # the promise of `gap`
    else:
        assert error <= 2 * tail + 1e-12  # rounding of weights that sum to 1


@pytest.mark.parametrize("missing", range(1, 13))
def test_the_gap_of_the_co2_record(missing):
    """7 to 10 missing rows: the window of 11 rows sees one or two, and a row left out as near."""
    n, x = 101, 50.0
    observed = torch.ones(n, dtype=torch.bool)
    observed[50 - missing // 2 : 50 - missing // 2 + missing] = False
    if missing <= 6:
        assert worst_error(WindowAttention(), x, n, observed) <= 2e-9
    else:
        with pytest.raises(ValueError, match="no observed row lies near enough"):
            WindowAttention()(torch.ones(1, n, 1), torch.tensor([[0.5]]), observed=observed)
    for at in torch.linspace(40, 60, 201).tolist():
        assert worst_error(WindowAttention(gap=missing), at, n, observed) <= 2e-9


def test_a_mask_of_true_is_no_mask():
    for kernel in KERNELS:
        for n in (1, 2, 17, 65, 500):
            attention, t = WindowAttention(kernel), torch.linspace(0, 1, 201).double()[None]
            values = torch.randn(1, n, 2, dtype=torch.float64)
            full = attention(values, t, observed=torch.ones(n, dtype=torch.bool))
            assert torch.equal(full, attention(values, t))


@pytest.mark.parametrize("transform", ["compile", "vmap"])
def test_where_nothing_can_be_raised_a_gap_is_nan(transform):
    observed = torch.ones(100, dtype=torch.bool)
    observed[46:54] = False
    attention, values = WindowAttention(), torch.randn(1, 100, 2)
    t = torch.tensor([[0.1, 0.5, 0.9]])

    def call(values, t):
        return attention(values, t, observed=observed)

    if transform == "compile":
        torch.compiler.reset()
        out = torch.compile(call, backend="eager", fullgraph=True)(values, t)
    else:
        out = torch.func.vmap(call)(values[None], t[None])[0]
    assert out.isnan().all(-1).tolist() == [[False, True, False]]
    torch.testing.assert_close(out[:, [0, 2]], attention(values, t[:, [0, 2]]))


@given(st.integers(0, 50), st.integers(1, 60), st.floats(0, 1))
@settings(max_examples=100)
def test_bins_of_irregular_times(seed, n, t):
    """Rows of a bin stand up to 1/2 beside its number, and there may be many in one."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.rand(n, generator=generator, dtype=torch.float64)
    values = torch.eye(n, dtype=torch.float64)[None]
    pyramid = Pyramid(values, times=times, bins=40, levels=1)
    dense = DenseAttention()(pyramid, torch.tensor([[t]], dtype=torch.float64))
    try:
        out = WindowAttention(tail=1e-4)(pyramid, torch.tensor([[t]], dtype=torch.float64))
    except ValueError:
        return
    # of bins; each is a mean over its rows
    assert (out - dense).abs().sum() <= 2e-4 + 1e-12


def test_rows_in_no_order_are_refused():
    """A pyramid without bins keeps every row's own time, which the dense reader alone can use."""
    pyramid = Pyramid(torch.randn(1, 9, 1), times=torch.rand(9), levels=1)
    assert DenseAttention()(pyramid, torch.tensor([[0.5]])).isfinite()
    with pytest.raises(ValueError, match="give the pyramid bins"):
        WindowAttention()(pyramid, torch.tensor([[0.5]]))


@pytest.mark.parametrize("bad", [dict(gap=-1), dict(gap=0.5), dict(kernel=RBF), dict(tail=1.0)])
def test_what_a_window_cannot_be_is_refused(bad):
    with pytest.raises((TypeError, ValueError), match=r"gap|tail|kernel must be a Kernel"):
        WindowAttention(**bad)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_what_is_left_out_is_bounded_from_above_and_not_by_much(kernel):
    """Against the sum over all rows outside, for a query half way between two, where most are."""
    n = 1001
    attention = WindowAttention(kernel, tail=1e-3)
    radius, x = attention.radius(n), 499.5
    row = torch.arange(n, dtype=torch.float64)
    outside = (row - 500).abs() > radius  # the window is centred on row 500
    left_out = kernel.log(x - row, n)[outside].logsumexp(0)
    observed = torch.arange(n) > 0
    tree = attention.prepare(torch.ones(1, n, 1), observed).tree
    bound = attention._log_left_out(radius, tree, torch.device("cpu")).squeeze()
    nearer = kernel.log(torch.tensor([radius + 0.5, radius + 1.5]).double(), n)
    # the left side is half a row further than the bound takes it to be
    assert left_out <= bound + 1e-12
    # and of a heavy tail it counts n rows on either side, where there are n / 2
    assert bound - left_out <= float(nearer[0] - nearer[1]) + math.log(4)
    both = kernel.log(torch.arange(radius, 500).double() + 0.5, n).logsumexp(0) + math.log(2)
    assert bound >= both - 1e-12


def test_bins_may_stand_nearer_and_hold_more_rows():
    """The worst: every bin's two rows lean towards the query, which is between two bins."""
    n, x, attention = 41, 20.5, WindowAttention(RBF(2.0), tail=0.2)
    bin_of = torch.arange(n, dtype=torch.float64)
    place = bin_of + 0.49 * (x - bin_of).sign()
    times = (place / (n - 1)).clamp(0, 1).repeat_interleave(2)
    pyramid = Pyramid(torch.ones(1, 2 * n, 1), times=times, bins=n, levels=1)
    assert pyramid.tree.counts[0].tolist() == [2] * n
    radius = attention.radius(n)
    outside = (torch.arange(n) - 20).abs() > radius
    assert 0 < outside.sum() < n
    log_k = attention.kernel.log(x - pyramid.tree.centroids[0], n) + math.log(2)
    bound = attention._log_left_out(radius, pyramid.tree, torch.device("cpu")).squeeze()
    # the left side's rows are a whole row nearer to the window's edge than the right side's
    assert log_k[outside].logsumexp(0) <= bound
    one_row_each = bound - math.log(2)
    assert one_row_each < log_k[outside].logsumexp(0)
