"""Self-attention over near keys and far cells: against a slow specification, full attention, and
forbidden reads.
"""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention as full

from fractal_lib import FractalSelfAttention, fractal_self_attention
from fractal_lib.self_attention.blocks import Layout

SIZES = (1, 2, 3, 63, 100, 2000, 4097)


def draw(*shape, seed=0, dtype=torch.float64, width=8):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, width, generator=generator, dtype=dtype) for _ in range(3))


def what_is_read(block, n, near, cells):
    """The specification: (start, stop) of all that a block of queries reads, from the top of a
    binary tree down.
    """
    found = []

    def visit(level, index):
        width = near * 2**level
        if index * width >= n:
            return
        if abs(index - block // 2**level) > 1:  # not beside the queries' own block of this width
            cell = width // cells
            found.extend(
                (start, start + cell) for start in range(index * width, (index + 1) * width, cell)
            )
        elif level:
            visit(level - 1, 2 * index), visit(level - 1, 2 * index + 1)
        else:
            found.extend((start, start + 1) for start in range(index * width, (index + 1) * width))

    visit(max(0, (n - 1).bit_length()), 0)
    return [(start, min(stop, n)) for start, stop in found if start < n]


def specification(q, k, v, near, cells, causal=False, padding=None):
    """One sample and head, (N, D): an explicit list of keys and cells for each query, one dense
    softmax.
    """
    n, out = len(q), []
    valid = torch.ones(n, dtype=torch.bool) if padding is None else ~padding
    for i in range(n):
        reads = what_is_read(i // near, n, near, cells)
        reads = [(a, b) for a, b in reads if valid[a:b].any() and not (causal and b > i + 1)]
        if not reads:
            out.append(0 * (q[i].sum() + k.sum() + v.sum(0)))
            continue
        keys, values = (torch.stack([x[a:b][valid[a:b]].mean(0) for a, b in reads]) for x in (k, v))
        count = torch.tensor([valid[a:b].sum() for a, b in reads])
        out.append((keys @ q[i] / q.shape[1] ** 0.5 + count.to(q).log()).softmax(0) @ values)
    return torch.stack(out)


@settings(max_examples=40)
@given(
    n=st.integers(1, 70),
    shape=st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (6, 3), (8, 2)]),
    causal=st.booleans(),
    share=st.sampled_from([0.0, 0.3, 0.95]),
    seed=st.integers(0, 2**20),
)
def test_values_and_gradients_are_those_of_the_specification(n, shape, causal, share, seed):
    near, cells = shape
    q, k, v = (x.requires_grad_() for x in draw(1, 1, n, seed=seed, width=3))
    padding = torch.rand(1, n, generator=torch.Generator().manual_seed(seed)) < share
    out = fractal_self_attention(q, k, v, near, cells, causal, padding if share else None)
    expected = specification(q[0, 0], k[0, 0], v[0, 0], near, cells, causal, padding[0])[None, None]
    # some hundred roundings of numbers below 10
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    to = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=out.dtype)
    got, wanted = (
        torch.autograd.grad(out, (q, k, v), to),
        torch.autograd.grad(expected, (q, k, v), to),
    )
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 100, 128])
def test_it_is_full_attention_while_all_keys_are_near(n, causal):
    q, k, v = draw(2, 3, n, dtype=torch.float32, width=16)
    torch.testing.assert_close(
        fractal_self_attention(q, k, v, is_causal=causal),
        full(q, k, v, is_causal=causal),
        rtol=0,
        atol=1e-5,
    )
    q, k, v = draw(2, 3, n, width=16)
    exact = full(q, k, v, is_causal=causal, scale=2.0)
    torch.testing.assert_close(
        fractal_self_attention(q, k, v, is_causal=causal, scale=2.0), exact, rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_every_key_is_read_exactly_once_by_every_query(n, causal):
    """With logits of 0 a query's weights are the same for all that it reads; values that are unit
    vectors show them.
    """
    # some of the keys, to save time
    zero, shown = torch.zeros(1, 1, n, 1), torch.randperm(n)[:2000]
    weight = fractal_self_attention(
        zero, zero, torch.eye(n)[None, None, :, shown], is_causal=causal
    )[0, 0]  # (queries, keys)
    expected = torch.ones(n, n).tril() if causal else torch.ones(n, n)
    torch.testing.assert_close(
        weight, (expected / expected.sum(-1, keepdim=True))[:, shown], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_full_attention_where_keys_are_constant_on_the_cells(causal):
    """Values need not be: a cell's mean is what full attention makes of them. Logits here reach
    some 10^3.
    """
    n, near, cells = 1000, 8, 4
    q, k, v = draw(1, 2, n)
    largest = near * 2 ** (Layout.of(n, near, cells, causal, 2, q.device).scales - 2) // cells
    k = 400 * k[:, :, ::largest].repeat_interleave(largest, 2)[:, :, :n]
    exact = full(q, k, v, is_causal=causal)
    assert exact.std() > 0.1  # a few keys hold the weight
    torch.testing.assert_close(
        fractal_self_attention(q, k, v, near, cells, causal), exact, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("far", [False, True])
def test_one_softmax_over_all_scales(far):
    """A scale with huge logits silences the others; one maximum for each scale, never rescaled,
    would hear them all.
    """
    n, near, cells = 512, 16, 4
    k = torch.zeros(1, 1, n, 1)
    chosen = slice(256, 512) if far else slice(0, 32)
    k[:, :, chosen] = 1e4
    v = torch.zeros(1, 1, n, 1)
    v[:, :, chosen] = 1
    first = fractal_self_attention(torch.ones(1, 1, n, 1), k, v, near, cells)[0, 0, 0]
    assert first == 1
    # the wrong way: softmax numerators and denominators of each scale against its own maximum, then
    # added up
    width = torch.tensor([b - a for a, b in what_is_read(0, n, near, cells)])
    start = torch.tensor([a for a, _ in what_is_read(0, n, near, cells)])
    logits, values = k[0, 0, start, 0] + width.log(), v[0, 0, start, 0]
    top = torch.stack([logits[width == w].max() for w in width])
    share = (logits - top).exp()
    assert (share @ values / share.sum() - 1).abs() > 0.1


@pytest.mark.parametrize("n", [2, 63, 100, 1000])
def test_the_future_changes_no_bit_of_the_past(n):
    q, k, v = draw(2, 2, n, dtype=torch.float32)
    geometry = dict(near=8, cells=4, is_causal=True)
    out = fractal_self_attention(q, k, v, **geometry)
    for now in {1, n // 3, n // 2, n - 1}:
        other = [x.clone() for x in (q, k, v)]
        for x in other:
            x[:, :, now:] = 1e3 * torch.randn_like(x[:, :, now:])
        assert torch.equal(fractal_self_attention(*other, **geometry)[:, :, :now], out[:, :, :now])


def test_no_gradient_reaches_the_future():
    q, k, v = (x.requires_grad_() for x in draw(1, 1, 200))
    out = fractal_self_attention(q, k, v, near=8, cells=4, is_causal=True)
    for now in (0, 7, 8, 100):
        for grad in torch.autograd.grad(
            out[:, :, : now + 1].square().sum(), (q, k, v), retain_graph=True
        ):
            assert grad[:, :, now + 1 :].eq(0).all()
            assert grad[:, :, : now + 1].ne(0).any()


@pytest.mark.parametrize("n", [3, 100, 700])
def test_a_sample_does_not_depend_on_its_batch(n):
    q, k, v = draw(3, 2, n)
    padding = torch.arange(n) >= torch.tensor([[n], [n - 1], [n // 2]])
    whole = fractal_self_attention(q, k, v, 16, 4, key_padding_mask=padding)
    for b in range(3):
        alone = fractal_self_attention(
            *(x[b : b + 1] for x in (q, k, v)), 16, 4, key_padding_mask=padding[b : b + 1]
        )
        torch.testing.assert_close(whole[b : b + 1], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_as_if_it_were_not_there(causal):
    """Behind the end; what stands there, here NaN, has no part in values or gradients."""
    n, longer = 300, 420
    q, k, v = draw(1, 2, longer)
    padding = torch.arange(longer)[None] >= n
    expected = fractal_self_attention(*(x[:, :, :n] for x in (q, k, v)), 16, 4, causal)
    k, v = (x.masked_fill(padding[:, None, :, None], torch.nan).requires_grad_() for x in (k, v))
    out = fractal_self_attention(q, k, v, 16, 4, causal, padding)
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, :, :n], expected, rtol=0, atol=1e-13)
    for grad in torch.autograd.grad(out.sum(), (k, v)):
        assert grad.isfinite().all()
        assert grad[:, :, n:].eq(0).all()


@pytest.mark.parametrize("cells", [0, 4])
def test_a_query_without_any_key_returns_zero(cells):
    n = 100
    q, k, v = (x.requires_grad_() for x in draw(3, 1, n))
    padding = torch.zeros(3, n, dtype=torch.bool)
    padding[0], padding[1, :60] = True, True
    for causal in (False, True):
        out = fractal_self_attention(q, k, v, 8, cells, causal, padding)
        assert out[0].eq(0).all()
        reach = 60 if causal else 48 if cells == 0 else 0  # queries before this one find no key
        assert out[1, :, :reach].eq(0).all()
        assert out[1, :, reach:].ne(0).all()
        assert out[2].ne(0).all()
        for grad in torch.autograd.grad(out.sum(), (q, k, v)):
            assert grad.isfinite().all()
            assert grad[0].eq(0).all()


def test_without_cells_it_is_a_window_of_three_blocks():
    n, near = 100, 8
    q, k, v = draw(1, 2, n)
    block = torch.arange(n) // near
    mask = (block[:, None] - block).abs() <= 1
    torch.testing.assert_close(
        fractal_self_attention(q, k, v, near, 0), full(q, k, v, attn_mask=mask), rtol=0, atol=1e-13
    )
    out = fractal_self_attention(q, k, v, near, 0, is_causal=True)
    torch.testing.assert_close(out, full(q, k, v, attn_mask=mask.tril()), rtol=0, atol=1e-13)


def test_the_error_falls_as_near_and_cells_grow():
    """Keys and queries as of a sinusoidal code of the position: alike nearby, smooth far away."""
    n = 2048
    wave = torch.arange(n).double()[:, None] / torch.logspace(1, 4, 8).double()
    k = torch.cat([wave.sin(), wave.cos()], -1)[None, None]
    v = draw(1, 1, n, width=4)[2]
    exact = full(8 * k, k, v)

    def error(near, cells):
        return (fractal_self_attention(8 * k, k, v, near, cells) - exact).abs().max().item()

    by_cells = [error(64, cells) for cells in (1, 4, 16)]
    by_near = [error(near, 4) for near in (8, 64, 256, 512)]
    for errors in (by_cells, by_near):
        assert all(b < a for a, b in zip(errors, errors[1:], strict=False)), errors
        assert errors[-1] < errors[0] / 4
    assert error(1024, 8) < 1e-13


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_finite_differences(causal):
    inputs = tuple(x.requires_grad_() for x in draw(2, 1, 21, width=2))
    padding = torch.arange(21) == torch.tensor([[3], [14]])
    assert torch.autograd.gradcheck(
        lambda *x: fractal_self_attention(*x, 4, 2, causal, padding), inputs
    )


def test_second_derivatives():
    inputs = tuple(x.requires_grad_() for x in draw(1, 1, 7, width=1))
    assert torch.autograd.gradgradcheck(lambda *x: fractal_self_attention(*x, 1, 1, True), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_err_by_the_rounding_of_the_result(dtype):
    q, k, v = (x.to(dtype).requires_grad_() for x in draw(1, 2, 1000, width=24))
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out, exact = fractal_self_attention(q, k, v, 32, 4), fractal_self_attention(*wide, 32, 4)
    assert out.dtype == dtype
    # one rounding of a number of at most |v|, and float32 underneath
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    to = torch.randn_like(out)
    got, wanted = (
        torch.autograd.grad(out, (q, k, v), to),
        torch.autograd.grad(exact, wide, to.double()),
    )
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == dtype
        # the result enters the derivative rounded
        torch.testing.assert_close(
            a.double(), b, rtol=0, atol=2 * torch.finfo(dtype).eps * b.abs().max().item()
        )


@pytest.mark.filterwarnings("default")  # the compiler's own deprecations are not ours
def test_one_graph_for_the_compiler():
    q, k, v = (x.requires_grad_() for x in draw(1, 2, 40))
    padding = torch.arange(40)[None] > 35

    def loss(q, k, v):
        return fractal_self_attention(q, k, v, 8, 2, True, padding).square().sum()

    expected = torch.autograd.grad(loss(q, k, v), (q, k, v))
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(q, k, v), (q, k, v)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


CHILD = """
import sys, torch
from fractal_lib import fractal_self_attention
torch.set_num_threads(1)

def high_water():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

def step(n):
    q, k, v = torch.ones(3, 1, 1, n, 8).unbind()
    q.requires_grad_(), k.requires_grad_(), v.requires_grad_()
    fractal_self_attention(q, k, v, 16, 2).sum().backward()

step(1000)  # what torch allocates once
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")  # the high-water mark falls back to what is resident now
before = high_water()
step(int(sys.argv[1]))
print(high_water() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_linear():
    extra = []
    for n in (2**14, 2**16):
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(n)], capture_output=True, text=True, check=True
        )
        extra.append(int(done.stdout))
    # four times the rows; pages of the allocator, and one more chunk
    assert extra[1] < 4.5 * extra[0] + 2**22
    assert extra[1] > 2**16 * 8 * 4  # the measurement sees at least the result


X = torch.zeros(2, 3, 10, 4)
BAD = {
    "integers": (
        lambda: fractal_self_attention(X.long(), X.long(), X.long()),
        TypeError,
        "int64 for q",
    ),
    "dtypes differ": (lambda: fractal_self_attention(X, X.double(), X), TypeError, "float64 for k"),
    "not a tensor": (lambda: fractal_self_attention(X, X, [1.0]), TypeError, "list"),
    "three dimensions": (
        lambda: fractal_self_attention(X[0], X[0], X[0]),
        ValueError,
        r"\(B, heads, N, D\)",
    ),
    "no rows": (lambda: fractal_self_attention(*[X[:, :, :0]] * 3), ValueError, "N >= 1"),
    "lengths differ": (
        lambda: fractal_self_attention(X, X[:, :, :5], X),
        ValueError,
        r"\(2, 3, 5, 4\) for k",
    ),
    "widths differ": (
        lambda: fractal_self_attention(X, X[..., :2], X),
        ValueError,
        "one D, got 4 and 2",
    ),
    "near below 1": (lambda: fractal_self_attention(X, X, X, near=0), ValueError, "near=0"),
    "near no multiple": (
        lambda: fractal_self_attention(X, X, X, near=12),
        ValueError,
        "multiple of cells.*near=12, cells=8",
    ),
    "cells negative": (lambda: fractal_self_attention(X, X, X, cells=-1), ValueError, "cells=-1"),
    "mask not bool": (
        lambda: fractal_self_attention(X, X, X, key_padding_mask=X[0, :2, :, 0]),
        TypeError,
        "float32",
    ),
    "mask misshapen": (
        lambda: fractal_self_attention(X, X, X, key_padding_mask=X[0, :, :, 0] > 0),
        ValueError,
        r"\(2, 10\)",
    ),
    "heads do not divide": (
        lambda: FractalSelfAttention(10, 3),
        ValueError,
        "embed_dim=10, num_heads=3",
    ),
    "geometry of the module": (
        lambda: FractalSelfAttention(8, 2, near=3),
        ValueError,
        "near=3, cells=8",
    ),
    "width of the module": (
        lambda: FractalSelfAttention(8, 2)(X[0]),
        ValueError,
        r"query must .* \(B, N, 8\)",
    ),
    "keys of another length": (
        lambda: FractalSelfAttention(4, 2)(X[0], X[0, :, :3]),
        ValueError,
        "key must have",
    ),
    "weights asked for": (
        lambda: FractalSelfAttention(4, 2)(X[0], need_weights=True),
        ValueError,
        "no matrix",
    ),
    "a mask of all pairs": (
        lambda: FractalSelfAttention(4, 2)(X[0], attn_mask=X[0, 0]),
        ValueError,
        "quadratic",
    ),
    "a soft mask": (
        lambda: FractalSelfAttention(4, 2)(X[0], key_padding_mask=X[0, :, :, 0] - 1),
        ValueError,
        "-inf",
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_are_a_clear_error(call, error, words):
    with pytest.raises(error, match=words):
        call()


def pair(**settings):
    """The module and torch's, of the same parameters."""
    theirs = torch.nn.MultiheadAttention(
        24, 3, batch_first=True, bias=settings.get("bias", True)
    ).double()
    ours = FractalSelfAttention(24, 3, dtype=torch.float64, **settings)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
def test_the_module_is_torchs_while_all_keys_are_near(bias):
    ours, theirs = pair(bias=bias)
    x, y, z = draw(2, 100, width=24)
    padding = torch.arange(100) >= torch.tensor([[100], [70]])
    soft = torch.zeros(2, 100, dtype=x.dtype).masked_fill(padding, -torch.inf)
    for mask in (None, padding, soft):
        for inputs in ((x, x, x), (x, y, z)):
            out, weights = ours(*inputs, key_padding_mask=mask)
            expected, _ = theirs(*inputs, key_padding_mask=mask, need_weights=False)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
            assert weights is None
    triangle = torch.ones(100, 100, dtype=torch.bool).triu(1)
    expected, _ = theirs(x, x, x, attn_mask=triangle, need_weights=False)
    torch.testing.assert_close(
        ours(x, attn_mask=triangle, is_causal=True)[0], expected, rtol=0, atol=1e-12
    )
    assert torch.equal(ours(x, is_causal=True)[0], pair_like(ours, causal=True)(x)[0])


def pair_like(module, **settings):
    other = FractalSelfAttention(
        24, 3, dtype=torch.float64, bias=module.in_proj_bias is not None, **settings
    )
    other.load_state_dict(module.state_dict())
    return other


@pytest.mark.parametrize("training", [True, False])
def test_it_takes_its_place_in_torchs_encoder_layer(training):
    """Also when torch would take a short cut around `forward`: 200 rows are more than are near."""
    layer = torch.nn.TransformerEncoderLayer(24, 4, 32, dropout=0, batch_first=True).train(training)
    x, *_ = draw(2, 200, dtype=torch.float32, width=24)
    padding = torch.arange(200) >= torch.tensor([[200], [150]])
    ours = FractalSelfAttention(24, 4, near=16, cells=4)
    ours.load_state_dict(layer.self_attn.state_dict())
    with torch.no_grad():
        before = layer(x, src_key_padding_mask=padding)
        layer.self_attn = ours
        after = layer(x, src_key_padding_mask=padding)
        normed = layer.norm1(x + ours(x, key_padding_mask=padding)[0])
        expected = layer.norm2(normed + layer.linear2(layer.linear1(normed).relu()))
    torch.testing.assert_close(after, expected)
    assert (after - before)[0].abs().max() > 1e-3


def test_autocast_keeps_the_softmax_in_float32():
    ours = FractalSelfAttention(32, 2, near=16, cells=4)
    x = draw(1, 200, dtype=torch.float32, width=32)[0].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = ours(x)
        out.sum().backward()
    exact, _ = ours(x)
    assert out.dtype == torch.bfloat16
    # three products of bfloat16 numbers, each with an error of 2^-8 of the largest
    assert (out - exact).abs().max() < 3 * 2**-8 * x.detach().abs().max()
    assert x.grad.isfinite().all()
