"""The bound of a result's error: never violated, sharp, and violated by faults that are planted."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as full

from fractal_lib import fractal_self_attention
from fractal_lib.reference import (
    self_attention_bound,
    self_attention_groups,
    self_attention_reads,
)
from fractal_lib.self_attention import certificate, choices, prepared

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
    tree = choices.order_of(keys, padding, near, cells, order)
    geometry = prepared.Settings(near, cells, causal, None)
    chosen = choices.choice_of(q, keys, padding, tree, geometry, opened)
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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", ["time", "tree"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_tolerance_is_met_or_said_not_to_be(padded, order, causal):
    q, k, v = torch.randn(3, 2, 2, 70, 3, dtype=torch.float64)
    q = 0.3 * q
    settings = dict(near=4, cells=2, is_causal=causal, order=order, return_bound=True)
    padding = (torch.arange(70) % 5 == 1)[None].expand(2, -1) if padded else None
    settings |= dict(key_padding_mask=padding)
    mask = None if padding is None else ~padding[:, None, None]
    if mask is not None and causal:
        mask = mask & torch.ones(70, 70, dtype=torch.bool).tril()
    exact = full(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
    before = fractal_self_attention(q, k, v, **settings)[1]
    met = []
    for opened in (4, 24, 70):
        out, bound = fractal_self_attention(q, k, v, **settings, opened=opened, tol=0.5)
        assert ((out - exact).norm(dim=-1) <= bound + 1e-12).all()
        # a query that needs none opens none
        assert (bound[before <= 0.5] <= 0.5 + 1e-12).all()
        met.append((bound <= 0.5).float().mean())
    assert met[0] < met[1] < met[2] == 1  # all keys can be opened


def test_what_a_tolerance_opens_are_whole_cells_the_worst_first():
    near, cells, n = 4, 2, 40
    q, k, v = torch.randn(3, 1, 1, n, 3, dtype=torch.float64)
    settings = prepared.Settings(near, cells, True, None)
    tree = choices.order_of(k, None, near, cells, "tree")
    chosen = choices.choice_within(q, k, v, None, tree, settings, 15, 1e-9)[0, 0]
    out = fractal_self_attention(q, k, v, is_causal=True, near=near, cells=cells, order="tree")
    groups = self_attention_groups(k[0, 0], torch.ones(n) > 0, near, cells, "tree")
    q, k, v, out, some = q[0, 0] / 3**0.5, k[0, 0], v[0, 0], out[0, 0], 0
    for i in range(n):
        read = [groups[span] for span in self_attention_reads(i, n, near, cells, causal=True)]
        size = torch.tensor([float(len(group)) for group in read], dtype=torch.float64)
        mean, value = (torch.stack([x[group].mean(0) for group in read]) for x in (k, v))
        reach, rho = (
            torch.stack([(x[g] - m).norm(dim=1).max() for g, m in zip(read, middle, strict=True)])
            for x, middle in ((q[i].norm() * k, q[i].norm() * mean), (v, value))
        )
        delta = torch.minimum(reach, reach.square() / 2)
        wrong = 2 * rho * (reach / 2).tanh() * delta.exp()
        wrong += delta.expm1() * (value - out[i]).norm(dim=1)
        term = (mean @ q[i] + size.log()).softmax(0) * wrong
        own, total = set(), 0
        for at in term.argsort(descending=True).tolist():
            total += len(read[at])
            if total <= 15 and len(read[at]) > 1:
                own |= set(read[at])
        assert {j for j in chosen[i].tolist() if j >= 0} == own
        some += 0 < len(own) < size[size > 1].sum()
    assert some > 5  # queries that may open some of their cells, not all


@pytest.mark.parametrize(
    "options", [{}, {"opened": 4}, {"return_bound": True}, {"opened": 4, "tol": 0.0}]
)
def test_a_tolerance_that_cannot_be_had_is_refused(options):
    q, k, v = torch.randn(3, 1, 1, 40, 4)
    with pytest.raises(ValueError, match="tol"):
        fractal_self_attention(q, k, v, near=4, cells=2, **({"tol": 0.1} | options))


def test_a_tolerance_under_a_transform_is_refused():
    q, k, v = torch.randn(3, 2, 1, 1, 40, 4)
    options = dict(near=4, cells=2, opened=4, return_bound=True, tol=0.1)
    with pytest.raises(ValueError, match=r"torch\.func"):
        torch.func.vmap(lambda *x: fractal_self_attention(*x, **options)[0])(q, k, v)
