"""The one reader against loops, and the window and dense attention against each other."""

from fractions import Fraction

import pytest
import torch

from fractal_lib import (
    RBF,
    DenseAttention,
    OriginalKernel,
    RationalQuadratic,
    Reads,
    WindowAttention,
    position,
    read,
)


@pytest.mark.parametrize("strided", [False, True])
def test_read_is_a_weighted_sum(strided):
    ctx = torch.randn(3, 8, 4, dtype=torch.float64)
    values = ctx[:, 1:] if strided else ctx
    index, weight = (
        torch.randint(values.shape[1], (3, 2, 5)),
        torch.randn(3, 2, 5, dtype=torch.float64),
    )
    expected = torch.zeros(3, 2, 4, dtype=torch.float64)
    for b in range(3):
        for q in range(2):
            for k in range(5):
                expected[b, q] += weight[b, q, k] * values[b, index[b, q, k]]
    torch.testing.assert_close(read(values, Reads(index, weight)), expected)


def test_read_refuses_what_does_not_fit():
    reads = Reads(torch.zeros(2, 1, 1, dtype=torch.int64), torch.ones(2, 1, 1).double())
    with pytest.raises(ValueError, match="one B"):
        read(torch.randn(3, 4, 1), reads)
    with pytest.raises(TypeError, match="floating"):
        read(torch.ones(2, 4, 1, dtype=torch.int64), reads)


def original(values, t):
    """The head's own line: softmax of -(l (ts - t))^2 over the rows."""
    l, dtype = values.shape[1], values.dtype
    ts = torch.linspace(0, 1, l, dtype=dtype)
    c = torch.softmax(-((l * (ts - t)) ** 2), dim=-1)  # (B, l)
    return torch.bmm(c.unsqueeze(1), values)


@pytest.mark.parametrize("n", [1, 2, 3, 63, 100, 2000])
def test_dense_is_the_original(n):
    values, t = torch.randn(4, n, 3, dtype=torch.float64), torch.rand(4, 1, dtype=torch.float64)
    # rounding of l (ts - t), of order n eps, is all that differs
    torch.testing.assert_close(
        DenseAttention()(values, t), original(values, t), rtol=0, atol=1e-13 * n
    )


@pytest.mark.parametrize("n", [10**k for k in range(2, 7)])
def test_window_in_float32_is_exact_at_every_n(n):
    """The error of the spine's exact reader; dense float32's own, beside it, is far larger."""
    generator = torch.Generator().manual_seed(n)
    values, t = torch.randn(1, n, 4, generator=generator), torch.rand(1, 64, generator=generator)
    if n == 1_000_000:
        t = t[:, :16]  # dense needs its minutes
    exact = torch.cat([DenseAttention()(values.double(), part) for part in t.split(8, 1)], 1)
    assert (WindowAttention()(values, t) - exact).abs().max() < 1e-6
    if n >= 10_000:
        dense = torch.cat([original(values, t[:, q : q + 1]) for q in range(0, t.shape[1], 8)], 1)
        assert (dense - exact[:, ::8]).abs().max() > 1e-5


@pytest.mark.parametrize(
    "kernel",
    [
        OriginalKernel(),
        RBF(3.0),
        RationalQuadratic(0.01 / 2**0.5),
        RationalQuadratic(0.5, alpha=2.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("tail", [1e-2, 1e-5, 1e-9])
def test_window_errs_by_at_most_its_tail(kernel, tail):
    n = 500
    t = torch.linspace(0, 1, 641, dtype=torch.float64).unsqueeze(0)
    attention = WindowAttention(kernel, tail=tail)
    weight = DenseAttention(kernel).reads(t, n).weights
    centroid = (t * (n - 1)).round().unsqueeze(-1)
    left_out = (torch.arange(n) - centroid).abs() > attention.radius(n)
    assert (weight * left_out).sum(-1).max() <= tail
    values = torch.randn(1, n, 1, dtype=torch.float64).sign()
    assert (attention(values, t) - DenseAttention(kernel)(values, t)).abs().max() <= 2 * tail


def test_window_names_a_gap_it_cannot_see_across():
    observed = torch.ones(100, dtype=torch.bool)
    observed[40:60] = False
    with pytest.raises(ValueError, match="no observed row"):
        WindowAttention()(torch.randn(1, 100, 1), torch.tensor([[0.5]]), observed=observed)


def test_window_and_sampling_refuse_uneven_times():
    with pytest.raises(ValueError, match="even spacing"):
        WindowAttention()(torch.randn(1, 4, 1), torch.tensor([[0.5]]), times=torch.rand(4))


def test_dense_takes_times_exactly():
    values, at = torch.randn(1, 30, 2, dtype=torch.float64), torch.rand(30, dtype=torch.float64)
    t, kernel = torch.tensor([[0.2, 0.9]], dtype=torch.float64), RBF(0.1, unit="time")
    weight = torch.softmax(-((t.unsqueeze(-1) - at) ** 2) / 0.02, -1)
    torch.testing.assert_close(DenseAttention(kernel)(values, t, times=at), weight @ values)
    order = torch.randperm(30)
    torch.testing.assert_close(
        DenseAttention(kernel)(values[:, order], t, times=at[order]), weight @ values
    )


def test_tail_must_be_a_share():
    with pytest.raises(ValueError, match="tail"):
        WindowAttention(tail=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_positions_are_exact_whatever_the_dtype_of_t(dtype):
    """Against rational arithmetic, at a million rows: one rounding to float64, and no other."""
    n = 10**6
    t = torch.rand(1, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = t.to(dtype)
    exact = [float(Fraction(s) * (n - 1)) for s in t[0].tolist()]
    assert position(t, n).dtype == torch.float64
    assert position(t, n)[0].tolist() == exact
