"""The dragon's reads against their specification (chapter attention/dragon)."""

import pytest
import torch

from fractal_lib import DragonCurveAttention, Pyramid, Tree
from fractal_lib.curves.dragon import fold_levels, turn_signs
from fractal_lib.reference import dragon_weights

SIZES = [1, 2, 3, 63, 64, 65, 100, 2000]
kinds = pytest.mark.parametrize("signed", [False, True], ids=["mean", "contrast"])


def specified(x, n, signed, logits=None, max_depth=None, observed=None):
    """`dragon_weights`, with one logit for each level that n rows have."""
    depth = min(n.bit_length(), max_depth or n)  # levels 0 .. floor(log2 n)
    logits = torch.zeros(depth) if logits is None else logits[:depth]
    return dragon_weights(x, n, logits, observed, signed=signed)


def scattered(attention, t, n):
    """The weight of every row, (B, Q, N), as `reads` tells it."""
    reads = attention.reads(t, n)
    n = n.n if isinstance(n, Tree) else n
    return torch.zeros(*t.shape, n, dtype=torch.float64).scatter_add(
        -1, reads.indices, reads.weights
    )


def queries(n, count=9):
    """Both ends, all around the rows near them, and some in between: (1, Q)."""
    x = [0, 0.5, 1, 2, n - 1, n - 1.5, n - 2, n - 3, n / 2]
    near = torch.tensor(x, dtype=torch.float64).clamp(0, n - 1) / max(n - 1, 1)
    return torch.cat(
        [near, torch.rand(count, generator=torch.Generator().manual_seed(n), dtype=torch.float64)]
    )[None]


@kinds
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("max_depth", [None, 1, 4])
def test_weights_are_their_specification(signed, n, max_depth):
    attention = DragonCurveAttention(max_depth, signed=signed).double()
    torch.nn.init.normal_(attention.level_logits, generator=torch.Generator().manual_seed(1))
    t, scales = queries(n), attention.level_logits.detach()
    expected = torch.stack(
        [specified(float(s) * (n - 1), n, signed, scales, max_depth) for s in t[0]]
    )
    # x is the same number in both. x - row rounds by 2e-13 at n = 2000 and beta's slope is below 1,
    # so weights differ by that over the sum of their side. The sum is least at an end, where x is
    # whole and nothing rounds.
    torch.testing.assert_close(
        scattered(attention, t, n)[0].detach(), expected, rtol=1e-11, atol=1e-12
    )
    values = torch.randn(1, n, 3, dtype=torch.float64)
    torch.testing.assert_close(attention(values, t)[0], expected @ values[0], rtol=0, atol=1e-10)


@kinds
@pytest.mark.parametrize("n", SIZES)
def test_sums_of_the_weights(signed, n):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)[None]
    weight = DragonCurveAttention(signed=signed).reads(t, n).weights
    one = torch.ones(1, 1001, dtype=torch.float64)
    atol = 2.3e-16 * weight.shape[-1]  # K roundings of terms that sum to 1
    if signed:
        side = one if n >= 3 else 0 * one
        torch.testing.assert_close(weight.clamp(min=0).sum(-1), side, rtol=0, atol=atol)
        torch.testing.assert_close(weight.clamp(max=0).sum(-1), -side, rtol=0, atol=atol)
    else:
        assert (weight >= 0).all()
        torch.testing.assert_close(weight.sum(-1), one, rtol=0, atol=atol)


@kinds
def test_the_levels_read_are_those_of_the_fold_and_so_are_the_turns(signed):
    n, levels = 1000, 10
    reads = DragonCurveAttention(signed=signed).reads(torch.rand(1, 500, dtype=torch.float64), n)
    assert reads.indices.shape == (1, 500, 4 * levels)
    read, crease = reads.weights != 0, reads.indices + 1
    level = torch.arange(levels).repeat_interleave(4).expand_as(crease)
    assert (fold_levels(crease)[read] == level[read]).all()
    if signed:
        assert (turn_signs(crease)[read] == reads.weights[read].sign()).all()
    for q in range(500):  # a partition: no row is read twice
        values = reads.indices[0, q][read[0, q]]
        assert len(values.unique()) == len(values)


@pytest.mark.parametrize(
    ("n", "levels"), [(1, 1), (2, 2), (3, 2), (4, 3), (1023, 10), (1024, 11), (10**6, 20)]
)
def test_number_of_reads(n, levels):
    t = torch.tensor([[0.3]])
    assert DragonCurveAttention().levels(n) == levels
    assert DragonCurveAttention().reads(t, n).indices.shape[-1] == 4 * levels
    assert DragonCurveAttention(max_depth=3).reads(t, n).indices.shape[-1] == 4 * min(levels, 3)


@kinds
@pytest.mark.parametrize("n", [n for n in SIZES if n <= 100])
def test_every_row_is_read_at_some_time_and_with_its_sign(signed, n):
    weight = scattered(
        DragonCurveAttention(signed=signed),
        torch.linspace(0, 1, 8 * n, dtype=torch.float64)[None],
        n,
    )
    most = weight[0].abs().amax(0)
    if signed and n < 3:
        assert (most == 0).all()
        return
    assert (most > 0).all()
    if signed:
        sign = turn_signs(torch.arange(1, n + 1))
        assert (weight[0] * sign >= 0).all()  # a left crease is never on the right side


def test_neither_side_is_empty_when_all_rows_are_there():
    """What the comment in the module proves: level 0 alone has a left and a right crease in reach
    at every t.
    """
    attention = DragonCurveAttention(max_depth=1, signed=True)
    for n in range(3, 70):
        x = torch.linspace(0, n - 1, 64 * (n - 1) + 1, dtype=torch.float64)
        weight = scattered(attention, x[None] / (n - 1), n)[0]
        assert weight.isfinite().all()
        assert ((weight > 0).any(-1) & (weight < 0).any(-1)).all()
        # the nearest crease of a turn is at most 3/2 strides away (reached at an end, for even n):
        # beta(3/2) = 1/48
        for turn in (0, 2):  # rows of the left and of the right creases, 4 apart
            nearest = (x[:, None] - torch.arange(turn, n, 4)).abs().amin(-1) / 2
            assert nearest.max() <= 1.5


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("gap", [False, True])
def test_the_contrast_of_one_or_two_rows_is_zero_and_so_are_its_gradients(n, gap):
    attention = DragonCurveAttention(signed=True)
    values = torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[0.0, 0.4, 1.0]] * 2, dtype=torch.float64, requires_grad=True)
    observed = torch.arange(n) > 0 if gap and n > 1 else None
    out = attention(values, t, observed)
    assert (out == 0).all()
    for gradient in torch.autograd.grad(out.sum(), [values, t, attention.level_logits]):
        assert (gradient == 0).all()


@kinds
@pytest.mark.parametrize("n", [3, 64, 100, 2000])
def test_constants(signed, n):
    values = torch.full((1, n, 2), 7.0, dtype=torch.float64)
    expected = 0.0 if signed else 7.0
    out = DragonCurveAttention(signed=signed)(values, queries(n))
    # as above: K roundings of terms that sum to 7, on two sides
    torch.testing.assert_close(out, torch.full_like(out, expected), rtol=0, atol=14 * 48 * 2.3e-16)


@kinds
@pytest.mark.parametrize("n", [3, 63, 64, 65, 100, 2000])
def test_slope_is_that_of_the_specification(signed, n):
    """d/dt by central differences of the *specification*, so that value and slope are checked apart
    from the code.
    """
    attention = DragonCurveAttention(signed=signed)
    values = torch.randn(1, n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 0.01 + (n - 1.02) * torch.rand(
        12, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    t = (x / (n - 1))[None].requires_grad_()
    (slope,) = torch.autograd.grad(attention(values, t).sum(), t)
    h = 1e-4
    for q, at in enumerate(x.tolist()):
        later, earlier = (specified(at + s, n, signed) @ values[0, :, 0] for s in (h, -h))
        central = (later - earlier) / (2 * h)
        # h^2/6 of a third derivative, of order 10 a sample^3 where sides are thick and 1e3 where
        # one is thin, and 1e-15 / h of rounding
        assert abs(slope[0, q] / (n - 1) - central) < 1e-5 * max(1, abs(central))


@kinds
def test_gradients_of_rows_and_scales_are_those_of_the_specification(signed):
    n, attention = 37, DragonCurveAttention(signed=signed).double()
    torch.nn.init.normal_(attention.level_logits, generator=torch.Generator().manual_seed(3))
    values = torch.randn(1, n, 1, dtype=torch.float64, requires_grad=True)
    out = attention(values, torch.tensor([[0.37]], dtype=torch.float64))
    of_rows, of_scales = torch.autograd.grad(out.sum(), [values, attention.level_logits])
    scales = attention.level_logits.detach()
    expected = specified(0.37 * (n - 1), n, signed, scales)
    torch.testing.assert_close(of_rows[0, :, 0], expected, rtol=0, atol=1e-13)
    h, levels = 1e-5, attention.levels(n)
    for k in range(levels):
        step = h * torch.eye(32, dtype=torch.float64)[k]
        later, earlier = (specified(0.37 * (n - 1), n, signed, scales + s) for s in (step, -step))
        central = ((later - earlier) / (2 * h)) @ values[0, :, 0].detach()
        assert abs(of_scales[k] - central) < 1e-8  # h^2 and 1e-16 / h
    assert (of_scales[levels:] == 0).all()


@kinds
def test_gaps_against_the_specification(signed):
    n, attention = 100, DragonCurveAttention(signed=signed)
    generator = torch.Generator().manual_seed(5)
    values, t = torch.randn(1, n, 2, generator=generator, dtype=torch.float64), queries(n, 40)
    answered = 0
    for share in (0.9, 0.5, 0.2):
        observed = torch.rand(n, generator=generator) < share
        nan = torch.where(observed[:, None], values, torch.nan)
        for s in t[0]:
            weight = specified(float(s) * (n - 1), n, signed, observed=observed)
            if weight is None:
                with pytest.raises(ValueError, match="no observed row"):
                    attention(nan, s.view(1, 1), observed)
            else:
                out = attention(nan, s.view(1, 1), observed)[0, 0]
                # scales are float32, so shares of equal logits are exact; thin sides lose digits to
                # rounding
                torch.testing.assert_close(out, weight @ values[0], rtol=1e-9, atol=1e-9)
                answered += 1
    assert answered > 100


def test_a_gap_that_takes_one_turn_away_is_an_error_for_the_contrast_alone():
    n = 64
    observed = turn_signs(torch.arange(1, n + 1)) > 0
    values, t = torch.randn(1, n, 1), torch.tensor([[0.5]])
    assert DragonCurveAttention()(values, t, observed).isfinite().all()
    with pytest.raises(ValueError, match="no observed row"):
        DragonCurveAttention(signed=True)(values, t, observed)


@kinds
def test_bfloat16_rows_are_read_as_they_are_rounded(signed):
    values = torch.randn(1, 300, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = DragonCurveAttention(signed=signed)(values, queries(300).float())
    exact = torch.stack(
        [
            specified(float(s.double()) * 299, 300, signed) @ values[0].double()
            for s in queries(300)[0].float()
        ]
    )
    assert out.dtype == torch.bfloat16
    # summed in float32, then rounded once: half of 2^-7 of values below 8
    torch.testing.assert_close(out[0].double(), exact, rtol=0, atol=4 * 2.0**-7)


@kinds
def test_a_pyramid_of_more_levels_is_read_at_its_rows(signed):
    values, t = torch.randn(1, 50, 2, dtype=torch.float64), queries(50)
    attention = DragonCurveAttention(signed=signed)
    torch.testing.assert_close(
        attention(Pyramid(values), t), attention(values, t), rtol=0, atol=1e-14
    )


def test_one_graph_serves_sizes_with_as_many_levels():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    attention = DragonCurveAttention(signed=True)
    compiled = torch.compile(attention, fullgraph=True, backend="eager", dynamic=True)
    for n in (70, 80, 100, 127):
        values, t = torch.randn(2, n, 3), torch.rand(2, 2)
        torch.testing.assert_close(compiled(values, t), attention(values, t))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("signed", [False, True])
def test_bad_arguments(signed):
    for bad in (0, 33, -1):
        with pytest.raises(ValueError, match="max_depth from 1 to 32"):
            DragonCurveAttention(bad, signed=signed)
    attention = DragonCurveAttention(signed=signed)
    with pytest.raises(ValueError, match="even spacing"):
        attention(torch.randn(1, 5, 1), torch.rand(1, 1), times=torch.linspace(0, 1, 5))
    for t in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            attention(torch.randn(1, 5, 1), torch.tensor([[t]]))
