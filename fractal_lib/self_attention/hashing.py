"""Keys that point where a query points, found by hashing (chapter ``self_attention/opening``)."""

import functools

import numpy as np
import torch
from torch import Tensor

from fractal_lib.self_attention.layout import Layout

__all__ = ["collisions"]

ROUNDS, WINDOW = 4, 16  # tables, and the keys of a bucket that are looked at in each
# keys in a bucket in the mean: directions are not all alike, and a full bucket hides what is old
BUCKET, MOST_DIGITS = 2, 4


def collisions(q: Tensor, k: Tensor, valid: Tensor, layout: Layout) -> Tensor:
    """For each query the far keys of its bucket that are nearest in time, for several hashes.

    A hash is a few digits, each of which says which axis, to either side, is nearest after a random
    rotation; the rotations are constants. Keys count from the mean of the keys so far, since a
    part that all have in common changes no weight; so neither a key's bucket nor what a causal
    query finds there depends on the future.

    Args:
        q: (G, N, D); k: (G, N, D) of the same dtype, at least float32.
        valid: (A, N) bool, False for padding; A divides G.
        layout: a `Layout`.

    Returns:
        (G, N, `ROUNDS` `WINDOW`) int32, -1 for none; a key may be there several times.

    Complexity: O(N (D min(D, sqrt(N)) + log N)) a round, for two digits. Source: Andoni et al.,
    Practical and optimal LSH for angular distance (2015), for the hash; Kitaev et al., Reformer
    (2020), for sorting by it; chapter ``self_attention/opening``.
    """
    groups, n, _ = k.shape
    position = torch.arange(n, device=k.device)
    k = k - k.cumsum(1) / (position + layout.near).unsqueeze(1)
    repeats = groups // max(1, valid.shape[0])
    valid = valid.repeat_interleave(repeats, 0)
    block = position // layout.near * layout.near
    before, after = (block - layout.near).clamp(min=0), (block + 2 * layout.near).clamp(max=n)
    found = []
    for number in range(ROUNDS):
        # where nothing collides: one bucket beyond those of the queries
        buckets = [_bucket(x, number) * n for x in (q, k)]
        key = torch.where(valid, buckets[1], torch.iinfo(torch.int64).max // 2) + position
        key, order = key.sort(-1)
        ends = [torch.searchsorted(key, buckets[0] + x) for x in (0, before, after, n)]
        half = WINDOW if layout.causal else WINDOW // 2
        step = torch.arange(half, device=k.device)
        slots = [(ends[1].unsqueeze(-1) - 1 - step, ends[0].unsqueeze(-1), True)]
        if not layout.causal:
            slots.append((ends[2].unsqueeze(-1) + step, ends[3].unsqueeze(-1), False))
        for slot, end, is_past in slots:
            there = slot >= end if is_past else slot < end
            at = order.gather(1, slot.clamp(0, n - 1).flatten(1)).view_as(slot)
            found.append(torch.where(there, at, -1).int())
    return torch.cat(found, -1)


def _bucket(x: Tensor, number: int) -> Tensor:
    """(G, N, D) -> (G, N) int64: which bucket a hash puts each row into."""
    n, width = x.shape[1:]
    wanted, digits = max(1, n / BUCKET), 2
    while digits < MOST_DIGITS and (2 * width) ** digits < wanted:
        digits += 1
    axes = min(width, max(1, round(wanted ** (1 / digits) / 2)))
    bucket = torch.zeros((), dtype=torch.int64, device=x.device)
    for digit in range(digits):
        rotation = torch.from_numpy(_rotation(width, MOST_DIGITS * number + digit))[:, :axes].to(x)
        along = x @ rotation  # (G, N, axes)
        bucket = 2 * axes * bucket + torch.cat([along, -along], -1).argmax(-1)
    return bucket


@functools.cache
def _rotation(width: int, number: int) -> np.ndarray:
    """A random rotation of so many dimensions, always the same."""
    normal = np.random.default_rng([width, number]).standard_normal((width, width))
    return np.linalg.qr(normal)[0]
