"""Compilers and transforms: compile, export, and all of `torch.func`, against plain autograd."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from fractal_lib import FractalSelfAttention, fractal_self_attention
from fractal_lib.self_attention.ordering import content_order

GEOMETRY = dict(near=4, cells=2, is_causal=True)
close = dict(rtol=0, atol=1e-12)


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(3))


def loss(q, k, v, padding=None):
    out = fractal_self_attention(q, k, v, **GEOMETRY, key_padding_mask=padding)
    return out.square().sum()


def gradients(*inputs, padding=None):
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*leaves, padding), leaves)


def test_grad_is_that_of_autograd():
    inputs = draw(2, 1, 30, 3)
    for a, b in zip(grad(loss, (0, 1, 2))(*inputs), gradients(*inputs), strict=True):
        torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 1, 0), (None, None, 2)])
def test_vmap_is_a_loop(in_dims):
    size, inputs = 3, []
    for x, dim in zip(draw(size, 2, 1, 30, 3), in_dims, strict=True):
        inputs.append(x[0] if dim is None else x.movedim(0, dim))

    def call(q, k, v):
        return fractal_self_attention(q, k, v, **GEOMETRY)

    def pick(i):
        return [x if d is None else x.select(d, i) for x, d in zip(inputs, in_dims, strict=True)]

    expected = torch.stack([call(*pick(i)) for i in range(size)])
    torch.testing.assert_close(vmap(call, in_dims)(*inputs), expected, **close)


def test_vmap_over_padding():
    q, k, v = draw(1, 1, 30, 3)
    padding = torch.arange(30) >= torch.tensor([[[30]], [[20]], [[5]]])
    expected = torch.stack([loss(q, k, v, mask) for mask in padding])
    got = vmap(loss, (None, None, None, 0))(q, k, v, padding)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


def test_gradients_of_each_sample():
    q, k, v = draw(3, 1, 30, 3)
    got = vmap(grad(lambda *x: loss(*(y[None] for y in x)), (0, 1, 2)))(q, k, v)
    for a, b in zip(got, gradients(q, k, v), strict=True):  # samples are independent
        torch.testing.assert_close(a, b, **close)
    shared = vmap(grad(lambda k, q: loss(q[None], k[None], v[:1])), (None, 0))(k[0], q)
    expected = [gradients(x[None], k[:1], v[:1])[1][0] for x in q]
    torch.testing.assert_close(shared, torch.stack(expected), **close)


def test_gradients_of_each_sample_of_a_module():
    module = FractalSelfAttention(8, 2, near=4, cells=2, dtype=torch.float64)
    x, parameters = draw(3, 30, 8)[0], dict(module.named_parameters())

    def one(parameters, x):
        return torch.func.functional_call(module, parameters, (x[None],))[0].square().sum()

    got = vmap(grad(one), (None, 0))({k: p.detach() for k, p in parameters.items()}, x)
    for i in range(3):
        expected = torch.autograd.grad(one(parameters, x[i]), list(parameters.values()))
        for name, b in zip(parameters, expected, strict=True):
            torch.testing.assert_close(got[name][i], b, rtol=0, atol=1e-11)


def test_forward_mode_is_reverse_mode():
    q, k, v = draw(1, 1, 9, 2)
    tangents = draw(1, 1, 9, 2, seed=1)
    out, slope = jvp(lambda *x: fractal_self_attention(*x, **GEOMETRY), (q, k, v), tangents)
    torch.testing.assert_close(out, fractal_self_attention(q, k, v, **GEOMETRY), **close)
    pulled = torch.func.vjp(lambda *x: fractal_self_attention(*x, **GEOMETRY), q, k, v)[1]
    (to,) = draw(1, 1, 9, 2, seed=2)[:1]
    paired = sum((a * b).sum() for a, b in zip(pulled(to), tangents, strict=True))
    torch.testing.assert_close((slope * to).sum(), paired, **close)


def test_second_and_third_derivatives_in_every_mode():
    q, k, v = draw(1, 1, 5, 1)

    def of(q):
        return loss(q, k, v)

    exact = torch.autograd.functional.hessian(of, q)
    for form in (hessian(of), jacrev(jacrev(of)), jacfwd(jacfwd(of)), jacrev(jacfwd(of))):
        torch.testing.assert_close(form(q), exact, **close)
    third = jacrev(jacrev(jacrev(of)))(q)
    torch.testing.assert_close(jacfwd(hessian(of))(q), third, **close)
    assert third.abs().max() > 0.1
    # third derivatives are differences of second ones; step 1e-5 in float64 leaves some 1e-9
    step = torch.zeros_like(q)
    step[0, 0, 3] = 1e-5
    difference = (hessian(of)(q + step) - hessian(of)(q - step)) / 2e-5
    torch.testing.assert_close(third[..., 0, 0, 3, 0], difference, rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("default")  # the compiler's own deprecations are not ours
@pytest.mark.parametrize("padded", [False, True])
def test_one_graph_for_every_length(padded):
    """Lengths of 1 to 7 scales: a graph for each would be refused after 8."""
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for n in (5, 9, 17, 33, 65, 129, 257):
        inputs = draw(2, 1, n, 3, seed=n)
        padding = torch.arange(n) >= torch.tensor([[n], [n // 2]]) if padded else None
        leaves = [x.clone().requires_grad_() for x in inputs]
        got = torch.autograd.grad(compiled(*leaves, padding), leaves)
        for a, b in zip(got, gradients(*inputs, padding=padding), strict=True):
            torch.testing.assert_close(a, b, **close)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.filterwarnings("default")
def test_transforms_within_a_compiled_graph():
    torch.compiler.reset()
    q, k, v = draw(1, 1, 30, 3)
    each = vmap(grad(lambda q: loss(q[None], k, v)))
    for form, x in ((grad(lambda q: loss(q, k, v)), q), (each, draw(3, 1, 30, 3)[0])):
        got = torch.compile(form, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(got, form(x), **close)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("strict", [False, True])
def test_one_export_for_every_batch_and_length(strict):
    module = FractalSelfAttention(8, 2, near=4, cells=2, causal=True).eval()
    b, n = torch.export.Dim("b", min=2), torch.export.Dim("n", min=2)
    x, padding = torch.randn(3, 50, 8), torch.arange(50) >= torch.tensor([[50], [40], [9]])
    program = torch.export.export(
        module,
        (x,),
        dict(key_padding_mask=padding),
        dynamic_shapes=dict(query={0: b, 1: n}, key_padding_mask={0: b, 1: n}),
        strict=strict,
    )
    for batch, length in ((3, 50), (2, 7), (5, 300)):
        x = torch.randn(batch, length, 8)
        padding = torch.arange(length) >= torch.arange(2, batch + 2)[:, None]
        got, _ = program.module()(x, key_padding_mask=padding)
        torch.testing.assert_close(got, module(x, key_padding_mask=padding)[0])


def test_the_operator_is_registered_as_torch_asks():
    q, k, v = (x.requires_grad_() for x in draw(2, 1, 10, 3))
    padding = torch.arange(10) >= torch.tensor([[10], [6]])
    for mask in (None, padding):
        geometry = (k.detach(), mask, 4, 2, "tree")
        torch.library.opcheck(torch.ops.fractal_lib.self_attention_order.default, geometry)
        for order in (None, content_order(*geometry)):
            searched = (q.detach(), k.detach(), mask, order, 4, 2, True, None, 3)
            torch.library.opcheck(torch.ops.fractal_lib.self_attention_choice.default, searched)
            for chosen in (None, torch.ops.fractal_lib.self_attention_choice(*searched)):
                torch.library.opcheck(
                    torch.ops.fractal_lib.self_attention.default,
                    (q, k, v, mask, order, chosen, 4, 2, True, None),
                )
    operator = torch.ops.fractal_lib.self_attention
    x = draw(3, 2, 1, 10, 3)
    call = vmap(lambda *x: operator(*x, padding, None, None, 4, 2, False, 0.5))
    with torch.no_grad():
        expected = torch.stack(
            [operator(*(y[i] for y in x), padding, None, None, 4, 2, False, 0.5) for i in range(3)]
        )
        torch.testing.assert_close(call(*x), expected, **close)


OPENED = {**GEOMETRY, "order": "tree", "opened": 3}


def opened_loss(q, k, v):
    return fractal_self_attention(q, k, v, **OPENED).square().sum()


def test_opened_keys_under_every_transform():
    """Which keys are opened is a constant; all else is as without."""
    q, k, v = draw(2, 1, 30, 2)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(opened_loss(*leaves), leaves)
    each = vmap(grad(lambda *x: opened_loss(*(y[None] for y in x)), (0, 1, 2)))(q, k, v)
    for a, b in zip(each, expected, strict=True):
        torch.testing.assert_close(a, b, **close)
    inputs = [x[:1].clone().requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(
        lambda *x: fractal_self_attention(*x, **OPENED), inputs, check_forward_ad=True
    )
    q, k, v = (x[:1, :, :20, :1] for x in (q, k, v))

    def of(q):
        return opened_loss(q, k, v)

    exact = torch.autograd.functional.hessian(of, q)
    for form in (hessian(of), jacrev(jacrev(of)), jacfwd(jacfwd(of))):
        torch.testing.assert_close(form(q), exact, **close)


@pytest.mark.filterwarnings("default")
def test_one_graph_for_every_length_with_opened_keys():
    torch.compiler.reset()
    compiled = torch.compile(opened_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for n in (5, 9, 33, 129):
        leaves = [x.requires_grad_() for x in draw(2, 1, n, 3, seed=n)]
        got = torch.autograd.grad(compiled(*leaves), leaves)
        expected = torch.autograd.grad(opened_loss(*leaves), leaves)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, **close)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
