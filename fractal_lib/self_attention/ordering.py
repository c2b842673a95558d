"""Which keys share a cell: the keys of a far block in the order of their content (chapter
``attention/self_attention``).

A cell answers for all its keys by their mean, so it should hold keys that are alike. Cells are read
by whole units, ``near * 2**(l - 1)`` keys on scale l, and a unit that a causal query reads is
wholly past: its keys may be dealt to its cells in any order without a leak.

The orders here make a tree, from the bottom up. On scale 1 the keys of a unit are put in order and
cut into runs of equal length, its cells. On every further scale the cells of two units, means of
few keys already, are put in order and joined by twos. So a cell of scale l is two cells of scale
l - 1, a cell of scale 1 is ``near / cells`` keys, and all of it takes O(N).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from fractal_lib.attention.base import no_autocast
from fractal_lib.curves.hilbert import hilbert_encode
from fractal_lib.self_attention.cells import divided, pooled, reordered
from fractal_lib.self_attention.layout import Layout

__all__ = ["ORDERS", "content_order", "packed_size", "unpacked"]

GRID = 8  # order of the Hilbert curve: 2**8 steps along either direction, for 64 keys or so
STEPS = 2  # of power iteration, towards a principal direction


def content_order(
    keys: Tensor, padding: Tensor | None, near: int, cells: int, order: str
) -> Tensor:
    """Which keys share a cell on scale 1, and which cells of a scale share one on the next.

    Args:
        keys: (B, heads, N, D), floating point.
        padding: None or (B, N) bool, True for padding, which comes last in its unit. Keys are
            finite there.
        near, cells: as in `fractal_lib.fractal_self_attention`.
        order: a name in `ORDERS`.

    Returns:
        (B, heads, `packed_size`) int64, see `unpacked`. No gradient passes through it.

    Complexity: O(N D log(cells)) operations, with sorts of ``near`` and of 2 ``cells`` numbers, and
    O(N D) memory. Source: Bentley (1975) for trees of median splits; Hilbert (1891); chapter
    ``attention/self_attention``.

    >>> keys = torch.tensor([0.0, 9, 1, 8, 2, 7, 3, 6, 4, 5, 4, 5]).view(1, 1, 12, 1)
    >>> content_order(keys, None, near=4, cells=2, order="tree")[0, 0, :12]
    tensor([ 0,  2,  3,  1,  4,  6,  7,  5,  8, 10,  9, 11])
    """
    batch, heads, n, _ = keys.shape
    layout = Layout.of(n, near, cells, causal=False, batch=1, device=keys.device)
    with torch.no_grad(), no_autocast(keys.device):
        sums = keys.detach().flatten(0, 1)  # (G, N, D)
        sums = sums.to(torch.promote_types(sums.dtype, torch.float32))
        valid = sums.new_ones(batch, n) if padding is None else (~padding).to(sums.dtype)
        counts, found = valid.repeat_interleave(heads, 0), []
        for scale in range(1, layout.scales):
            found.append(_in_order(divided(sums, counts), counts > 0, scale, layout, ORDERS[order]))
            sums, counts = (pooled(x, scale, layout, found[-1]) for x in (sums, counts))
        rest = packed_size(n, near, cells) - sum(x.shape[1] for x in found)
        found.append(torch.zeros(batch * heads, rest, dtype=torch.int64, device=keys.device))
        return torch.cat(found, 1).unflatten(0, (batch, heads))


def packed_size(n: int, near: int, cells: int) -> int:
    """Entries that hold the orders of all scales, and some zeros: linear in n, by a formula without
    a loop over scales, which compilers ask for.
    """
    return -(-n // near) * (near + 4 * cells)


def unpacked(packed: Tensor, n: int, layout: Layout) -> list[Tensor]:
    """The tree: the order of each scale from 1 on, of (B, heads, `packed_size`) for n keys.

    Entry l - 1 is (G, M), a permutation of the rows of scale l - 1, keys or cells, and of as much
    padding as makes whole units of `Layout.members` rows, within which it stays. A run of it is a
    cell of scale l: ``near / cells`` keys for l = 1, else two cells.

    >>> layout = Layout.of(20, near=4, cells=2, causal=False, batch=1, device=torch.device("cpu"))
    >>> keys = torch.randn(1, 1, 20, 3)
    >>> packed = content_order(keys, None, near=4, cells=2, order="tree")
    >>> [order.shape[1] for order in unpacked(packed, 20, layout)]  # 20 keys, 10 cells and padding
    [20, 12]
    """
    flat, found, start, rows = packed.flatten(0, 1), [], 0, n
    for scale in range(1, layout.scales):
        units = -(-rows // layout.members(scale))
        stop = start + units * layout.members(scale)
        found.append(flat[:, start:stop])
        start, rows = stop, units * layout.half
    return found


Put = Callable[[Tensor, Tensor, int], Tensor]


def _in_order(rows: Tensor, present: Tensor, scale: int, layout: Layout, put: Put) -> Tensor:
    """(G, M) int64: the rows (G, R, D) of the scale below, in the order that ``put`` gives them
    within the units of a scale; (G, R) bool says which are there.
    """
    members = layout.members(scale)
    units = -(-rows.shape[1] // members)
    more = units * members - rows.shape[1]
    rows = pad(rows, (0, 0, 0, more)).reshape(-1, members, rows.shape[2])
    present = pad(present, (0, more), value=False).reshape(-1, members)
    order = put(rows, present, layout.half).view(-1, units, members)
    return (order + members * torch.arange(units, device=rows.device)[:, None]).flatten(1)


def _tree(rows: Tensor, present: Tensor, parts: int) -> Tensor:
    """(U, m) int64: an order of (U, m, D) by median splits across a principal direction of each
    node, until there are ``parts`` runs of equal length. What is not present comes last.
    """
    units, members, width = rows.shape
    order = torch.arange(members, device=rows.device).expand(units, members)
    while parts > 1:
        into = 2 if parts % 2 == 0 else parts  # what is left of an odd number: at once
        along = _principal(_centred(rows, present))[0].masked_fill(~present, torch.inf)
        place = along.argsort(dim=1, stable=True)
        size = place.shape[1] // into
        order, present = (x.gather(1, place).view(-1, size) for x in (order, present))
        rows = reordered(rows, place).view(-1, size, width)
        parts //= into
    return order.view(units, members)


def _hilbert(rows: Tensor, present: Tensor, parts: int) -> Tensor:
    """(U, m) int64: an order of (U, m, D) along the Hilbert curve through the plane of two
    principal directions. What is not present comes last.
    """
    rows, plane = _centred(rows, present), []
    for _ in range(2):
        along, direction = _principal(rows)
        rows = rows - along.unsqueeze(2) * direction.unsqueeze(1)
        plane.append(along)
    side = torch.stack(plane)  # (2, U, m); 0, the mean, where nothing is
    least, most = side.amin(2, keepdim=True), side.amax(2, keepdim=True)
    step = (most - least).amax(0).clamp(min=torch.finfo(side.dtype).tiny) / (2**GRID - 1)
    x, y = ((side - least) / step).nan_to_num(0).round().long().clamp(0, 2**GRID - 1)
    return hilbert_encode(x, y, GRID).masked_fill(~present, 4**GRID).argsort(dim=1, stable=True)


ORDERS: dict[str, Put] = {"tree": _tree, "hilbert": _hilbert}


def _centred(rows: Tensor, present: Tensor) -> Tensor:
    """(U, m, D) less the mean of what is present, 0 elsewhere."""
    there = present.unsqueeze(2).to(rows.dtype)
    count = there.sum(1, keepdim=True).clamp(min=1)
    return (rows - (rows * there).sum(1, keepdim=True) / count) * there


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(U, m) and (U, D): centred rows along their first principal direction, and the direction.

    By few steps of power iteration, from the coordinate of largest variance: no more are needed
    for an order, and what is computed is the same on every machine up to rounding.
    """
    largest = rows.square().sum(1).argmax(1)
    direction = one_hot(largest, rows.shape[2]).to(rows.dtype).unsqueeze(2)  # (U, D, 1)
    tiny = torch.finfo(rows.dtype).tiny
    for _ in range(STEPS):
        direction = rows.mT @ (rows @ direction)
        direction = direction / direction.norm(dim=1, keepdim=True).clamp(min=tiny)
    return (rows @ direction).squeeze(2), direction.squeeze(2)
