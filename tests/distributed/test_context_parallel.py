"""Self-attention over several processes is that of one, and what it sends is counted."""

import pytest
import torch
from processes import run, stretches

import fractal_lib
from fractal_lib.distributed import counted, fractal_self_attention

# (positions, near, cells, padding, heads of the keys, the first rank has few)
CASES = [
    (53, 4, 2, True, 1, True),
    (300, 8, 4, False, 2, False),
    (331, 6, 2, True, 2, True),
    (90, 16, 0, False, 1, False),
]


def data(n, heads):
    generator = torch.Generator().manual_seed(n)

    def normal(heads, width):
        return torch.randn(2, heads, n, width, generator=generator, dtype=torch.float64)

    padding = torch.rand(2, n, generator=generator) < 0.3
    padding[1, :9] = True  # causal queries without any key
    return normal(2, 4), normal(heads, 4), normal(heads, 5), padding


def called(function, case, causal, rows=slice(None)):
    """The result, and the gradients of q, k and v."""
    n, near, cells, padded, heads, _ = case
    *tensors, padding = data(n, heads)
    q, k, v = (x[:, :, rows].clone().requires_grad_() for x in tensors)
    out = function(
        *(q, k, v),
        is_causal=causal,
        enable_gqa=True,
        near=near,
        cells=cells,
        key_padding_mask=padding[:, rows] if padded else None,
    )
    out.sin().sum().backward()
    return out.detach(), q.grad, k.grad, v.grad


def on_rank(rank, size):
    return [
        called(fractal_self_attention, case, causal, stretches(case[0], size, case[-1])[rank])
        for case in CASES
        for causal in (False, True)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_results_and_gradients_are_those_of_one_process(tmp_path, size):
    found = run(size, tmp_path, on_rank)
    place = 0
    for case in CASES:
        for causal in (False, True):
            exact = called(fractal_lib.fractal_self_attention, case, causal)
            for parts, whole in zip(
                zip(*(f[place] for f in found), strict=True), exact, strict=True
            ):
                torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=0, atol=1e-12)
            place += 1


def leak(rank, size, changed):
    """The results before and after a key and a value of another rank change."""
    q, k, v, _ = data(300, 2)
    mine = stretches(300, size)[rank]
    results = []
    for factor in (1.0, 100.0):
        k[:, :, changed] *= factor
        v[:, :, changed] *= factor
        some = (x[:, :, mine] for x in (q, k, v))
        results.append(fractal_self_attention(*some, is_causal=True, near=8, cells=4))
    return results


def test_nothing_leaks_from_later_positions(tmp_path):
    changed = 170  # of the second of three ranks
    found = zip(*run(3, tmp_path, leak, changed), strict=True)
    before, after = (torch.cat(part, 2) for part in found)
    assert before[:, :, :changed].equal(after[:, :, :changed])
    assert not before[:, :, changed:].isclose(after[:, :, changed:]).all(-1).any()


def sent(rank, size, lengths):
    found = []
    for n in lengths:
        q, k, v = torch.randn(3, 1, 1, n // size, 4).requires_grad_()
        with counted() as forward:
            out = fractal_self_attention(q, k, v, near=16, cells=4)
        with counted() as backward:
            out.sum().backward()
        found.append((forward.sent, backward.sent, backward.calls))
    return found


def test_what_is_sent_grows_with_scales_and_not_with_positions(tmp_path):
    found = run(2, tmp_path, sent, [2**9, 2**11, 2**13])
    for rank in found:
        forward = [one[0] for one in rank]
        assert forward[1] - forward[0] == forward[2] - forward[1]  # two scales more each time
        rows = 16 + 3 * 4 * 9  # a block of keys, three units of four cells on each of 9 scales
        assert forward[2] <= 4 * 8 * rows + 8 * 11
    # the derivative comes back by the ways the cells went
    for place in range(3):
        assert sum(rank[place][1] for rank in found) + 2 * 88 == sum(r[place][0] for r in found)
    assert {one[2] for rank in found for one in rank} == {2}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"order": "tree"}, "keys of a whole far block in one place"),
        ({"opened": 4}, "opened must be 0"),
        ({"return_bound": True}, "return_bound False"),
        ({"attn_mask": torch.zeros(9, 9)}, "attn_mask must be None"),
        ({"dropout_p": 0.1}, "dropout_p must be 0"),
        ({"near": 6, "cells": 4}, "multiple of cells"),
        ({"key_padding_mask": torch.zeros(1, 8, dtype=torch.bool)}, "key_padding_mask must have"),
    ],
)
def test_what_cannot_be_had_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        fractal_self_attention(*torch.randn(3, 1, 1, 9, 4), **settings)


def differing(rank, size):
    try:
        fractal_self_attention(*torch.randn(3, 1, 1, 9, 4), is_causal=rank == 1)
    except ValueError as error:
        return str(error)
    return "nothing"


def test_ranks_that_differ_are_told_so(tmp_path):
    for message in run(2, tmp_path, differing):
        assert "ranks differ in sizes, types or settings" in message
