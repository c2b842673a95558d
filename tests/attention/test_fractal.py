"""The ladder: its specification, and the kernel that it learns."""

import pytest
import torch

from fractal_lib import (
    RBF,
    FractalAttention,
    Matern12,
    RationalQuadratic,
)
from fractal_lib.curves.splines import bspline_weights
from fractal_lib.reference import ladder_weights


def ladder_kernel(scales, d):
    """sum_k a_k 2^-k beta(d / 2^k), written with beta itself."""
    u = d.abs().unsqueeze(-1) * 0.5 ** torch.arange(len(scales))
    beta = (2 - u).clamp(min=0) ** 3 / 6 - (1 - u).clamp(min=0) ** 3 * 2 / 3
    return (scales.softmax(0) * 0.5 ** torch.arange(len(scales)) * beta).sum(-1)


@pytest.mark.parametrize("n", [2, 64, 100])
@pytest.mark.parametrize("source", ["sample", "pyramid"])
def test_learned_scales_are_their_formula(n, source):
    attention = FractalAttention(source=source).double()
    torch.nn.init.normal_(attention.level_logits)
    t = torch.rand(1, 9, dtype=torch.float64)
    # (Q, n): weight of every row
    got = attention(torch.eye(n, dtype=torch.float64).unsqueeze(0), t)[0]
    logits = attention.level_logits[: attention.levels(n)].detach()
    expected = torch.stack(
        [
            ladder_weights(x, n, logits, pooled=source == "pyramid")
            for x in (t[0] * (n - 1)).tolist()
        ]
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def test_reads_grow_as_four_times_log2():
    for n, levels in ((2, 1), (1000, 10), (1024, 10), (1025, 11), (10**6, 20)):
        assert FractalAttention().reads(torch.tensor([[0.3]]), n).indices.shape[-1] == 4 * levels
    assert FractalAttention(depth=5).reads(torch.tensor([[0.3]]), 10**6).indices.shape[-1] == 20


def test_half_of_the_sampled_reads_repeat_a_row():
    reads = FractalAttention().reads(torch.tensor([[0.3]]), 10**6)
    assert reads.indices.shape[-1] == 80
    assert len(reads.indices.unique()) == 41  # some of weight 0 at the far end


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


@pytest.mark.parametrize("bad", [dict(source="rows"), dict(depth=0), dict(depth=33)], ids=str)
def test_what_a_ladder_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match=r"source|depth"):
        FractalAttention(**bad)


def test_bspline_is_the_kernel_on_its_grid():
    f = torch.tensor([0.25], dtype=torch.float64)
    at = ladder_kernel(torch.zeros(1).double(), f.unsqueeze(-1) - torch.arange(-1, 3))
    torch.testing.assert_close(bspline_weights(f), at)
