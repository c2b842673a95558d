"""Which keys share a cell: the keys of a far block in the order of their content (chapter
``self_attention/near_in_content``).

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
from torch.nn.functional import pad

from fractal_lib.attention.base import no_autocast
from fractal_lib.curves.hilbert import hilbert_encode
from fractal_lib.self_attention.cells import divided, pooled
from fractal_lib.self_attention.layout import CHUNK, Layout

__all__ = ["ORDERS", "content_order", "packed_size", "unpacked"]

GRID = 8  # order of the Hilbert curve: 2**8 steps along either direction, for 64 keys or so
STEPS = 3  # of power iteration, towards a principal direction


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

    Complexity: some 2 N near (D + 10) operations, nearly all on scale 1, for the products of the
    keys of each unit; sorts of ``near`` and of 2 ``cells`` numbers; O(N D) memory. Source: Bentley
    (1975) for trees of median splits; Hilbert (1891); chapter ``self_attention/near_in_content``.

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
    more = -rows.shape[1] % members
    rows = pad(rows, (0, 0, 0, more)) if more else rows
    units = rows.shape[1] // members
    rows = rows.reshape(-1, members, rows.shape[2])
    present = pad(present, (0, more), value=False).reshape(-1, members)
    chunk = max(1, CHUNK.get(rows.device.type, CHUNK["other"]) // members**2)
    parts = zip(rows.split(chunk), present.split(chunk), strict=True)
    order = torch.cat([put(_products(x, there), there, layout.half) for x, there in parts])
    first = members * torch.arange(units, device=rows.device).unsqueeze(1)
    return (order.view(-1, units, members) + first).flatten(1)


def _tree(products: Tensor, present: Tensor, parts: int) -> Tensor:
    """(U, m) int64: an order by median splits across a principal direction of each node, until
    there are ``parts`` runs of equal length. What is not present comes last.
    """
    units, members = present.shape
    order = torch.arange(members, device=present.device).expand(units, members)
    while parts > 1:
        into = 2 if parts % 2 == 0 else parts  # what is left of an odd number: at once
        along = _steps(_principal(products, present), 2**16).masked_fill(~present, 2**17)
        place = along.argsort(dim=1, stable=True)
        nodes, size = len(place) * into, place.shape[1] // into
        order, present = (x.gather(1, place).view(nodes, size) for x in (order, present))
        parts //= into
        if parts > 1:
            within = place.view(-1, into, size)
            pairs = within.unsqueeze(3) * place.shape[1] + within.unsqueeze(2)
            products = products.flatten(1).gather(1, pairs.flatten(1)).view(nodes, size, size)
            products = _centred(products, present)
    return order.view(units, members)


def _hilbert(products: Tensor, present: Tensor, parts: int) -> Tensor:
    """(U, m) int64: an order along the Hilbert curve through the plane of two principal
    directions. What is not present comes last.
    """
    x = _principal(products, present)
    rest = torch.baddbmm(products, x.unsqueeze(2), x.unsqueeze(1), alpha=-1)
    y = _principal(rest, present)
    x, y = _steps(torch.stack([x, y]), 2**GRID)
    return hilbert_encode(x, y, GRID).masked_fill(~present, 4**GRID).argsort(dim=1, stable=True)


ORDERS: dict[str, Put] = {"tree": _tree, "hilbert": _hilbert}


def _products(rows: Tensor, present: Tensor) -> Tensor:
    """(U, m, m): products of all pairs of rows (U, m, D) less their mean, 0 where nothing is."""
    # of differences from one of them: of equal rows they are 0 to the bit
    first = present.int().argmax(1)[:, None, None]
    rows = (rows - rows.take_along_dim(first, 1)).mul_(present.unsqueeze(2))
    return _centred(rows @ rows.mT, present)


def _centred(products: Tensor, present: Tensor) -> Tensor:
    """Products of rows (U, m, m), 0 where nothing is, as those of the rows less their mean."""
    there = present.unsqueeze(2).to(products.dtype)
    count = there.sum(1, keepdim=True).clamp(min=1)
    mean = products @ there / count  # (U, m, 1)
    mean = (mean - mean.sum(1, keepdim=True) / (2 * count)) * there
    pairs = torch.cat([mean, there], 2), torch.cat([there, mean], 2).mT
    found = torch.baddbmm(products, *pairs, alpha=-1)
    least = _diagonal(products).amax(1) * products.shape[1] * torch.finfo(products.dtype).eps
    differ = _diagonal(found).amax(1) > least  # by more than rounding
    return found.mul_(differ[:, None, None])


def _principal(products: Tensor, present: Tensor) -> Tensor:
    """(U, m): centred rows along a principal direction, by their products (U, m, m).

    By power iteration from the row whose direction holds the largest variance. An order needs few
    steps, and what a fixed number of them finds is the same everywhere, up to rounding. The
    direction points away from the first row that is present.
    """
    tiny = torch.finfo(products.dtype).tiny
    held = torch.linalg.vector_norm(products, dim=2).square()
    held = held / _diagonal(products).clamp(min=tiny)
    along = products.take_along_dim(held.argmax(1)[:, None, None], 2)  # (U, m, 1)
    for _ in range(STEPS):
        along = along / along.abs().amax(1, keepdim=True).clamp(min=tiny)
        before, along = along, products @ along
    squared = (before * along).sum(1, keepdim=True)  # below 0 for products that are rounding
    along = (along * (squared > tiny) / squared.clamp(min=tiny).sqrt()).squeeze(2)
    return torch.where(along.gather(1, present.int().argmax(1, keepdim=True)) > 0, -along, along)


def _steps(along: Tensor, count: int) -> Tensor:
    """(..., U, m) int64: in ``count`` equal steps, so that rounding does not part what is equal;
    as many for all of (2, U, m), which the longer one fills.
    """
    least, most = along.amin(-1, keepdim=True), along.amax(-1, keepdim=True)
    width = (most - least).clamp(min=torch.finfo(along.dtype).tiny)
    width = width.amax(0, keepdim=True) if along.dim() == 3 else width
    found = (along - least) / width * (count - 1)
    return found.nan_to_num(0).round().long().clamp(0, count - 1)


def _diagonal(products: Tensor) -> Tensor:
    return products.diagonal(dim1=1, dim2=2)
