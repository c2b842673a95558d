"""Self-attention, query by query: the specification of `fractal_lib.self_attention`."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fractal_lib.curves.hilbert import hilbert_encode

__all__ = [
    "self_attention",
    "self_attention_bound",
    "self_attention_groups",
    "self_attention_reads",
]

TINY = torch.finfo(torch.float64).tiny


def self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    near: int = 64,
    cells: int = 8,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
    order: str = "time",
    chosen: Tensor | None = None,
) -> Tensor:
    """The specification of `fractal_lib.fractal_self_attention`, query by query.

    For each query: a list of what it reads, keys and cells; the mean key and the mean value of
    each; one dense softmax over all, in which a cell of c keys carries log(c). Which keys a cell
    holds is for `self_attention_groups` to say.

    Args:
        query, key: (B, heads, N, D); value: (B, heads, N, Dv); near, cells, scale, order: as there.
        causal: as ``is_causal`` there.
        key_padding_mask: None or (B, N) bool, True for padding.
        chosen: None or (B, heads, N, O) integers, the keys that each query opens (-1 for none):
            they are read one by one, and their cells stand for the keys that are left.

    Returns:
        (B, heads, N, Dv) float64, differentiable.

    Complexity: O(B heads N (near + cells log2(N / near))) operations of Python: for N of some
    hundreds. Source: chapter ``self_attention/near_in_content``.

    >>> q, k, v = torch.randn(3, 1, 1, 40, 4, dtype=torch.float64).unbind()
    >>> exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> torch.allclose(self_attention(q, k, v, near=20, cells=4), exact)
    True
    """
    reads = _reads(query, key, value, near, cells, causal, key_padding_mask, scale, order, chosen)
    return torch.stack([read.out for read in reads]).unflatten(0, query.shape[:3])


def self_attention_bound(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    near: int = 64,
    cells: int = 8,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
    order: str = "time",
    chosen: Tensor | None = None,
) -> Tensor:
    """The specification of ``return_bound``: how far each query's result can be from full
    attention, by what `fractal_lib.self_attention.certificate.error_bound` says.

    Args, complexity and source: as for `self_attention`; near must hold cells.

    >>> q, k, v = torch.randn(3, 1, 1, 40, 4, dtype=torch.float64).unbind()
    >>> exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> error = (self_attention(q, k, v, near=4, cells=2) - exact).norm(dim=-1)
    >>> bool((error <= self_attention_bound(q, k, v, near=4, cells=2)).all())
    True
    """
    found = []
    arguments = (near, cells, causal, key_padding_mask, scale, order, chosen)
    for q, k, v, groups, opened, weights, out in _reads(query, key, value, *arguments):
        bound, farthest = torch.zeros((), dtype=torch.float64), out.new_zeros(())
        for group, weight in zip(groups, weights, strict=False):  # opened keys behind: exact
            rest = [j for j in group if j not in opened]
            keys, values = k[group], v[group]
            r = (keys - keys.mean(0)).norm(dim=1).max() * q.norm()
            rho = (values - values.mean(0)).norm(dim=1).max()
            away, most = (values.mean(0) - out).norm(), r
            if len(rest) < len(group):
                away, most = away + rho, 2 * r
            farthest = max(farthest, away + rho)
            delta = min(most, r**2 / 2)
            bound = bound + weight * (
                delta.exp() * 2 * rho * (r / 2).tanh() + (delta.exp() - 1) * away
            )
        found.append(min(bound, farthest))
    return torch.stack(found).unflatten(0, query.shape[:3])


class _Read(NamedTuple):
    """What one query reads: its scaled row, keys and values of its head; the groups of keys that it
    reads, whole; keys among them that it opens; weights of what is left of each group (0 if
    nothing is), then of opened keys; and the result.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    groups: list[list[int]]
    opened: list[int]
    weights: Tensor
    out: Tensor


def _reads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    near: int,
    cells: int,
    causal: bool,
    key_padding_mask: Tensor | None,
    scale: float | None,
    order: str,
    chosen: Tensor | None,
) -> Iterator[_Read]:
    """For each sample, head and query."""
    query, key, value = query.double(), key.double(), value.double()
    batch, heads, n, width = query.shape
    factor = width**-0.5 if scale is None else scale
    for b in range(batch):
        there = torch.ones(n, dtype=torch.bool)
        if key_padding_mask is not None:
            there = ~key_padding_mask[b]
        for h in range(heads):
            q, k, v = factor * query[b, h], key[b, h], value[b, h]
            tree = self_attention_groups(k.detach(), there, near, cells, order)
            for i in range(n):
                groups = [tree[read] for read in _whole_reads(i, n, near, cells, causal)]
                groups = [group for group in groups if group]  # not what is all padding
                opened = [] if chosen is None else [j for j in chosen[b, h, i].tolist() if j >= 0]
                left = [[j for j in group if j not in opened] for group in groups]
                read = [rest for rest in left if rest] + [[j] for j in opened]
                weights = torch.zeros(len(groups) + len(opened), dtype=torch.float64)
                out = 0 * (q[i].sum() + k.sum() + v.sum(0))
                if read:
                    keys = torch.stack([k[rest].mean(0) for rest in read])
                    values = torch.stack([v[rest].mean(0) for rest in read])
                    counts = torch.tensor([len(rest) for rest in read], dtype=torch.float64)
                    share = (keys @ q[i] + counts.log()).softmax(0)
                    out = share @ values
                    places = [at for at, rest in enumerate(left + [[j] for j in opened]) if rest]
                    weights[places] = share.detach()
                yield _Read(q[i], k, v, groups, opened, weights, out)


def self_attention_reads(
    i: int, n: int, near: int, cells: int, causal: bool = False
) -> list[tuple[int, int]]:
    """What query i of n reads, as (start, stop) of keys: from the top of a binary tree down.

    A node of level l is ``near * 2**l`` keys wide. One that is not beside the query's own node of
    its level is read, as ``cells`` cells; else its two halves are looked at, and at level 0 its
    keys are read one by one. Without cells, far nodes are not read at all. When causal, what
    reaches beyond i is left out.

    >>> self_attention_reads(0, n=12, near=2, cells=1)
    [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6), (6, 8), (8, 12)]
    """
    return [(a, min(b, n)) for a, b in _whole_reads(i, n, near, cells, causal)]


def _whole_reads(i: int, n: int, near: int, cells: int, causal: bool) -> list[tuple[int, int]]:
    """`self_attention_reads`, of which the last may reach beyond n."""
    found = []

    def visit(level: int, index: int) -> None:
        width = near * 2**level
        start = index * width
        if start >= n:
            return
        if abs(index - i // width) > 1:  # far away
            if cells:
                cell = width // cells
                found.extend((at, at + cell) for at in range(start, start + width, cell))
        elif level:
            visit(level - 1, 2 * index)
            visit(level - 1, 2 * index + 1)
        else:
            found.extend((at, at + 1) for at in range(start, start + width))

    visit((n - 1).bit_length(), 0)
    return [(a, b) for a, b in found if a < n and (not causal or min(b, n) <= i + 1)]


def self_attention_groups(
    keys: Tensor, there: Tensor, near: int, cells: int, order: str = "time"
) -> dict[tuple[int, int], list[int]]:
    """Which keys each read (start, stop) stands for, as in `self_attention_reads`, but with a stop
    that may be beyond N.

    A read of a single key is that key. In the order of time a cell holds the keys from start to
    stop. In another order, the keys of ``near`` neighbours are put in order and cut into ``cells``
    cells; then the cells of two such units are put in order, by their mean keys, and joined by
    twos, which are the cells of the next scale, and so on. Padding (not ``there``) comes last.

    Args:
        keys: (N, D) float64; there: (N,) bool.
        near, cells, order: as in `self_attention`.

    Complexity: O(N log N) operations of Python. Source: chapter ``self_attention/near_in_content``.

    >>> keys = torch.tensor([0.0, 9, 1, 8, 2, 7, 3, 6], dtype=torch.float64)[:, None]
    >>> groups = self_attention_groups(keys, torch.ones(8) > 0, near=4, cells=2, order="tree")
    >>> groups[0, 2], groups[2, 4], groups[0, 4], groups[4, 8]
    ([0, 2], [3, 1], [0, 2, 4, 6], [7, 5, 3, 1])
    """
    found = {(i, i + 1): [i] if there[i] else [] for i in range(len(keys))}
    if not cells:
        return found
    put = {"time": _time, "tree": _tree, "hilbert": _hilbert}[order]
    single = [found.get((i, i + 1), []) for i in range(len(keys) + near)]
    units = [single[at : at + near] for at in range(0, len(keys), near)]
    width = near
    while True:
        units = [_joined(put(unit, keys, cells), cells) for unit in units]
        if width > cells:
            for i, group in enumerate(sum(units, [])):
                found[i * width // cells, (i + 1) * width // cells] = group
        if len(units) == 1:
            return found
        units.append([[]] * cells)
        units = [a + b for a, b in zip(units[::2], units[1::2], strict=False)]
        width *= 2


Groups = list[list[int]]  # keys, or cells of keys; an empty one is padding


def _joined(groups: Groups, parts: int) -> Groups:
    """Runs of equal length as one group each."""
    size = len(groups) // parts
    return [sum(groups[i : i + size], []) for i in range(0, len(groups), size)]


def _time(groups: Groups, keys: Tensor, parts: int) -> Groups:
    return groups


def _tree(groups: Groups, keys: Tensor, parts: int) -> Groups:
    """By median splits across the principal direction, until there are as many parts."""
    if parts == 1:
        return groups
    into = 2 if parts % 2 == 0 else parts
    along = _plane(groups, keys)[0]
    groups = _by(_steps(along, along.max() - along.min(), 2**16).tolist(), groups)
    size = len(groups) // into
    pieces = [groups[i : i + size] for i in range(0, len(groups), size)]
    return sum((_tree(piece, keys, parts // into) for piece in pieces), [])


def _hilbert(groups: Groups, keys: Tensor, parts: int) -> Groups:
    """Along the Hilbert curve through the square around their first two principal directions."""
    x, y = _plane(groups, keys)
    side = max(x.max() - x.min(), y.max() - y.min())
    return _by(hilbert_encode(_steps(x, side, 2**8), _steps(y, side, 2**8), 8).tolist(), groups)


def _by(places: list, groups: Groups) -> Groups:
    """Those that are not empty in the order of their places; ties as they stand."""
    found = [group for group in groups if group]
    order = sorted(range(len(found)), key=lambda i: places[i])
    return [found[i] for i in order] + [[]] * (len(groups) - len(found))


def _steps(along: Tensor, side: Tensor, count: int) -> Tensor:
    """Places on a line, in equal steps from the least: rounding does not part what is equal."""
    return ((count - 1) * (along - along.min()) / max(side, TINY)).round().long()


def _plane(groups: Groups, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Where the mean keys of the groups that are not empty lie along two principal directions, by
    three steps of power iteration each, from the mean key along which variance is largest; away
    from the first of them.
    """
    rows = torch.stack([keys[group].mean(0) for group in groups if group] or [0 * keys[0]])
    rows = rows - rows[0]  # of equal keys that is 0 to the bit
    rows = rows - rows.mean(0)
    found = []
    for _ in range(2):
        variance = [(rows @ row).square().sum() / max(row @ row, TINY) for row in rows]
        direction = rows[int(torch.stack(variance).argmax())]
        for _ in range(3):
            direction = rows.T @ (rows @ direction)
            direction = direction / max(direction.norm(), TINY)
        found.append(rows @ (-direction if rows[0] @ direction > 0 else direction))
        rows = rows - torch.outer(rows @ direction, direction)
    return found[0], found[1]
