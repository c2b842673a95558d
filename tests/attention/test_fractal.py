"""The ladder: its specification, and the kernel that it learns."""

import pytest
import torch

from fractal_lib import (
    RBF,
    FractalAttention,
    Matern12,
    MixtureAttention,
    Pyramid,
    RationalQuadratic,
    Tree,
    read,
)
from fractal_lib.attention.tree import node_stencil, strides
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


SIZES = [1, 2, 3, 63, 64, 65, 100]
sources = pytest.mark.parametrize("source", ["sample", "pyramid"])


def row_times(n):
    return torch.linspace(0, 1, n, dtype=torch.float64).unsqueeze(0)


def drawn(source, seed=0, **settings):
    """A causal ladder of unequal shares, in float64."""
    attention = FractalAttention(source=source, causal=True, **settings).double()
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(attention.level_logits, generator=generator)
    return attention


@sources
@pytest.mark.parametrize("n", SIZES)
def test_causal_reads_no_later_row_and_of_its_own_time_the_first_alone(source, n):
    mask = FractalAttention(source=source, causal=True).mask(n)
    expected = torch.zeros(n, dtype=torch.bool)
    expected[0] = True
    assert not mask.triu(1).any()
    assert torch.equal(mask.diagonal(), expected)
    assert mask.any(1).all()


@sources
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 64, 100])
def test_causal_weights_are_their_formula(source, gaps, n):
    attention, pooled = drawn(source), source == "pyramid"
    observed = (torch.arange(n) % 3 != 0) | (n == 1) if gaps else None
    logits = attention.level_logits[: attention.levels(n)].detach()
    x = torch.cat([torch.rand(20) * (n - 1), torch.arange(n)]).double()
    values = torch.eye(n, dtype=torch.float64)[None].requires_grad_()
    for position in x.tolist():
        expected = ladder_weights(position, n, logits, observed, pooled=pooled, causal=True)
        t = torch.tensor([[position / max(n - 1, 1)]], dtype=torch.float64)
        if expected is None:  # before the first row that is there
            with pytest.raises(ValueError, match="no observed row"):
                attention(values, t, observed)
            continue
        out = attention(values, t, observed)
        torch.testing.assert_close(out[0, 0], expected, rtol=0, atol=1e-12)
        (gradient,) = torch.autograd.grad(out[0, 0, -1], values)  # of what row n - 1 weighs
        torch.testing.assert_close(gradient[0, :, -1], expected, rtol=0, atol=1e-12)


@sources
def test_causal_derivatives_are_those_of_the_formula(source):
    attention, n, h = drawn(source), 70, 1e-4
    values = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def formula(x, logits):
        weights = ladder_weights(x, n, logits, pooled=source == "pyramid", causal=True)
        return float(weights @ values)

    logits = attention.level_logits[: attention.levels(n)].detach()
    for x in (0.4, 1.3, 3.7, 20.2, 63.6):
        t = torch.tensor([[x / (n - 1)]], dtype=torch.float64, requires_grad=True)
        out = attention(values[None, :, None], t).squeeze()
        slope, of_logits = torch.autograd.grad(out, [t, attention.level_logits])
        central = (formula(x + h, logits) - formula(x - h, logits)) / (2 * h)
        # central differences err by h^2 / 6 of a third derivative below 10 per row^3
        assert float(slope) / (n - 1) == pytest.approx(central, abs=3e-8)
        for k in range(len(logits)):
            step = torch.zeros_like(logits)
            step[k] = h
            central = (formula(x, logits + step) - formula(x, logits - step)) / (2 * h)
            assert float(of_logits[k]) == pytest.approx(central, abs=3e-8)


@sources
@pytest.mark.parametrize("spoiled", [1e300, torch.inf, torch.nan])
@pytest.mark.parametrize("n", SIZES)
def test_later_rows_change_nothing_to_the_bit(source, spoiled, n):
    attention = drawn(source)
    values = torch.randn(1, n, 2, dtype=torch.float64)
    clean = attention.prepare(values)
    reads, t = attention.reads(row_times(n), n), row_times(n)
    node = torch.arange(clean.values.shape[1])
    for p in range(n):
        expected = attention(clean, t[:, p : p + 1])
        if source == "sample" or spoiled == 1e300:
            later = values.clone()
            later[:, p + 1 :] = spoiled
            assert torch.equal(attention(later, t[:, p : p + 1]), expected)
        # the same of every node that holds a later row, which is what is really gathered
        packed = clean.values.clone()
        packed[:, clean.tree.span(node)[1] > p + 1] = spoiled
        one = type(reads)(reads.indices[:, p : p + 1], reads.weights[:, p : p + 1])
        assert torch.equal(read(packed, one), expected)


@sources
def test_a_row_just_ahead_does_not_come_in_by_rounding(source):
    attention, n = FractalAttention(source=source, causal=True), 65
    tree = attention.tree(n)
    for row in range(1, n):
        x = torch.tensor([[row]], dtype=torch.float64)
        before = torch.nextafter(x, torch.zeros_like(x))
        stride = strides(attention.levels(n))
        index, count, fraction = attention._find_past(before, stride, tree)
        assert (tree.span(index)[1] <= row).all()
        assert count.shape[-1] == 4 * fraction.shape[-1]
        node, _ = node_stencil(before, stride, causal=True)
        assert (((node + 1) * stride[:, None] - 1) < row).all()


@sources
def test_what_was_read_stays_when_rows_are_appended(source):
    attention = drawn(source)
    values = torch.randn(2, 140, 3, dtype=torch.float64)
    whole = attention(values, row_times(140).expand(2, -1))
    for n in range(1, 140):
        at = row_times(n).expand(2, -1)[:, -3:]
        torch.testing.assert_close(
            attention(values[:, :n], at), whole[:, :n][:, -3:], rtol=0, atol=1e-12
        )


@sources
def test_the_first_query_reads_the_first_row_and_goes_on_smoothly(source):
    attention, n = drawn(source), 100
    values = torch.randn(1, n, 2, dtype=torch.float64)
    tiny = [0.0, 5e-324, 1e-200, 1e-60, 1e-12, 0.5, 1.0]
    t = torch.tensor([tiny], dtype=torch.float64) / (n - 1)
    out, slope = torch.func.jvp(lambda s: attention(values, s), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(out, values[:, :1].expand(-1, len(tiny), -1), rtol=0, atol=1e-14)
    assert slope.abs().max() < 1e-12


@sources
def test_with_the_first_rows_missing(source):
    """They are there from the first one observed on, at its own time: sample by sample."""
    attention, n = drawn(source), 50
    values = torch.randn(2, n, 2, dtype=torch.float64)
    observed = torch.ones(2, n, dtype=torch.bool)
    observed[0, :7], observed[1, :12] = False, False
    at = torch.tensor([[7.0], [12.0]], dtype=torch.float64) / (n - 1)
    out = attention(values, at, observed)
    expected = torch.stack([values[0, 7:8], values[1, 12:13]])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)
    for b in (0, 1):
        early = at.clone()
        early[b] -= 1e-6
        with pytest.raises(ValueError, match="no observed row"):
            attention(values, early, observed)


@pytest.mark.parametrize("bins", [1, 2, 40])
def test_a_bin_is_read_once_it_has_ended(bins):
    attention = drawn("pyramid")
    generator = torch.Generator().manual_seed(bins)
    times = torch.rand(90, generator=generator, dtype=torch.float64)
    values = torch.eye(90, dtype=torch.float64)[None]
    context = Pyramid(values, times=times, bins=bins)
    t = torch.rand(1, 200, generator=generator, dtype=torch.float64)
    start = (times * (bins - 1) + 0.5).floor().min() + 0.5  # where the first one ends
    ended = t * (bins - 1) >= start
    weights = attention.reads(t, context.tree).weights
    assert torch.equal(weights.isnan().any(-1), ~ended)
    if not ended.any():  # one bin ends after the last time
        with pytest.raises(ValueError, match="no observed row"):
            attention(context, t)
        return
    seen = attention(context, t[ended][None])[0] > 0
    last_of_bin = ((times * (bins - 1) + 0.5).floor() + 0.5) / (bins - 1)
    assert not (seen & (last_of_bin > t[ended].unsqueeze(-1) + 1e-12)).any()
    assert seen.any(1).all()


def test_causal_shares_can_be_fitted_and_mixed():
    attention = FractalAttention(causal=True, source="pyramid")
    kernel = RationalQuadratic(2.0, alpha=0.5)
    error = attention.fit(kernel, 10_000)
    assert 0 < error < 0.2
    logits = attention.level_logits[:14].detach().double()
    d = torch.linspace(2, 9999, 40_001, dtype=torch.float64)
    width = 2.0 ** torch.arange(14)
    # sum_k a_k 2^-k beta(d / 2^k - 2)
    u = (d.unsqueeze(-1) / width - 2).abs()
    beta = (2 - u).clamp(min=0) ** 3 / 6 - (1 - u).clamp(min=0) ** 3 * 2 / 3
    fitted, k = (logits.softmax(0) / width * beta).sum(-1), kernel(d, 10_000)
    scale = (k @ fitted) / (fitted @ fitted)
    assert (scale * fitted - k).abs().max() / k[0] < 1.3 * error
    mixture = MixtureAttention(attention, FractalAttention(causal=True))
    assert not mixture.mask(65).triu(1).any()


def test_causal_is_shown_and_keyword_only():
    assert "causal=True" in repr(FractalAttention(causal=True))
    assert "causal" not in repr(FractalAttention())
    assert FractalAttention(causal=True).causal
    assert not FractalAttention().causal
    with pytest.raises(TypeError, match="positional"):
        FractalAttention(3, "sample", True)
    with pytest.raises(ValueError, match="capacity"):
        Tree(3, 1, capacity=2)
