"""What processes send each other: cells of a series whose rows are shared out, and how many bytes
that takes (chapter ``scale/beyond_one_machine``).

Cells of w rows tile the series, whatever stretch each process (rank) holds. A cell belongs to the
rank that holds its first row. So it takes two steps until every rank has the cells that it needs:
ranks hand what they know of a cell that began before their stretch to its owner, at most one cell
of each width; then owners send whole cells to those who need them.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Shards", "Traffic", "cell_sums", "complete_cells", "counted", "fetch_cells"]


@dataclass
class Traffic:
    """What this rank has sent to others.

    Attributes:
        sent: bytes.
        calls: collective operations.
    """

    sent: int = 0
    calls: int = 0

    def add(self, sent: int) -> None:
        """One operation more."""
        self.sent, self.calls = self.sent + sent, self.calls + 1


_COUNTING: list[Traffic] = []


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count what this library sends to other ranks within the block, backward passes included.

    >>> with counted() as traffic:
    ...     _ = Shards.of(10)
    >>> traffic
    Traffic(sent=0, calls=0)
    """
    traffic = Traffic()
    _COUNTING.append(traffic)
    try:
        yield traffic
    finally:
        _COUNTING.remove(traffic)


def note(sent: int) -> None:
    """Enter bytes that were sent where they are counted."""
    for traffic in _COUNTING:
        traffic.add(sent)


class Shards(NamedTuple):
    """Which rank holds which rows of a series: rank r has rows [bounds[r], bounds[r + 1]).

    Attributes:
        bounds: p + 1 row numbers, for p ranks.
        rank: this one.
        group: of `torch.distributed`, or None for all ranks.
    """

    bounds: tuple[int, ...]
    rank: int = 0
    group: Any = None

    @classmethod
    def of(cls, rows: int, group: Any = None, agree: Sequence[int] = (), device: Any = None):
        """The ranks of a group, each of which holds ``rows`` rows, in the order of the ranks.

        Without a process group this process is the only one. All ranks must call it.

        Args:
            rows: of this rank, at least 1.
            group: of `torch.distributed`.
            agree: numbers that must be the same on all ranks.
            device: on which the group's backend exchanges, default the CPU.

        Raises:
            ValueError: on every rank, if one holds no row, or they do not agree.
        """
        if not dist.is_initialized():
            gathered = [[rows, *agree]]
            rank = 0
        else:
            mine = torch.tensor([rows, *agree], dtype=torch.int64, device=device)
            parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, mine, group=group)
            note(mine.nbytes * (len(parts) - 1))
            gathered, rank = [part.tolist() for part in parts], dist.get_rank(group)
        if min(rows for rows, *_ in gathered) < 1:
            raise ValueError(f"expected rows on every rank, got {[one[0] for one in gathered]}")
        if len({tuple(rest) for _, *rest in gathered}) > 1:
            told = [rest for _, *rest in gathered]
            raise ValueError(f"ranks differ in sizes, types or settings, rank by rank: {told}")
        bounds = [0]
        for rows, *_ in gathered:
            bounds.append(bounds[-1] + rows)
        return cls(tuple(bounds), rank, group)

    @property
    def n(self) -> int:
        """Rows in all."""
        return self.bounds[-1]

    @property
    def size(self) -> int:
        """Ranks."""
        return len(self.bounds) - 1

    @property
    def stretch(self) -> tuple[int, int]:
        """The first row of this rank, and the first after it."""
        return self.bounds[self.rank], self.bounds[self.rank + 1]

    def owner(self, row: int) -> int:
        """The rank that holds a row.

        >>> Shards((0, 3, 10)).owner(3)
        1
        """
        return bisect_right(self.bounds, row) - 1

    def owned(self, width: int, rank: int) -> tuple[int, int]:
        """The cells of a width that belong to a rank: the first, and the first after them.

        >>> Shards((0, 3, 10)).owned(2, 0), Shards((0, 3, 10)).owned(2, 1)
        ((0, 2), (2, 5))
        """
        begin, end = self.bounds[rank : rank + 2]
        return -(-begin // width), -(-end // width)


class _AllToAll(torch.autograd.Function):
    """One message to each rank; its derivative takes the way back."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, sends: list[int], receives: list[int], shards: Shards):
        ctx.sizes, ctx.shards = (receives, sends), shards
        flat = flat.contiguous()
        out = flat.new_empty(sum(receives))
        dist.all_to_all_single(out, flat, receives, sends, group=shards.group)
        note((sum(sends) - sends[shards.rank]) * flat.element_size())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _AllToAll.apply(grads[0], *ctx.sizes, ctx.shards), None, None, None


def _swap(
    outgoing: list[list[Tensor]], incoming: list[list[int]], like: Tensor, shards: Shards
) -> tuple[list[list[Tensor]], Tensor]:
    """Pieces (G, cells, F) for each rank, and how many cells come from each: those pieces; and an
    empty tensor that ties a rank which receives nothing to what it has sent.
    """
    groups, _, width = like.shape
    flat = torch.cat([like.reshape(-1)[:0]] + [x.reshape(-1) for some in outgoing for x in some])
    sends = [sum(x.numel() for x in some) for some in outgoing]
    receives = [sum(some) * groups * width for some in incoming]
    out: Any = _AllToAll.apply(flat, sends, receives, shards)
    sizes = [cells * groups * width for some in incoming for cells in some]
    pieces: Iterator[Tensor] = iter(out.split(sizes) if sizes else ())
    found: list[list[Tensor]] = [
        [next(pieces).view(groups, cells, width) for cells in some] for some in incoming
    ]
    return found, out[:0]


def cell_sums(rows: Tensor, begin: int, widths: Sequence[int]) -> list[Tensor]:
    """Sums of rows over the cells that they touch, width by width.

    Args:
        rows: (G, N, F), of which the first is row ``begin`` of the series.
        begin: at least 0.
        widths: rows of a cell, each a multiple of the one before.

    Returns:
        for each width (G, C, F): the sums over cells from ``begin // width`` on.

    >>> [part.flatten() for part in cell_sums(torch.ones(1, 5, 1), 3, [1, 2, 4])]
    [tensor([1., 1., 1., 1., 1.]), tensor([1., 2., 2.]), tensor([1., 4.])]
    """
    parts, before = [], 1
    for width in widths:
        ratio = width // before
        if ratio > 1:
            lead = begin % ratio
            rows = pad(rows, (0, 0, lead, -(lead + rows.shape[1]) % ratio))
            rows = rows.unflatten(1, (rows.shape[1] // ratio, ratio)).sum(2)
        begin, before = begin // ratio, width
        parts.append(rows)
    return parts


def complete_cells(parts: list[Tensor], widths: Sequence[int], shards: Shards) -> list[Tensor]:
    """The sums over the cells that belong to this rank, of what each rank knows of them.

    Args:
        parts: for each width `cell_sums`, (G, C, F), of this rank.
        widths: rows of a cell.
        shards: who holds what.

    Complexity: a rank sends at most one cell of each width; the owner of a wide cell receives from
    all those that it covers.
    """
    ranks, me = range(shards.size), shards.rank
    handed = [
        (level, rank, shards.owner(shards.bounds[rank] // width * width))
        for rank in ranks
        for level, width in enumerate(widths)
        if shards.bounds[rank] % width
    ]
    mine = {level for level, rank, _ in handed if rank == me}
    owned = [part[:, 1:] if level in mine else part for level, part in enumerate(parts)]
    if shards.size == 1:
        return owned
    outgoing = [[parts[l][:, :1] for l, src, to in handed if (src, to) == (me, r)] for r in ranks]
    levels = [[l for l, src, to in handed if (src, to) == (r, me)] for r in ranks]
    found, tie = _swap(outgoing, [[1] * len(some) for some in levels], parts[0], shards)
    for some, pieces in zip(levels, found, strict=True):
        for level, piece in zip(some, pieces, strict=True):  # of the last cell that is owned
            whole = owned[level]
            owned[level] = torch.cat([whole[:, :-1], whole[:, -1:] + piece], 1)
    # whatever is read of them, the derivative comes back by the way that this rank has sent
    owned[-1] = owned[-1] + tie.sum()
    return owned


def fetch_cells(
    owned: list[Tensor],
    widths: Sequence[int],
    needs: Sequence[Sequence[tuple[int, int]]],
    shards: Shards,
) -> list[Tensor]:
    """The cells that this rank needs.

    Args:
        owned: for each width (G, C, F), whole cells of this rank, as `complete_cells` gives them.
        widths: rows of a cell.
        needs: for each width and each rank the first cell that it needs, and the first that it
            does not; all within the series.
        shards: who holds what.

    Returns:
        for each width (G, C, F), the cells of ``needs``.

    Complexity: each cell comes once, and not at all if it is this rank's own.
    """
    ranks, me = range(shards.size), shards.rank
    have = [[shards.owned(width, rank) for rank in ranks] for width in widths]

    def overlap(level: int, source: int, to: int) -> tuple[int, int]:
        """Cells of one rank that another needs, counted from the first of the former."""
        (first, end), (begin, stop) = have[level][source], needs[level][to]
        low, high = max(first, begin), min(end, stop)
        return low - first, max(high, low) - first

    def cut(level: int, to: int) -> Tensor:
        low, high = overlap(level, me, to)
        return owned[level][:, low:high]

    every = range(len(widths))
    own = [cut(level, me) for level in every]
    if shards.size == 1:
        return own
    outgoing = [[] if r == me else [cut(level, r) for level in every] for r in ranks]
    incoming: list[list[int]] = [[] for _ in ranks]
    for source in ranks:
        if source != me:
            ends = (overlap(level, source, me) for level in every)
            incoming[source] = [high - low for low, high in ends]
    found, tie = _swap(outgoing, incoming, owned[0], shards)
    found[me] = own
    windows = [torch.cat([pieces[level] for pieces in found], 1) for level in every]
    windows[-1] = windows[-1] + tie.sum()
    return windows
