"""Which keys share a cell: a tree of permutations, alike keys together, and nothing seen that is
not past.
"""

import pytest
import torch
from torch.func import jacrev, jvp, vmap
from torch.nn.functional import scaled_dot_product_attention as full

from fractal_lib import fractal_self_attention
from fractal_lib.reference import self_attention as specification
from fractal_lib.reference import self_attention_groups
from fractal_lib.self_attention.layout import Layout
from fractal_lib.self_attention.ordering import ORDERS, content_order, packed_size, unpacked

SIZES = (1, 2, 3, 63, 100, 200, 255, 256, 257)
each_order = pytest.mark.parametrize("order", ORDERS)


def draw(*shape, seed=0, dtype=torch.float64, width=4):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, width, generator=generator, dtype=dtype) for _ in range(3))


def tree_of(keys, padding, near, cells, order):
    n = keys.shape[2]
    layout = Layout.of(n, near, cells, causal=False, batch=1, device=keys.device)
    packed = content_order(keys, padding, near, cells, order)
    assert packed.shape == (*keys.shape[:2], packed_size(n, near, cells))
    return unpacked(packed, n, layout), layout


@each_order
@pytest.mark.parametrize("n", SIZES)
def test_values_and_gradients_are_those_of_the_specification(n, order):
    """For lengths around powers of two; short ones in every geometry are drawn elsewhere."""
    q, k, v = (x.requires_grad_() for x in draw(1, 1, n, seed=n, width=2))
    out = fractal_self_attention(q, k, v, near=8, cells=4, order=order)
    expected = specification(q, k, v, 8, 4, order=order)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    got, wanted = (torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (out, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@each_order
@pytest.mark.parametrize("padded", [False, True])
def test_the_tree_is_the_groups_of_the_specification(order, padded):
    """Cell by cell, with its keys: two cells of a scale are one of the next."""
    n, near, cells = 150, 12, 6
    keys = draw(2, 2, n)[1]
    there = torch.rand(2, n, generator=torch.Generator().manual_seed(0)) < (0.6 if padded else 2)
    keys = keys.masked_fill(~there[:, None, :, None], 0)
    orders, layout = tree_of(keys, ~there, near, cells, order)
    groups = [
        self_attention_groups(keys[b, h], there[b], near, cells, order)
        for b in range(2)
        for h in range(2)
    ]
    assert len(orders) == 3
    for g, wanted in enumerate(groups):
        below = [[i] if i < n and there[g // 2, i] else [] for i in range(layout.length)]
        for scale, one in enumerate(orders, 1):
            assert sorted(one[g].tolist()) == list(range(one.shape[1]))
            members, size = layout.members(scale), layout.members(scale) // cells
            assert torch.equal(one[g] // members, torch.arange(one.shape[1]) // members)
            below += [[]] * (one.shape[1] - len(below))
            row = [below[i] for i in one[g].tolist()]
            below = [sum(row[i : i + size], []) for i in range(0, len(row), size)]
            width = near // cells * 2 ** (scale - 1)
            for cell, found in enumerate(below):
                assert found == wanted[cell * width, (cell + 1) * width]


@each_order
def test_keys_of_a_few_kinds_leave_no_error(order):
    """Straws in the wind: far keys of 4 kinds, in any order in time, are 4 kinds of cells."""
    n, near, cells = 512, 16, 4
    generator = torch.Generator().manual_seed(0)
    kinds = 3 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    # each unit of 16 keys holds 4 of each kind
    which = torch.rand(n // near, near, generator=generator).argsort(1).flatten() % 4
    q, _, v = draw(1, 1, n, width=3)
    k = kinds[which][None, None]
    exact = full(q, k, v)

    def error(order):
        out = fractal_self_attention(q, k, v, near=near, cells=cells, order=order)
        return (out - exact).std() / exact.std()

    assert error(order) < 1e-12
    assert error("time") > 0.1


@each_order
@pytest.mark.parametrize("n", [63, 200, 1000])
def test_the_future_changes_no_bit_of_the_past(n, order):
    q, k, v = draw(2, 2, n, dtype=torch.float32)
    geometry = dict(near=8, cells=4, is_causal=True, order=order)
    out = fractal_self_attention(q, k, v, **geometry)
    for now in {1, n // 3, n // 2, n - 1}:
        for junk in (1e3, torch.nan, torch.inf):
            other = [x.clone() for x in (q, k, v)]
            for x in other:
                x[:, :, now:] = junk * torch.randn_like(x[:, :, now:])
            past = fractal_self_attention(*other, **geometry)[:, :, :now]
            if junk == 1e3:
                assert torch.equal(past, out[:, :, :now])


@each_order
@pytest.mark.parametrize("causal", [False, True])
def test_equal_keys_stand_as_in_time(causal, order):
    """Ties are stable: the result is the time order's, to rounding, where all keys are equal."""
    q, k, v = draw(1, 2, 300)
    settings = dict(near=8, cells=2, is_causal=causal)
    got = fractal_self_attention(q, 0 * k + 1, v, order=order, **settings)
    assert torch.equal(got, fractal_self_attention(q, 0 * k + 1, v, order="time", **settings))


@each_order
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_have_the_order_of_what_they_hold(dtype, order):
    keys = draw(1, 2, 1000, width=24)[1].to(dtype)
    low, _ = tree_of(keys, None, 32, 4, order)
    high, _ = tree_of(keys.float(), None, 32, 4, order)
    assert all(torch.equal(a, b) for a, b in zip(low, high, strict=True))
    with torch.autocast("cpu", dtype=dtype):
        within, _ = tree_of(keys.float(), None, 32, 4, order)
    assert all(torch.equal(a, b) for a, b in zip(low, within, strict=True))


@each_order
def test_grouped_queries_share_the_order_of_their_keys(order):
    q, k, v = draw(2, 4, 200)
    settings = dict(near=8, cells=2, order=order)
    got = fractal_self_attention(q, k[:, :2], v[:, :2], enable_gqa=True, **settings)
    k, v = (x[:, :2].repeat_interleave(2, 1) for x in (k, v))
    assert torch.equal(got, fractal_self_attention(q, k, v, **settings))


@each_order
def test_transforms_see_the_order_as_a_constant(order):
    inputs = draw(3, 1, 1, 40, width=2)

    def call(q, k, v):
        return fractal_self_attention(q, k, v, near=4, cells=2, order=order, is_causal=True)

    expected = torch.stack([call(*(x[i] for x in inputs)) for i in range(3)])
    torch.testing.assert_close(vmap(call)(*inputs), expected, rtol=0, atol=1e-12)
    one, tangents = [x[0] for x in inputs], [x[1] for x in inputs]
    _, slope = jvp(call, tuple(one), tuple(tangents))
    rows = jacrev(call, (0, 1, 2))(*one)
    pushed = sum((r * t).flatten(4).sum(-1) for r, t in zip(rows, tangents, strict=True))
    torch.testing.assert_close(slope, pushed, rtol=0, atol=1e-12)
    leaves = [x.clone().requires_grad_() for x in draw(1, 1, 9, width=1)]
    few = dict(near=2, cells=2, order=order)
    assert torch.autograd.gradgradcheck(
        lambda *x: fractal_self_attention(*x, **few), leaves, check_fwd_over_rev=True
    )


@pytest.mark.filterwarnings("default")  # the compiler's own deprecations are not ours
@each_order
def test_a_compiled_graph_has_the_same_order(order):
    torch.compiler.reset()

    def loss(q, k, v):
        out = fractal_self_attention(q, k, v, near=4, cells=2, is_causal=True, order=order)
        return out.square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (9, 40, 129):
        leaves = [x.requires_grad_() for x in draw(2, 1, n, seed=n)]
        got, wanted = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, loss))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
