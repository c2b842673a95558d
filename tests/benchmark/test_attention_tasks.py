"""The attention tasks count what is read, and tell errors, as slow definitions do."""

import math
from functools import partial

import pytest
import torch

from fractal_lib import fractal_self_attention
from fractal_lib.benchmark.attentions import (
    FAR,
    WINDOWS,
    answer_and_mass,
    exact,
    far,
    num_read,
    rows_of,
    trained,
    window_like,
)
from fractal_lib.benchmark.centroids import centroids
from fractal_lib.benchmark.key_kinds import KINDS, keys_of
from fractal_lib.benchmark.needle import asked, haystack
from fractal_lib.benchmark.trained_keys import table_bits
from fractal_lib.benchmark.transformer import Transformer, causal, turned


def drawn(n, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 1, 2, n, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("n", "near", "cells"), [(200, 8, 2), (97, 4, 4), (50, 4, 0), (9, 2, 1)])
def test_what_is_read_is_what_has_a_weight_of_its_own(n, near, cells, is_causal):
    """Keys in one cell share their weight; of different ones, at random, no two are equal."""
    q, k, _ = drawn(n)
    places = torch.eye(n, dtype=torch.float64).expand(1, 2, n, n)
    weights = fractal_self_attention(q, k, places, near=near, cells=cells, is_causal=is_causal)
    seen = [len({round(math.log(x), 11) for x in row if x}) for row in weights[0, 0].tolist()]
    assert num_read(n, near, cells, is_causal).tolist() == seen


def test_a_window_has_as_many_keys_as_it_is_told():
    for is_causal in (True, False):
        read = num_read(60, 4, 2, is_causal)
        mask = window_like(read, is_causal)
        assert torch.equal(mask.sum(1), read)
        assert mask.diagonal().all() and (not is_causal or not mask.triu(1).any())


@pytest.mark.parametrize("name", FAR)
def test_every_way_is_causal_and_near_keys_are_exact(name):
    q, k, v = drawn(64)
    attend = far(8, 2)[name]
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 40:] += 3
    v2[:, :, 40:] -= 5
    assert torch.equal(attend(q, k, v)[:, :, :40], attend(q, k2, v2)[:, :, :40])
    torch.testing.assert_close(attend(q, k, v)[:, :, :16], causal(q, k, v)[:, :, :16])


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_centroids_of_equal_keys_are_fewer():
    q, k, v = torch.randn(3, 1, 1, 40, 4, dtype=torch.float64)
    same = k[:, :, :1].expand_as(k)
    torch.testing.assert_close(centroids(q, same, v, near=4, count=8), causal(q, same, v))


def test_centroids_are_exact_where_each_key_has_its_own_and_do_not_leak():
    q, k, v = drawn(40)
    torch.testing.assert_close(centroids(q, k, v, near=4, count=40), causal(q, k, v))
    few = partial(centroids, near=4, count=3)
    changed = v.clone()
    changed[:, :, 30:] += 9
    assert torch.equal(few(q, k, v)[:, :, :30], few(q, k, changed)[:, :, :30])
    assert (few(q, k, v) - causal(q, k, v)).norm() > 1e-2


def test_centroids_are_exact_where_keys_are_equal():
    """Fewer different keys than centroids: no cluster is empty, and each holds one kind of key."""
    q, k, v = drawn(40)
    k = k[:, :, :3].repeat(1, 1, 14, 1)[:, :, :40]
    torch.testing.assert_close(centroids(q, k, v, near=4, count=9), causal(q, k, v))


def test_rows_tell_the_error_of_output_and_mass():
    q, k, v = drawn(96)
    rows = {row["method"]: row for row in rows_of(q, k, v, 8, 2, 5)}
    past = torch.ones(96, 96, dtype=torch.bool).tril()
    out, mass = exact(q, k, v, past)
    for name, attend in far(8, 2).items():
        off = attend(q, k, v) - out
        assert rows[name]["error"] == pytest.approx((off.norm() / out.norm()).item())
        late = off[:, :, 48:].norm() / out[:, :, 48:].norm()
        assert rows[name]["late"] == pytest.approx(late.item())
        used = answer_and_mass(attend, q, k, v)[1]
        assert rows[name]["mass"] == pytest.approx((used - mass).square().mean().sqrt().item())
    mean = v.cumsum(2) / torch.arange(1, 97)[:, None]
    error = ((mean - out).norm() / out.norm()).item()
    assert rows["mean of the values"]["error"] == pytest.approx(error)
    assert rows["window"]["reads"] == rows["cells by time"]["reads"] < 96
    assert rows["k-means"]["error"] < rows["window"]["error"]


def test_a_window_in_training_reads_no_more_than_cells_do():
    q, k, v = (x.float() for x in drawn(60))
    mask = window_like(num_read(60, 4, 2))
    torch.testing.assert_close(trained(4, 2)["window"](q, k, v), exact(q, k, v, mask)[0])
    assert list(trained(4, 2)) == ["full", *WINDOWS, *FAR]


def test_kinds_of_keys_differ_as_their_names_say():
    step = {}
    for kind in KINDS:
        _, k, _ = keys_of(kind, 512, 32, seed=0)
        step[kind] = ((k[:, :, 1:] - k[:, :, :-1]).norm() / k.norm()).item()
    assert step["smooth"] < step["random walk"] < 0.2 < 1 < step["random"]


def test_a_needle_has_the_weight_and_the_asked_are_exact():
    q, k, v, rows = haystack(4096, 64, seed=1)
    assert len(rows.unique()) == 16 and rows.min() >= 3072
    out = asked(q, k, v, rows)
    torch.testing.assert_close(out, causal(*(x.double() for x in (q, k, v)))[:, :, rows])
    places = (q[0, 0, rows] @ k[0, 0].T).argmax(-1)
    assert places.max() < 2048
    assert (out - v[:, :, places]).norm() < 0.1 * out.norm()


def test_tables_count_what_follows():
    """Of "ab" and "ac" at random, a byte of context leaves half a bit a byte."""
    generator = torch.Generator().manual_seed(0)
    text = b"".join((b"ab", b"ac")[x] for x in torch.randint(2, (4000,), generator=generator))
    assert table_bits(text, text, 0) == pytest.approx(1.5, abs=0.01)
    assert table_bits(text, text, 1) == pytest.approx(0.5, abs=0.02)
    assert table_bits(text, text, 2) == pytest.approx(0.5, abs=0.02)


def test_turned_rows_know_their_distance_and_a_transformer_does_not_look_ahead():
    q, k, _ = drawn(9, width=4)
    one, two = turned(q[:, :, :1].expand_as(q)), turned(k[:, :, :1].expand_as(k))
    logits = one @ two.mT
    torch.testing.assert_close(logits[..., 5, 3], logits[..., 8, 6])
    torch.manual_seed(0)
    model = Transformer(causal, torch.nn.Embedding(5, 8), 3, width=8, heads=2, layers=2)
    rows = torch.zeros(1, 9, dtype=torch.long)
    changed = rows.clone()
    changed[:, 6:] = 4
    assert torch.equal(model(rows)[:, :6], model(changed)[:, :6])
    q, k, v = model.qkv(rows)[:, 1]  # of the second block
    block = model.blocks[1]
    x = model.blocks[0](model.enter(rows))
    out = x + block.out(causal(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(model.leave(out + block.net(block.norms[1](out))), model(rows))
