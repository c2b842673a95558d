"""Keys that queries open: against the specification, at every place a key can stand in, and found
where a needle lies.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention as full

from fractal_lib import FractalSelfAttention, fractal_self_attention
from fractal_lib.reference import self_attention as specification
from fractal_lib.self_attention.autograd import self_attention
from fractal_lib.self_attention.choices import choice_of, order_of
from fractal_lib.self_attention.prepared import Settings

close = dict(rtol=0, atol=1e-11)


def draw(*shape, seed=0, dtype=torch.float64, width=3):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, width, generator=generator, dtype=dtype) for _ in range(3))


def far_keys(i, n, near, causal, there):
    """What query i may open."""
    far = [j for j in range(n) if abs(j // near - i // near) > 1 and there[j]]
    return [j for j in far if j < i] if causal else far


def some_choice(n, heads, number, near, causal, there, seed):
    """(1, heads, N, number): far keys at random, or in a row, so that cells are left empty."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.full((1, heads, n, number), -1)
    for h in range(heads):
        for i in range(n):
            far = far_keys(i, n, near, causal, there)
            first = int(torch.randint(max(1, len(far) - number), (1,), generator=generator))
            in_a_row = range(first, min(first + number, len(far)))
            at_random = torch.randperm(len(far), generator=generator)[:number].tolist()
            places = in_a_row if i % 2 else at_random
            for slot, place in enumerate(places):
                chosen[0, h, i, slot] = far[place]
    return chosen


@settings(max_examples=30)
@given(
    n=st.integers(1, 50),
    shape=st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (6, 3)]),
    causal=st.booleans(),
    order=st.sampled_from(["time", "tree", "hilbert"]),
    share=st.sampled_from([0.0, 0.3, 0.9]),
    number=st.integers(1, 9),
    seed=st.integers(0, 2**20),
)
def test_values_and_gradients_are_those_of_the_specification(
    n, shape, causal, order, share, number, seed
):
    """For any choice whatever."""
    near, cells = shape
    q, k, v = (x.requires_grad_() for x in draw(1, 2, n, seed=seed))
    padding = torch.rand(1, n, generator=torch.Generator().manual_seed(seed)) < share
    chosen = some_choice(n, 2, number, near, causal, ~padding[0], seed)
    keys, values = (x.masked_fill(padding[:, None, :, None], 0) for x in (k, v))
    tree = order_of(keys, padding, near, cells, order)
    geometry = Settings(near, cells, causal, None)
    out = self_attention(q, keys, values, padding, tree, chosen, geometry)
    expected = specification(q, k, v, near, cells, causal, padding, None, order, chosen)
    torch.testing.assert_close(out, expected, **close)
    to = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=out.dtype)
    got, wanted = (torch.autograd.grad(x, (q, k, v), to) for x in (out, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("order", ["time", "tree"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("n", [1, 9, 33, 70])
def test_a_choice_holds_far_keys_that_are_there_each_once(n, padded, causal, order):
    near, cells, opened = 4, 2, 5
    q, k, _ = draw(2, 2, n)
    padding = torch.rand(2, n, generator=torch.Generator().manual_seed(n)) < 0.4
    padding = padding if padded else None
    k = k if padding is None else k.masked_fill(padding[:, None, :, None], 0)
    geometry = Settings(near, cells, causal, None)
    tree = order_of(k, padding, near, cells, order)
    chosen = choice_of(q, k, padding, tree, geometry, opened)
    if chosen is None:
        assert n <= 2 * near
        return
    assert chosen.shape == (2, 2, n, opened)
    found = 0
    for b in range(2):
        there = torch.ones(n, dtype=torch.bool) if padding is None else ~padding[b]
        for i in range(n):
            may = set(far_keys(i, n, near, causal, there))
            for h in range(2):
                keys = [j for j in chosen[b, h, i].tolist() if j >= 0]
                assert len(keys) == len(set(keys))
                assert set(keys) <= may
                # a cell's keys are looked at to the last
                assert len(keys) >= min(opened, len(may), near // cells)
                found += len(keys)
    assert found


@pytest.mark.parametrize("causal", [False, True])
def test_all_far_keys_opened_is_full_attention(causal):
    n = 60
    q, k, v = draw(1, 2, n)
    out = fractal_self_attention(q, k, v, near=4, cells=2, is_causal=causal, opened=n, order="tree")
    torch.testing.assert_close(out, full(q, k, v, is_causal=causal), rtol=0, atol=1e-12)


def needle(n, rows=16, width=64):
    """Straw, standard normal, and for some queries a key that points where they do, with a logit of
    log(n) + 8: that holds all but a 2000th of the weight.
    """
    q, k, v = draw(1, 1, n, dtype=torch.float32, width=width)
    generator = torch.Generator().manual_seed(1)
    queries = n // 2 + torch.randperm(n // 2, generator=generator)[:rows]
    places = torch.randperm(n // 2 - 200, generator=generator)[:rows]
    asked = q[:, :, queries]
    k[:, :, places] = (math.log(n) + 8) * width**0.5 * asked / asked.square().sum(-1, keepdim=True)
    return q, k, v, queries


@pytest.mark.parametrize(("order", "causal"), [("time", True), ("tree", False), ("tree", True)])
def test_a_needle_is_found(order, causal):
    q, k, v, queries = needle(4096)
    exact = full(q, k, v, is_causal=causal)[:, :, queries]

    def error(**settings):
        out = fractal_self_attention(q, k, v, is_causal=causal, order=order, **settings)
        return ((out[:, :, queries] - exact).norm() / exact.norm()).item()

    assert error() > 0.9
    assert error(opened=16) < 0.02


def test_the_future_changes_no_bit_of_the_past():
    n = 150
    q, k, v = draw(2, 2, n, dtype=torch.float32)
    geometry = dict(near=8, cells=4, is_causal=True, opened=6, order="tree")
    out, bound = fractal_self_attention(q, k, v, **geometry, return_bound=True)
    for now in (60, 75, 149):
        other = [x.clone() for x in (q, k, v)]
        for x in other:
            x[:, :, now:] = 1e3 * torch.randn_like(x[:, :, now:])
        again = fractal_self_attention(*other, **geometry, return_bound=True)
        assert torch.equal(again[0][:, :, :now], out[:, :, :now])
        assert torch.equal(again[1][:, :, :now], bound[:, :, :now])


def test_a_sample_does_not_depend_on_its_batch():
    n = 100
    q, k, v = draw(3, 2, n)
    padding = torch.arange(n) >= torch.tensor([[n], [n - 1], [n // 2]])
    geometry = dict(near=8, cells=4, opened=6, order="tree")
    whole = fractal_self_attention(q, k, v, **geometry, key_padding_mask=padding)
    for b in range(3):
        alone = fractal_self_attention(
            *(x[b : b + 1] for x in (q, k, v)), **geometry, key_padding_mask=padding[b : b + 1]
        )
        torch.testing.assert_close(whole[b : b + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_err_by_the_rounding_of_the_result(dtype):
    q, k, v = (x.to(dtype).requires_grad_() for x in draw(1, 2, 300, width=16))
    geometry = dict(near=16, cells=4, opened=8, order="tree", is_causal=True)
    out = fractal_self_attention(q, k, v, **geometry)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = fractal_self_attention(*wide, **geometry)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    to = torch.randn_like(out)
    got = torch.autograd.grad(out, (q, k, v), to)
    wanted = torch.autograd.grad(exact, wide, to.double())
    for a, b in zip(got, wanted, strict=True):
        most = b.abs().max().item()
        torch.testing.assert_close(a.double(), b, rtol=0, atol=2 * torch.finfo(dtype).eps * most)


def test_grouped_queries_choose_for_themselves():
    q, k, v = draw(2, 4, 60)
    k, v = (x[:, :2] for x in (k, v))
    geometry = dict(near=4, cells=2, opened=3, order="tree")
    out = fractal_self_attention(q, k, v, enable_gqa=True, **geometry)
    wide = (x.repeat_interleave(2, 1) for x in (k, v))
    torch.testing.assert_close(out, fractal_self_attention(q, *wide, **geometry), **close)


def test_the_module_hands_it_on():
    module = FractalSelfAttention(8, 2, near=4, cells=2, opened=3, causal=True)
    assert "opened=3" in repr(module)
    x = torch.randn(2, 50, 8)
    plain = FractalSelfAttention(8, 2, near=4, cells=2, causal=True)
    plain.load_state_dict(module.state_dict())
    assert (module(x)[0] - plain(x)[0]).abs().max() > 1e-4
    module(x)[0].sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


BAD = {
    "negative": (dict(opened=-1), ValueError, "at least 0.*opened=-1"),
    "not whole": (dict(opened=2.5), TypeError, "opened as a whole number, got float"),
    "nothing to open": (dict(opened=2, cells=0), ValueError, "without cells.*opened=2, cells=0"),
    "no bound": (dict(return_bound=True, cells=0), ValueError, "needs cells.*cells=0"),
}


@pytest.mark.parametrize(("settings", "error", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_are_a_clear_error(settings, error, words):
    with pytest.raises(error, match=words):
        fractal_self_attention(*draw(1, 1, 30), **{**dict(near=8, cells=2), **settings})
