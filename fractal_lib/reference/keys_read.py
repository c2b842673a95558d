"""Which keys a query of self-attention reads, one by one or by the cell, and what a cell holds."""

import torch
from torch import Tensor

from fractal_lib.curves.hilbert import hilbert_encode

__all__ = ["self_attention_groups", "self_attention_reads", "whole_reads"]

TINY = torch.finfo(torch.float64).tiny


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
    return [(a, min(b, n)) for a, b in whole_reads(i, n, near, cells, causal)]


def whole_reads(i: int, n: int, near: int, cells: int, causal: bool) -> list[tuple[int, int]]:
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
