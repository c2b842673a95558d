"""The curves as masks: pair by pair against their definitions, in FlexAttention against full
attention, and counted.
"""

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import and_masks, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as full

from fractal_lib import DragonCurveAttention, JuliaAttention
from fractal_lib.attention import PATTERNS
from fractal_lib.curves.hilbert import hilbert_permutation, touching_permutation
from fractal_lib.self_attention.masks import (
    block_sparsity,
    cantor_mask_mod,
    dragon_mask_mod,
    hilbert_mask_mod,
    julia_mask_mod,
    pattern_masks,
)

MASKS = {
    "cantor": lambda n: cantor_mask_mod(n),
    "cantor, grains": lambda n: cantor_mask_mod(n, grain=16),
    "dragon": lambda n: dragon_mask_mod(),
    "hilbert": lambda n: hilbert_mask_mod(grid=(n // 10, 10), window=3),
    "julia": lambda n: julia_mask_mod(n, c=-4.0),
    "julia, grains": lambda n: julia_mask_mod(n, grain=7),
}


def dense(mask_mod, n):
    """(n, n) bool: all pairs, by the indices themselves."""
    zero = torch.tensor(0)
    return mask_mod(zero, zero, torch.arange(n)[:, None], torch.arange(n))


def causal(b, h, q, kv):
    return q >= kv


@pytest.mark.parametrize("grain", [1, 3, 128])
@pytest.mark.parametrize("n", [1, 2, 63, 100, 244])
def test_cantor_wants_distances_without_a_digit_1(n, grain):
    def digits(d):
        return {d % 3} | digits(d // 3) if d else set()

    wanted = torch.tensor(
        [[1 not in digits(abs(q - k) // grain) for k in range(n)] for q in range(n)]
    )
    assert torch.equal(dense(cantor_mask_mod(n, grain), n), wanted)


@pytest.mark.parametrize("c", [-2.5, -6.0])
@pytest.mark.parametrize("n", [1, 2, 63, 100, 256])
def test_julia_wants_the_offsets_of_its_attention(n, c):
    offsets = set(JuliaAttention(c).offsets(n).tolist())
    wanted = torch.tensor([[q - k in offsets for k in range(n)] for q in range(n)])
    assert torch.equal(dense(julia_mask_mod(n, c), n), wanted)
    coarse = dense(julia_mask_mod(4 * n, c, grain=4), 4 * n)
    distance = (torch.arange(4 * n)[:, None] - torch.arange(4 * n)).abs() // 4
    assert torch.equal(coarse, wanted[0][distance])


@pytest.mark.parametrize("n", [1, 2, 63, 100, 256])
def test_dragon_wants_the_creases_that_its_attention_weighs(n):
    reads = (
        DragonCurveAttention().double().reads(torch.linspace(0, 1, n, dtype=torch.float64)[None], n)
    )
    weight = torch.zeros(1, n, n, dtype=torch.float64).scatter_add(2, reads.indices, reads.weights)[
        0
    ]
    # the spline is 0 from two strides on
    assert torch.equal(dense(dragon_mask_mod(), n), weight > 1e-12)
    fewer = dense(dragon_mask_mod(reach=1), n)
    assert (dense(dragon_mask_mod(), n) | ~fewer).all()


@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize("grid", [(8, 8), (5, 9), (1, 6)])
def test_hilbert_wants_a_square_in_the_plane(grid, window):
    n, order = grid[0] * grid[1], touching_permutation(*grid)
    row, column = order // grid[1], order % grid[1]
    near = [(x[:, None] - x).abs() <= window // 2 for x in (row, column)]
    assert torch.equal(dense(hilbert_mask_mod(grid=grid, window=window), n), near[0] & near[1])


def test_an_order_is_the_square_grid_along_the_curve():
    n = 4**3
    order = hilbert_permutation(8, 8)
    assert torch.equal(order, touching_permutation(8, 8))
    by_order, by_grid = hilbert_mask_mod(order=3, window=5), hilbert_mask_mod(grid=(8, 8), window=5)
    assert torch.equal(dense(by_order, n), dense(by_grid, n))


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_every_mask_makes_a_block_mask_and_its_sparsity_is_counted(make):
    n, block = 300, 64
    mask_mod = make(n)
    every = torch.zeros(320, 320, dtype=torch.bool)
    every[:n, :n] = dense(mask_mod, n)
    wanted = every.view(5, block, 5, block).any(3).any(1)
    mask = create_block_mask(mask_mod, None, None, n, n, "cpu", block)
    assert torch.equal(mask.to_dense()[0, 0].bool(), wanted)
    assert block_sparsity(mask_mod, n, block) == 1 - int(wanted.sum()) / 25
    assert every[:n, :n].diagonal().all()  # no query is left without a key


# which takes half a minute
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_flex_attention_reads_what_the_mask_wants(make):
    n = 250
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, n, 16, generator=generator).unbind()
    mask_mod = and_masks(make(n), causal)
    out = flex_attention(q, k, v, block_mask=create_block_mask(mask_mod, None, None, n, n, "cpu"))
    torch.testing.assert_close(out, full(q, k, v, attn_mask=dense(mask_mod, n)))


@pytest.mark.parametrize("n", [1, 2, 63, 100])
def test_every_pattern_has_a_mask_of_what_it_reads(n):
    """Exactly, or by the function of its own, which has tests of its own."""
    masks = pattern_masks(n)
    assert list(masks) == list(PATTERNS)
    order = next(p for p in range(1, 9) if 4**p >= n)
    own = dict(dragon=dragon_mask_mod(), hilbert=hilbert_mask_mod(order), julia=julia_mask_mod(n))
    t = torch.arange(n, dtype=torch.float64)[None] / max(1, n - 1)
    values = torch.eye(n, dtype=torch.float64)[None]
    for name, mask_mod in masks.items():
        attention = PATTERNS[name].make()
        with torch.no_grad():
            weights = attention(values, t)[0]
        wanted = dense(mask_mod, n)
        if name not in own:
            assert torch.equal(wanted, weights.abs() > 1e-30), name
        else:
            assert torch.equal(wanted, dense(own[name], n)), name
    assert n < 63 or not dense(masks["window"], n).all()


def test_a_new_pattern_has_a_mask(monkeypatch):
    monkeypatch.setitem(PATTERNS, "another", PATTERNS["window"])
    masks = pattern_masks(np.int64(50))
    assert torch.equal(dense(masks["another"], 50), dense(masks["window"], 50))


def test_sparsity_grows_with_n_and_what_is_asked_stays_as_it_was():
    shares = [block_sparsity(dragon_mask_mod(), n, block=16) for n in (128, 512, 2048)]
    assert shares[0] < shares[1] < shares[2]
    assert block_sparsity(causal, 100, 16) == 1 - (7 * 8 // 2) / 49
    assert block_sparsity(lambda b, h, q, kv: q * kv >= 0, 5) == 0


BAD = {
    "cantor of nothing": (lambda: cantor_mask_mod(0), "n=0"),
    "cantor without grain": (lambda: cantor_mask_mod(9, grain=0), "grain=0"),
    "julia of nothing": (lambda: julia_mask_mod(0), "n=0"),
    "julia too dense": (lambda: julia_mask_mod(9, c=-1.0), "below -2"),
    "dragon without reach": (lambda: dragon_mask_mod(0), "got 0"),
    "hilbert of nothing": (lambda: hilbert_mask_mod(), "either order or grid"),
    "hilbert of both": (lambda: hilbert_mask_mod(2, (4, 4)), "either order or grid"),
    "hilbert with an even window": (lambda: hilbert_mask_mod(2, window=4), "odd"),
    "hilbert of order 0": (lambda: hilbert_mask_mod(0), "order"),
    "masks of nothing": (lambda: pattern_masks(0), "n of at least 1, got 0"),
    "sparsity of nothing": (lambda: block_sparsity(causal, 0), "n=0"),
    "sparsity without blocks": (lambda: block_sparsity(causal, 9, 0), "block=0"),
}


@pytest.mark.parametrize(("call", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_are_a_clear_error(call, words):
    with pytest.raises(ValueError, match=words):
        call()
