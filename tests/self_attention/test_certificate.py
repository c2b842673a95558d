"""The bound of a result's error: never violated, sharp, and violated by faults that are planted."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as full

from fractal_lib import fractal_self_attention
from fractal_lib.reference import self_attention_bound
from fractal_lib.self_attention import autograd, certificate

SHAPES = [(2, 1), (4, 2), (4, 4), (6, 3), (8, 1)]


def case(seed):
    """q, k, v and the settings of a case, from level logits to such that overflow."""
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(20, 60, (1,), generator=generator))
    q, k, v = torch.randn(3, 4, n, 3, generator=generator, dtype=torch.float64)
    size = torch.logspace(-3, 3, 4, dtype=torch.float64)[:, None, None]  # of each head
    if seed % 3 == 0:  # keys that are alike nearby
        k, v = k.cumsum(1) / 5, v.cumsum(1) / 5
    if seed % 7 == 0:  # values alike but for a few
        v = torch.where(v > 1.5, v, 0)
    near, cells = SHAPES[seed % len(SHAPES)]
    settings = dict(near=near, cells=cells, is_causal=seed % 2 == 0)
    settings |= dict(order=("time", "tree", "hilbert")[seed % 3], opened=(0, 0, 4)[seed // 2 % 3])
    return (size * q)[None], k[None], v[None], settings


def excess(seed):
    """(queries,): the error as a part of the bound; rounding aside."""
    q, k, v, settings = case(seed)
    out, bound = fractal_self_attention(q, k, v, **settings, return_bound=True)
    assert bound.isfinite().all()
    assert bound.shape == out.shape[:-1]
    error = (out - full(q, k, v, is_causal=settings["is_causal"])).norm(dim=-1)
    return (error - 1e-12).clamp(min=0).div(bound.clamp(min=1e-12)).flatten()


def test_no_case_of_a_thousand_violates_it():
    parts = torch.cat([excess(seed) for seed in range(250)])  # of 4 heads
    assert parts.max() <= 1
    assert parts.max() > 0.95  # sharp somewhere
    assert parts.median() < 0.9


def without_rho(share, delta, reach, spread, away):
    return share, delta, reach, 0 * spread, away


def half_of_half(share, delta, reach, spread, away):
    return share, torch.minimum(delta, reach.square() / 4), reach, spread, away


def without_distance(share, delta, reach, spread, away):
    return share, delta, reach, spread, 0 * away


@pytest.mark.parametrize("fault", [without_rho, half_of_half, without_distance])
def test_a_planted_fault_violates_it(fault, monkeypatch):
    terms = certificate._terms
    monkeypatch.setattr(certificate, "_terms", lambda *parts: terms(*fault(*parts)))
    assert max(excess(seed).max().item() for seed in range(30)) > 1


@pytest.mark.parametrize("opened", [0, 3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", ["time", "tree"])
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_that_of_the_specification(padded, order, causal, opened):
    near, cells, n = 4, 2, 41
    q, k, v, _ = case(3)
    q, k, v = (x[:, :3].repeat(1, 1, 3, 1)[:, :, :n] for x in (q, k, v))
    padding = torch.arange(n)[None] % 7 == 2 if padded else None
    settings = dict(near=near, cells=cells, is_causal=causal, order=order, opened=opened)
    _, bound = fractal_self_attention(
        q, k, v, **settings, key_padding_mask=padding, return_bound=True
    )
    keys = k if padding is None else k.masked_fill(padding[:, None, :, None], 0)
    tree = autograd.order_of(keys, padding, near, cells, order)
    geometry = autograd.Settings(near, cells, causal, None)
    chosen = autograd.choice_of(q, keys, padding, tree, geometry, opened)
    expected = self_attention_bound(q, k, v, near, cells, causal, padding, None, order, chosen)
    # distances of some 1e-8 are lost in the difference of squares, and made up for
    torch.testing.assert_close(bound, expected, rtol=1e-6, atol=1e-6)


def test_it_is_zero_where_all_is_exact():
    q, k, v = torch.randn(3, 2, 1, 30, 4, dtype=torch.float64)
    out, bound = fractal_self_attention(q, k, v, return_bound=True)  # two blocks hold all
    assert bound.eq(0).all()
    padding = torch.ones(2, 200, dtype=torch.bool)
    q, k, v = torch.randn(3, 2, 1, 200, 4)
    settings = dict(near=8, cells=2, key_padding_mask=padding, return_bound=True)
    assert fractal_self_attention(q, k, v, **settings)[1].eq(0).all()


def test_half_precision_and_gradients():
    q, k, v = (x.bfloat16().requires_grad_() for x in torch.randn(3, 1, 2, 200, 8))
    out, bound = fractal_self_attention(q, k, v, near=8, cells=2, return_bound=True)
    assert (out.dtype, bound.dtype) == (torch.bfloat16, torch.float32)
    assert not bound.requires_grad
    error = (out - full(*(x.double() for x in (q, k, v)))).norm(dim=-1)
    assert (error <= bound + 0.01 * out.norm(dim=-1)).all()  # the result's rounding is extra
