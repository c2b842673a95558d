"""Self-attention over near keys and far cells: against a slow specification, full attention, and
forbidden reads.
"""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention as full

from fractal_lib import fractal_self_attention
from fractal_lib.reference import self_attention as specification
from fractal_lib.reference import self_attention_reads
from fractal_lib.self_attention.layout import Layout

ORDERS = ("time", "tree", "hilbert")
SIZES = (1, 2, 3, 63, 100, 2000, 4097)


def draw(*shape, seed=0, dtype=torch.float64, width=8):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, width, generator=generator, dtype=dtype) for _ in range(3))


@settings(max_examples=40)
@given(
    n=st.integers(1, 70),
    shape=st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (6, 3), (8, 2)]),
    order=st.sampled_from(ORDERS),
    causal=st.booleans(),
    share=st.sampled_from([0.0, 0.3, 0.95]),
    scale=st.sampled_from([None, 0.3, -1.5]),
    seed=st.integers(0, 2**20),
)
def test_values_and_gradients_are_those_of_the_specification(
    n, shape, order, causal, share, scale, seed
):
    near, cells = shape
    q, k, v = (x.requires_grad_() for x in draw(1, 1, n, seed=seed, width=3))
    padding = torch.rand(1, n, generator=torch.Generator().manual_seed(seed)) < share
    mask = padding if share else None
    geometry = dict(near=near, cells=cells, is_causal=causal, scale=scale, order=order)
    out = fractal_self_attention(q, k, v, **geometry, key_padding_mask=mask)
    expected = specification(q, k, v, near, cells, causal, mask, scale, order)
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
        fractal_self_attention(q, k, v, near=near, cells=cells, is_causal=causal),
        exact,
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize("far", [False, True])
def test_one_softmax_over_all_scales(far):
    """A scale with huge logits outweighs the others; one maximum for each scale, never rescaled,
    would count them all.
    """
    n, near, cells = 512, 16, 4
    k = torch.zeros(1, 1, n, 1)
    chosen = slice(256, 512) if far else slice(0, 32)
    k[:, :, chosen] = 1e4
    v = torch.zeros(1, 1, n, 1)
    v[:, :, chosen] = 1
    first = fractal_self_attention(torch.ones(1, 1, n, 1), k, v, near=near, cells=cells)[0, 0, 0]
    assert first == 1
    # the wrong way: softmax numerators and denominators of each scale against its own maximum, then
    # added up
    width = torch.tensor([b - a for a, b in self_attention_reads(0, n, near, cells)])
    start = torch.tensor([a for a, _ in self_attention_reads(0, n, near, cells)])
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
    whole = fractal_self_attention(q, k, v, near=16, cells=4, key_padding_mask=padding)
    for b in range(3):
        alone = fractal_self_attention(
            *(x[b : b + 1] for x in (q, k, v)),
            near=16,
            cells=4,
            key_padding_mask=padding[b : b + 1],
        )
        torch.testing.assert_close(whole[b : b + 1], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_as_if_it_were_not_there(causal):
    """Behind the end; what stands there, here NaN, has no part in values or gradients."""
    n, longer = 300, 420
    q, k, v = draw(1, 2, longer)
    padding = torch.arange(longer)[None] >= n
    geometry = dict(near=16, cells=4, is_causal=causal)
    expected = fractal_self_attention(*(x[:, :, :n] for x in (q, k, v)), **geometry)
    k, v = (x.masked_fill(padding[:, None, :, None], torch.nan).requires_grad_() for x in (k, v))
    out = fractal_self_attention(q, k, v, **geometry, key_padding_mask=padding)
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
        out = fractal_self_attention(
            q, k, v, near=8, cells=cells, is_causal=causal, key_padding_mask=padding
        )
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
        fractal_self_attention(q, k, v, near=near, cells=0),
        full(q, k, v, attn_mask=mask),
        rtol=0,
        atol=1e-13,
    )
    out = fractal_self_attention(q, k, v, near=near, cells=0, is_causal=True)
    torch.testing.assert_close(out, full(q, k, v, attn_mask=mask.tril()), rtol=0, atol=1e-13)


def test_the_error_falls_as_near_and_cells_grow():
    """Keys and queries as of a sinusoidal code of the position: alike nearby, smooth far away."""
    n = 2048
    wave = torch.arange(n).double()[:, None] / torch.logspace(1, 4, 8).double()
    k = torch.cat([wave.sin(), wave.cos()], -1)[None, None]
    v = draw(1, 1, n, width=4)[2]
    exact = full(8 * k, k, v)

    def error(near, cells):
        return (
            (fractal_self_attention(8 * k, k, v, near=near, cells=cells) - exact).abs().max().item()
        )

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
        lambda *x: fractal_self_attention(
            *x, near=4, cells=2, is_causal=causal, key_padding_mask=padding
        ),
        inputs,
        check_forward_ad=True,
    )


def test_second_derivatives():
    inputs = tuple(x.requires_grad_() for x in draw(1, 1, 7, width=1))
    assert torch.autograd.gradgradcheck(
        lambda *x: fractal_self_attention(*x, near=1, cells=1, is_causal=True),
        inputs,
        check_fwd_over_rev=True,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_err_by_the_rounding_of_the_result(dtype):
    q, k, v = (x.to(dtype).requires_grad_() for x in draw(1, 2, 1000, width=24))
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out, exact = (fractal_self_attention(*x, near=32, cells=4) for x in ((q, k, v), wide))
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
    fractal_self_attention(q, k, v, near=16, cells=2).sum().backward()

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
    "integers": (dict(query=X.long(), key=X.long(), value=X.long()), TypeError, "int64 for query"),
    "dtypes differ": (dict(key=X.double()), TypeError, "float64 for key"),
    "not a tensor": (dict(value=[1.0]), TypeError, "list"),
    "three dimensions": (dict(query=X[0]), ValueError, r"\(B, heads, N, D\)"),
    "no rows": (dict(query=X[:, :, :0]), ValueError, "N >= 1"),
    "no width": (dict(query=X[..., :0]), ValueError, "D >= 1"),
    "lengths differ": (dict(key=X[:, :, :5]), ValueError, r"length.*\(2, 3, 5, 4\)"),
    "batches differ": (dict(value=X[:1]), ValueError, r"value must have the batch"),
    "heads differ": (dict(value=X[:, :1]), ValueError, "3 heads of the query, got 1"),
    "groups differ": (dict(value=X[:, :1], enable_gqa=True), ValueError, "got 3 and 1"),
    "groups do not divide": (
        dict(key=X[:, :2], value=X[:, :2], enable_gqa=True),
        ValueError,
        "divides the query's 3, got 2 and 2",
    ),
    "no heads to repeat": (
        dict(key=X[:, :0], value=X[:, :0], enable_gqa=True),
        ValueError,
        "got 0 and 0",
    ),
    "widths differ": (dict(key=X[..., :2]), ValueError, "one D, got 4 and 2"),
    "near below 1": (dict(near=0), ValueError, "near=0"),
    "near no multiple": (dict(near=12), ValueError, "multiple of cells.*near=12, cells=8"),
    "near not whole": (dict(near=8.0), TypeError, "near as a whole number, got float"),
    "cells negative": (dict(cells=-1), ValueError, "cells=-1"),
    "mask not bool": (dict(key_padding_mask=X[0, :2, :, 0]), TypeError, "float32"),
    "mask misshapen": (dict(key_padding_mask=X[0, :, :, 0] > 0), ValueError, r"\(2, 10\)"),
    "a mask of pairs": (dict(attn_mask=X[0, 0] > 0), ValueError, r"is_causal.*\(10, 4\)"),
    "near as a mask": (dict(attn_mask=64), ValueError, "attn_mask must be None.*64"),
    "dropout": (dict(dropout_p=0.1), ValueError, "dropout_p must be 0.*0.1"),
}


@pytest.mark.parametrize(("settings", "error", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_are_a_clear_error(settings, error, words):
    with pytest.raises(error, match=words):
        fractal_self_attention(**{**dict(query=X, key=X, value=X), **settings})


def test_positions_and_names_are_those_of_torch():
    """All that `scaled_dot_product_attention` takes, in its order."""
    q, k, v = draw(2, 2, 50)
    exact = full(q, k, v, None, 0.0, True, scale=0.3)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-13)
    close(fractal_self_attention(q, k, v, None, 0.0, True, 0.3), exact)
    names = dict(query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, is_causal=True)
    close(fractal_self_attention(**names, scale=np.float32(0.5)), full(**names, scale=0.5))
    with pytest.raises(ValueError, match="attn_mask must be None"):
        fractal_self_attention(q, k, v, torch.ones(50, 50, dtype=torch.bool))


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_grouped_queries(heads):
    q, k, v = draw(2, 6, 40)
    k, v = (x[:, :heads].requires_grad_() for x in (k, v))
    out = fractal_self_attention(q, k, v, enable_gqa=True)
    exact = full(q, k, v, enable_gqa=True)
    torch.testing.assert_close(out, exact, rtol=0, atol=1e-13)
    got, wanted = (torch.autograd.grad(x.square().sum(), (k, v)) for x in (out, exact))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_what_users_bring():
    q, k, v = draw(2, 1, 30)
    padding = torch.arange(30) >= torch.tensor([[30], [20]])
    expected = fractal_self_attention(q, k, v, near=4, cells=2, key_padding_mask=padding)
    for mask in (padding.tolist(), padding.numpy()):
        got = fractal_self_attention(
            q, k, v, near=np.int64(4), cells=np.int32(2), key_padding_mask=mask
        )
        assert torch.equal(got, expected)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", [(0, 2, 30, 4), (2, 0, 30, 4)])
def test_an_empty_batch_is_an_empty_result(shape, padded):
    q = torch.zeros(shape, requires_grad=True)
    padding = torch.zeros(shape[0], shape[2], dtype=torch.bool) if padded else None
    out = fractal_self_attention(q, q, q, near=4, cells=2, key_padding_mask=padding)
    assert out.shape == shape
    out.sum().backward()
    assert q.grad.shape == shape


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("causal", [False, True])
def test_what_is_not_finite_in_padded_places_has_no_gradient(causal, bad):
    """Neither the query's: 0 times NaN is NaN."""
    n = 90
    padding = torch.rand(2, n, generator=torch.Generator().manual_seed(0)) < 0.3
    places = padding[:, None, :, None]
    settings = dict(near=8, cells=2, is_causal=causal, key_padding_mask=padding)
    good = [x.masked_fill(places, 0).requires_grad_() for x in draw(2, 1, n)]
    wrong = [x.detach().masked_fill(places, bad).requires_grad_() for x in good]
    out, expected = (fractal_self_attention(*x, **settings) for x in (wrong, good))
    assert torch.equal(out, expected)
    got, wanted = (
        torch.autograd.grad(o.masked_fill(places, 0).square().sum(), x)
        for o, x in ((out, wrong), (expected, good))
    )
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)
        assert a.masked_select(places).eq(0).all()
        assert a.masked_select(~places).ne(0).any()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(low):
    inputs = [x.requires_grad_() for x in draw(1, 2, 200, dtype=torch.float32)]
    expected = fractal_self_attention(*inputs, near=8, cells=2)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    with torch.autocast("cpu", dtype=low):
        out = fractal_self_attention(*inputs, near=8, cells=2)
        got = torch.autograd.grad(out.square().sum(), inputs)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


def test_inference_then_training_and_checkpoints():
    inputs = [x.requires_grad_() for x in draw(1, 1, 70)]
    call = partial(fractal_self_attention, near=8, cells=2)
    with torch.inference_mode():
        before = call(*inputs)
    out = call(*inputs)
    assert torch.equal(before, out)
    wanted = torch.autograd.grad(out.square().sum(), inputs)
    again = torch.utils.checkpoint.checkpoint(call, *inputs, use_reentrant=False)
    got = torch.autograd.grad(again.square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
