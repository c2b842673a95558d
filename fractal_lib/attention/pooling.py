"""The arithmetic of a `Pyramid`: rows pooled by two, all at once or a few more at the end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fractal_lib.attention.tree import Tree

__all__ = [
    "level_zero",
    "pool_means",
    "pool_moments",
    "pool_tables",
    "renew_means",
    "renew_tables",
    "repack",
]


def level_zero(values, observed, times, n, binned):
    """Means, first moments, counts and centres of level 0: (B, n, H) twice, (B or 1, n) twice."""
    observed = (
        values.new_ones(1, values.shape[1], dtype=torch.bool)
        if observed is None
        else torch.atleast_2d(observed)
    )
    values = torch.where(observed.unsqueeze(-1), values, 0)
    if times is None:
        centroid = torch.arange(n, device=values.device, dtype=torch.float64).expand(observed.shape)
        return values, torch.zeros_like(values), observed.to(torch.int32), centroid
    place = torch.atleast_2d(times).double() * (n - 1)  # (B or 1, N)
    place, observed = torch.broadcast_tensors(place, observed)
    if not binned:
        return values, None, observed.to(torch.int32), place
    bin_of = (place + 0.5).floor().long().clamp(0, n - 1)
    count = place.new_zeros(place.shape[0], n).scatter_add(1, bin_of, observed.double())
    centroid = place.new_zeros(place.shape[0], n).scatter_add(
        1, bin_of, place * observed
    ) / count.clamp(min=1)
    lag = (place - centroid.gather(1, bin_of)).unsqueeze(-1).to(values.dtype)
    share = count.clamp(min=1).unsqueeze(-1).to(values.dtype)
    bin_of = bin_of.unsqueeze(-1).expand_as(values)
    mean, moment = (
        values.new_zeros(values.shape[0], n, values.shape[2]).scatter_add(1, bin_of, value) / share
        for value in (values, lag * values)
    )
    return mean, moment, count.to(torch.int32), centroid


def pool_tables(count: Tensor, centroid: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Counts and mean positions of every level from those of level 0, packed (B or 1, P)."""
    counts, places = [count], [count * centroid]  # sums of positions pool by adding
    for _ in range(1, levels):
        counts.append(_add_pairs(counts[-1]))
        places.append(_add_pairs(places[-1]))
    counts, places = torch.cat(counts, 1), torch.cat(places, 1)
    return counts, places / counts.clamp(min=1)


def _add_pairs(x: Tensor) -> Tensor:
    left, right = x[:, ::2], x[:, 1::2]
    return left + nn.functional.pad(right, (0, left.shape[1] - right.shape[1]))


def _right_share(tree: Tree, level: int, start: int = 0) -> tuple[Tensor | float, Tensor | float]:
    """Share of the right child in each parent of a level from ``start`` on: for all but the last
    parent, and for the last.
    """
    if tree.counts is None:
        in_last = tree.n - (tree.sizes[level] - 1) * 2**level
        return 0.5, max(in_last - 2 ** (level - 1), 0) / in_last
    child, parent = _family(tree.counts, tree, level, start)
    right = nn.functional.pad(child, (0, child.shape[1] % 2))[:, 1::2]
    share = (right.double() / parent.clamp(min=1)).unsqueeze(-1)  # (B or 1, m, 1)
    return share[:, :-1], share[:, -1:]


def pool_means(values: Tensor, tree: Tree) -> Tensor:
    """Means of every level of a tree without spare slots, packed (B, P, H)."""
    if tree.levels == 1:
        return values
    sizes = tree.sizes
    if not values.requires_grad:  # in place needs no second copy of the packing
        packed = values.new_empty(values.shape[0], sum(sizes), values.shape[2])
        packed.narrow(1, 0, sizes[0]).copy_(values)
        for level in range(1, tree.levels):
            renew_means(packed, tree, level)
        return packed
    levels = [values]  # autograd prefers one cat to many in-place slices
    for level in range(1, tree.levels):
        body, last = (_as(share, values) for share in _right_share(tree, level))
        left, right = levels[-1][:, ::2], levels[-1][:, 1::2]
        whole = sizes[level] - 1
        body = torch.lerp(left[:, :whole], right[:, :whole], body)
        levels.append(torch.cat([body, _last(left[:, whole:], right[:, whole:], last)], 1))
    return torch.cat(levels, 1)


def renew_means(packed: Tensor, tree: Tree, level: int, start: int = 0) -> None:
    """The means of a level's nodes from ``start`` on, of those below, written in place."""
    body, last = (_as(share, packed) for share in _right_share(tree, level, start))
    below, out = _family(packed, tree, level, start)
    left, right = below[:, ::2], below[:, 1::2]
    whole = out.shape[1] - 1
    out[:, :whole].copy_(right[:, :whole]).sub_(left[:, :whole]).mul_(body).add_(left[:, :whole])
    out[:, whole:].copy_(_last(left[:, whole:], right[:, whole:], last))


def renew_tables(counts: Tensor, centroids: Tensor, tree: Tree, level: int, start: int) -> None:
    """The same of counts and centroids, for rows that stand at their numbers."""
    (below, count), (places, centroid) = (
        _family(table, tree, level, start) for table in (counts, centroids)
    )
    # sums of whole numbers: rounded, they are exact
    places = _add_pairs((below * places).round())
    count.copy_(_add_pairs(below))
    centroid.copy_(places / count.clamp(min=1))


def repack(packed: Tensor, old: Tree, new: Tree) -> Tensor:
    """(B, P, ...) in the slots of another tree of the same rows or more; 0 where nothing is yet."""
    out = packed.new_zeros(packed.shape[0], sum(new.slots), *packed.shape[2:])
    for level in range(old.levels):
        size = old.sizes[level]
        to, of = (tree.offsets[level] for tree in (new, old))
        out.narrow(1, to, size).copy_(packed.narrow(1, of, size))
    return out


def _family(packed: Tensor, tree: Tree, level: int, start: int) -> tuple[Tensor, Tensor]:
    """The nodes of a level from ``start`` on, after their children."""
    sizes, offsets = tree.sizes, tree.offsets
    below, k = 2 * start, level - 1
    return (
        packed.narrow(1, offsets[k] + below, sizes[k] - below),
        packed.narrow(1, offsets[level] + start, sizes[level] - start),
    )


def _last(left: Tensor, right: Tensor, share: Tensor | float) -> Tensor:
    """The mean of the last node of a level, whose right child may not be there."""
    return torch.lerp(left, right, share) if right.shape[1] else left


def _as(share: Tensor | float, values: Tensor) -> Tensor | float:
    return share.to(values.dtype) if isinstance(share, Tensor) else share


def pool_moments(means: Tensor, moment: Tensor, tree: Tree) -> Tensor:
    """Means of (position - centroid) * value, in widths of the node, of every level, packed (B, P,
    H).
    """
    levels = [moment]
    for k in range(1, tree.levels):
        node = torch.arange(2 * tree.sizes[k], device=means.device).expand(means.shape[0], -1)
        index, count = tree.lookup(k - 1, node)  # both children of each parent
        share = count / tree.lookup(k, node // 2)[1].clamp(min=1)
        shift = (tree.centroid(k - 1, node) - tree.centroid(k, node // 2)) / 2**k
        index = index - sum(tree.sizes[: k - 1])
        mean = _along_rows(means.narrow(1, sum(tree.sizes[: k - 1]), tree.sizes[k - 1]), index)
        below = _along_rows(levels[-1], index)
        parts = share.unsqueeze(-1).to(means.dtype) * (
            below / 2 + shift.unsqueeze(-1).to(means.dtype) * mean
        )
        levels.append(parts.unflatten(1, (-1, 2)).sum(2))
    return torch.cat(levels, 1)


def _along_rows(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[2]))
