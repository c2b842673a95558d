"""A pyramid over several processes is the pyramid of one, and what it sends is counted."""

import pytest
import torch
from processes import run, stretches

from fractal_lib import FractalAttention
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.distributed import ShardedPyramid, counted

# (rows, whether some are missing, causal, the first rank has few)
CASES = [
    (1, False, False, False),
    (37, True, False, True),
    (37, False, True, False),
    (1000, False, False, True),
    (1000, True, False, False),
]


def attention(causal):
    made = FractalAttention(source="pyramid", causal=causal).double()
    with torch.no_grad():
        made.level_logits.copy_(torch.linspace(0, 1, 32).sin())
    return made


def data(n, gaps, causal):
    generator = torch.Generator().manual_seed(n)
    values = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    observed = torch.rand(2, n, generator=generator) < 0.7 if gaps else None
    t = torch.rand(40, generator=generator, dtype=torch.float64)
    t[:2] = torch.tensor([0.0, 1.0])
    rows = torch.arange(n).double() / max(n - 1, 1)  # rows and bounds themselves
    t = torch.cat([t, rows[:: max(1, n // 20)]])
    return values, observed, (t.clamp(min=0.05) if causal else t)


def one_process(n, gaps, causal):
    values, observed, t = data(n, gaps, causal)
    values.requires_grad_()
    ladder = attention(causal)
    out = ladder(values, t.expand(2, -1), observed)
    out.square().sum().backward()
    return out.detach(), values.grad, ladder.level_logits.grad


def on_rank(rank, size, cases):
    results = []
    for n, gaps, causal, uneven in cases:
        values, observed, t = data(n, gaps, causal)
        mine = stretches(n, size, uneven)[rank]
        own = values[:, mine].clone().requires_grad_()
        ladder = attention(causal)
        there = None if observed is None else observed[:, mine]
        pyramid = ShardedPyramid(own, there, halo=5 if causal else 3)
        answered = pyramid.mine(t)
        out = ladder(pyramid, t[answered].expand(2, -1))
        out.square().sum().backward()
        results.append((answered, out.detach(), own.grad, ladder.level_logits.grad))
    return results


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_values_and_gradients_are_those_of_one_process(tmp_path, size):
    cases = [case for case in CASES if case[0] >= size]
    found = run(size, tmp_path, on_rank, cases)
    for place, (n, gaps, causal, _) in enumerate(cases):
        exact, of_values, of_logits = one_process(n, gaps, causal)
        parts = [rank[place] for rank in found]
        assert sum(answered.int() for answered, *_ in parts).eq(1).all()  # by its owner alone
        out = torch.zeros_like(exact)
        for answered, values, *_ in parts:
            out[:, answered] = values
        close = dict(rtol=0, atol=1e-12)
        torch.testing.assert_close(out, exact, **close)
        torch.testing.assert_close(torch.cat([p[2] for p in parts], 1), of_values, **close)
        torch.testing.assert_close(sum(p[3] for p in parts), of_logits, **close)


def sent(rank, size, lengths):
    found = []
    for n in lengths:
        with counted() as traffic:
            ShardedPyramid(torch.randn(1, n // size, 4))
        found.append((traffic.sent, traffic.calls))
    return found


def test_what_is_sent_grows_with_levels_and_not_with_rows(tmp_path):
    found = run(2, tmp_path, sent, [2**10, 2**13, 2**16])
    for first, second, third in found:
        assert first[1] == second[1] == third[1] == 3  # sizes, cells handed, cells fetched
        assert second[0] - first[0] == third[0] - second[0]  # three levels more each time
        halo = 16 * 3 * 17 + 8 * 7  # 3 nodes of 4 numbers on each of 17 levels, and sizes
        assert 0 < third[0] <= halo
        assert (second[0] - first[0]) % 16 == 0


def refused(rank, size):
    messages = []
    for rows, hidden in ((5, 2 + rank), (5 * rank, 2)):
        try:
            ShardedPyramid(torch.zeros(1, rows, hidden))
        except ValueError as error:
            messages.append(str(error))
    pyramid = ShardedPyramid(torch.zeros(1, 64, 1), halo=1)
    ladder = FractalAttention(source="pyramid")
    elsewhere = torch.tensor([[0.9 if rank == 0 else 0.1]])
    try:
        ladder(pyramid, elsewhere)
    except ValueError as error:
        messages.append(str(error))
    return messages


def test_what_cannot_be_is_said_on_every_rank(tmp_path):
    for messages in run(2, tmp_path, refused):
        differ, none, foreign = messages
        assert "ranks differ" in differ and "3" in differ
        assert none == "expected rows on every rank, got [0, 5]"
        assert "read t on the rank that owns it" in foreign


def test_alone_without_a_group_it_is_a_pyramid():
    values = torch.randn(2, 11, 3, dtype=torch.float64)
    observed = torch.arange(11) % 3 > 0
    sharded, whole = ShardedPyramid(values, observed), Pyramid(values, observed)
    torch.testing.assert_close(sharded.values, whole.values, rtol=0, atol=1e-14)
    assert sharded.counts.equal(whole.counts)
    with pytest.raises(ValueError, match="does not grow"):
        sharded.append(values)
    with pytest.raises(ValueError, match="only if no row is missing"):
        FractalAttention(source="pyramid", causal=True)(sharded, torch.tensor([[0.5], [0.5]]))
