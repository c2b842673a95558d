"""What every attention over a context owes: one table of attentions, one test per promise."""

import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from fractal_lib import PATTERNS, read

MAKE = {
    f"{name}, {example}" if example else name: partial(attention.make, example)
    for name, attention in PATTERNS.items()
    for example in attention.examples
}
SIZES = [1, 2, 3, 63, 64, 65, 100, 2000]
every = pytest.mark.parametrize("attention", [make() for make in MAKE.values()], ids=MAKE)
MEANS = {name: make for name, make in MAKE.items() if make().kind != "contrast"}
means = pytest.mark.parametrize("attention", [make() for make in MEANS.values()], ids=MEANS)
units = st.floats(0, 1, allow_nan=False)


def context(n, batch=2, hidden=3, dtype=torch.float64, seed=0):
    return torch.randn(
        batch, n, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def times(*values, batch=2):
    return torch.tensor([values] * batch, dtype=torch.float64)


def shares(attention, reads):
    """The weights that sum to 1: those of means, not those of first moments."""
    halves = 2 if attention.kind == "moments" else 1
    return reads.weights[..., : reads.weights.shape[-1] // halves]


@means
@pytest.mark.parametrize("n", SIZES)
def test_weights_sum_to_one_and_are_not_negative(attention, n):
    reads = attention.reads(torch.linspace(0, 1, 57, dtype=torch.float64).expand(2, -1), n)
    weight = shares(attention, reads)
    assert reads.indices.dtype == torch.int64
    assert (weight > -1e-15).all()  # a share is the difference of two steps, each rounded
    # K roundings of terms that sum to 1
    torch.testing.assert_close(
        weight.sum(-1), torch.ones(2, 57).double(), rtol=0, atol=weight.shape[-1] * 2.3e-16
    )


@means
@given(n=st.integers(1, 300), batch=st.integers(1, 3), t=units, seed=st.integers(0, 99))
def test_output_is_between_the_rows(attention, n, batch, t, seed):
    values = context(n, batch, 1, seed=seed)
    if attention.kind == "moments":  # first moments extrapolate: only constants are kept
        values = values[:, :1].expand(-1, n, -1)
    out = attention(values, times(t, batch=batch))
    assert out.shape == (batch, 1, 1)
    slack = 1e-12 * values.abs().amax()
    assert (out >= values.amin(1, keepdim=True) - slack).all()
    assert (out <= values.amax(1, keepdim=True) + slack).all()


@means
@pytest.mark.parametrize("n", [n for n in SIZES if n <= 100])
def test_every_row_can_be_reached(attention, n):
    values = torch.eye(n, dtype=torch.float64).unsqueeze(0)
    at_rows = torch.linspace(0, 1, n, dtype=torch.float64).unsqueeze(0)
    reached = attention(values, at_rows).amax(1)[0] > 0
    assert reached[: -1 if attention.causal and n > 1 else n].all()  # after the last, there is no t


@every
def test_a_sample_does_not_depend_on_its_batch(attention):
    values, t = context(100, batch=5), torch.rand(5, 4, dtype=torch.float64)
    together = attention(values, t)
    alone = torch.cat([attention(values[b : b + 1], t[b : b + 1]) for b in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_float64_rounded(attention, dtype):
    values, t = context(333, dtype=dtype), times(0.0, 0.123, 0.5, 1.0)
    low, exact = attention(values, t), attention(values.double(), t)
    assert low.dtype == dtype
    # Pooling rounds once a level and moments once more, all on values below 5; then one rounding of
    # the result.
    levels = math.ceil(math.log2(333)) + 1
    atol = 5 * torch.finfo(dtype).eps * (2 * levels if attention.tree(333).levels > 1 else 2)
    torch.testing.assert_close(low.double(), exact, rtol=0, atol=atol)


@every
def test_strided_rows_are_read_as_they_are(attention):
    ctx, t = context(41), times(0.2, 0.9)
    torch.testing.assert_close(
        attention(ctx[:, 1:], t), attention(ctx[:, 1:].contiguous(), t), rtol=0, atol=1e-14
    )


@every
@pytest.mark.parametrize("n", [1, 2, 5, 17])
def test_gradcheck(attention, n):
    # Not at a row itself: the window and rounding choose a side there.
    values, t = context(n, hidden=2).requires_grad_(), times(0.0, 0.3, 0.71).requires_grad_()
    t = (t.detach() * 0.97 + 0.004).requires_grad_()
    assert torch.autograd.gradcheck(attention, (values, t), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(
        attention, (values, t), check_fwd_over_rev=True, check_rev_over_rev=True
    )


def derivatives(attention, values, t):
    """d/dt three ways: forward AD, double backward, central differences (step h in samples)."""
    with forward_ad.dual_level():
        forward = forward_ad.unpack_dual(
            attention(values, forward_ad.make_dual(t, torch.ones_like(t)))
        ).tangent
    t = t.clone().requires_grad_()
    out = attention(values, t)
    probe = torch.zeros_like(out, requires_grad=True)
    (pulled,) = torch.autograd.grad(out, t, probe, create_graph=True)
    (backward,) = torch.autograd.grad(pulled, probe, torch.ones_like(pulled))
    h = 1e-4 / max(values.shape[1] - 1, 1)
    with torch.no_grad():
        central = (attention(values, t + h) - attention(values, t - h)) / (2 * h)
    return forward, backward, central


@every
@pytest.mark.parametrize("n", [2, 63, 100, 1025])
def test_three_derivatives_agree(attention, n):
    t = (
        torch.rand(2, 33, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ) * 0.998 + 0.001
    forward, backward, central = derivatives(attention, context(n), t)
    # a contrast of two rows is 0, and a causal read of two is row 0
    scale = forward.abs().max().detach().clamp(min=1e-4)
    # Central differences err by h^2/6 of the third derivative (of order 1 to 30 per sample^3) and
    # by 1e-16 / h of rounding: 1e-7 of the scale at h = 1e-4. The window jumps by its tail, 1e-9 /
    # h.
    atol = 1e-6 if attention.smooth else 2e-5
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-11 * float(scale))
    torch.testing.assert_close(forward / scale, central / scale, rtol=0, atol=atol)


@pytest.mark.parametrize("name", [name for name, make in MAKE.items() if make().smooth])
@pytest.mark.parametrize("n", [2, 64, 100])
def test_no_jump_in_value_slope_or_curvature_at_a_crossing(name, n):
    attention = MAKE[name]()
    values = context(n)
    # every place where a point or cell may enter or leave: half positions
    x = torch.arange(1, 2 * (n - 1), dtype=torch.float64) / 2
    eps = 1e-12

    def derivatives_at(x):
        t = (x / (n - 1)).expand(2, -1).requires_grad_()
        out = [attention(values, t).sum(-1)]
        for _ in range(2):
            out.append(torch.autograd.grad(out[-1].sum(), t, create_graph=True)[0] / (n - 1))
        return out

    # eps times a slope, and rounding of x itself, stay below 1e-9
    for before, after in zip(derivatives_at(x - eps), derivatives_at(x + eps), strict=True):
        assert (before - after).abs().max() < 1e-9


@every
def test_vmap(attention):
    values, t = context(50, batch=3), torch.rand(3, 2, dtype=torch.float64)
    one = torch.func.vmap(lambda r, s: attention(r.unsqueeze(0), s.unsqueeze(0)).squeeze(0))
    torch.testing.assert_close(one(values, t), attention(values, t), rtol=0, atol=1e-13)


@every
def test_fullgraph_compile_of_value_and_jvp(attention):
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for n in (5, 20):  # a few levels: a graph has all of them
        values, t = context(n), times(0.0, 0.37, 1.0)
        torch.testing.assert_close(compiled(values, t), attention(values, t), rtol=0, atol=1e-12)

    def slope(values, t):
        return torch.func.jvp(lambda s: attention(values, s), (t,), (torch.ones_like(t),))[1]

    torch.testing.assert_close(
        torch.compile(slope, fullgraph=True, backend="aot_eager")(values, t), slope(values, t)
    )


@pytest.mark.parametrize("name", ["window", "ladder", "multilevel, moments", "dragon, signed"])
def test_inductor_agrees(name):
    torch.compiler.reset()
    attention, values, t = (
        MAKE[name](),
        context(70, dtype=torch.float32).requires_grad_(),
        times(0.0, 0.61).float(),
    )
    compiled = torch.compile(attention, fullgraph=True)
    torch.testing.assert_close(compiled(values, t), attention(values, t))
    ours, theirs = (
        torch.autograd.grad(f(values, t).square().sum(), values)[0] for f in (compiled, attention)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_state_dict_round_trip_and_to(make):
    attention, other = make(), make()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(attention.state_dict())
    values, t = context(77), times(0.4)
    assert torch.equal(other(values, t), attention(values, t))
    assert attention.to(torch.float64)(values, t).dtype == torch.float64
    # nothing lives on the wrong device
    on_meta = make().to("meta")(values.to("meta"), t.to("meta"))
    assert on_meta.shape == (2, 1, 3)
    assert on_meta.device.type == "meta"


@every
def test_a_prepared_context_gives_the_same(attention):
    values, t = context(90), times(0.0, 0.77)
    assert torch.equal(attention(attention.prepare(values), t), attention(values, t))
    gathered = read(attention.prepare(values).values, attention.reads(t, 90))
    torch.testing.assert_close(gathered, attention(values, t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", [name for name, make in MAKE.items() if make().kind != "moments"])
@given(seed=st.integers(0, 99), t=units, share=st.floats(0.3, 1))
def test_missing_rows_do_not_count(name, seed, t, share):
    attention, n = MAKE[name](), 64
    if attention.reach == "near":
        share = max(share, 0.9)  # these see few rows: keep some in reach
    generator = torch.Generator().manual_seed(seed)
    observed = torch.rand(2, n, generator=generator) < share
    observed[:, ::5] = True
    values = context(n, seed=seed)
    nan = torch.where(observed.unsqueeze(-1), values, torch.nan)
    weight = attention.reads(times(t), attention.prepare(nan, observed).tree).weights
    assert torch.isclose(weight.sum(-1), torch.full((2, 1), float(name in MEANS)).double()).all()
    out = attention(nan, times(t), observed=observed)
    other = torch.where(observed.unsqueeze(-1), values, 1e3)
    assert torch.equal(out, attention(other, times(t), observed=observed))
    full = attention(values, times(t), observed=torch.ones_like(observed))
    torch.testing.assert_close(full, attention(values, times(t)), rtol=0, atol=1e-12)


BAD = {
    "t above 1": (lambda r, t: (r, t + 1), ValueError, r"\[0, 1\]"),
    "t NaN": (lambda r, t: (r, t * torch.nan), ValueError, "nan"),
    "t one-dimensional": (lambda r, t: (r, t[0]), ValueError, r"\(B, Q\)"),
    "t integer": (lambda r, t: (r, t.long()), TypeError, "floating"),
    "batches differ": (lambda r, t: (r, t[:1]), ValueError, "batch"),
    "rows two-dimensional": (lambda r, t: (r[0], t), ValueError, r"\(B, N, H\)"),
    "rows integer": (lambda r, t: (r.long(), t), TypeError, "floating"),
    "rows NaN": (lambda r, t: (r * torch.nan, t), ValueError, "NaN"),
    "no rows": (lambda r, t: (r[:, :0], t), ValueError, "N >= 1"),
    "mask not bool": (lambda r, t: (r, t, torch.ones(9)), TypeError, "bool"),
    "mask of another length": (
        lambda r, t: (r, t, torch.ones(8) > 0),
        ValueError,
        r"\(N,\) or \(B, N\)",
    ),
    "all rows missing": (lambda r, t: (r, t, torch.zeros(9) > 0), ValueError, "no observed row"),
}


@every
@pytest.mark.parametrize(("spoil", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_a_clear_error(attention, spoil, error, words):
    with pytest.raises(error, match=words):
        attention(*spoil(context(9), times(0.2, 0.8)))


JVP_LOSS = """
import torch
from fractal_lib import FractalAttention, WindowAttention
torch.set_num_threads(1)
torch.manual_seed(0)
rows, t = torch.randn(4, 50, 8, requires_grad=True), torch.rand(4, 1, requires_grad=True)
for attention in (FractalAttention(), WindowAttention()):
    def loss(rows, t):
        value, slope = torch.func.jvp(lambda s: attention(rows, s), (t,), (torch.ones_like(t),))
        return (value.square() + slope.square()).sum()
    inputs = [rows, t, *attention.parameters()]
    eager = torch.autograd.grad(loss(rows, t), inputs)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(rows, t), inputs)
    for a, b in zip(eager, compiled):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))
"""


def test_compiled_training_loss_with_a_jvp():
    """In a process of its own: what it guards against (see `reads._product`) is a crash of the
    interpreter.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", JVP_LOSS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
