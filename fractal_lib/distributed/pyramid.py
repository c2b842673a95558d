"""A pyramid over a series whose rows are shared out among processes (chapter
``scale/beyond_one_machine``).
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.tree import Tree, all_levels
from fractal_lib.checks import as_float, as_int, as_mask, require
from fractal_lib.distributed.exchange import Shards, cell_sums, complete_cells, fetch_cells

__all__ = ["ShardedPyramid", "WindowTree"]

HALO = 3  # nodes a level that the ladder reads on either side of a rank's stretch


class WindowTree(Tree):
    """Of each level of a `Tree` the nodes around one rank's rows; node numbers are those of the
    whole.

    Attributes:
        windows: for each level the first node that is here, and the first after.

    >>> tree = WindowTree(8, [(2, 6), (0, 4)])
    >>> tree.lookup(torch.tensor([0, 1]), torch.tensor([[[3, 2]]]))
    (tensor([[[1, 6]]]), tensor([[[1., 2.]]], dtype=torch.float64))
    """

    def __init__(self, n: int, windows: list[tuple[int, int]], counts: Tensor | None = None):
        super().__init__(n, len(windows))
        self.counts, self.windows = counts, windows

    @property
    def first(self) -> int:
        """The first row, which a causal ladder asks for."""
        if self.counts is not None:
            raise ValueError(
                "FractalAttention(causal=True) reads a sharded pyramid only if no row is missing; "
                "a posterior with causal=True reads it in any case"
            )
        return 0

    @first.setter
    def first(self, first: Tensor | int) -> None:
        """Nothing: `Tree` would store it."""

    @property
    def slots(self) -> list[int]:
        """Number of nodes of each level that are here."""
        return [end - first for first, end in self.windows]

    def __repr__(self) -> str:
        known = "complete" if self.counts is None else f"counts {tuple(self.counts.shape)}"
        return f"WindowTree(n={self.n}, rows {self.windows[0]}, levels={self.levels}, {known})"

    def lookup(self, level: Tensor | int, node: Tensor) -> tuple[Tensor, Tensor]:
        """As `Tree.lookup`.

        Raises:
            ValueError: for a node of the series that is not here.
        """
        first, end, shift = (
            torch.tensor(numbers, device=node.device)[level]
            for numbers in (
                [first for first, _ in self.windows],
                [end for _, end in self.windows],
                [
                    offset - first
                    for offset, (first, _) in zip(self.offsets, self.windows, strict=True)
                ],
            )
        )
        size = torch.tensor(self.sizes, device=node.device)[level]
        near = torch.minimum(node.clamp(min=0), size - 1)
        require(
            lambda: ((near >= first) & (near < end)).all(),
            "a node was asked for that is neither this rank's nor in its halo: read t on the rank "
            "that owns it (`ShardedPyramid.mine`), and with the `halo` that the pattern needs",
        )
        inside, index = (node >= 0) & (node < size), near + shift
        if self.counts is not None:
            batch = index.shape[0]
            table = self.counts.expand(batch, -1).gather(1, index.reshape(batch, -1))
            return index, table.view_as(index).double() * inside
        stride = torch.ones_like(size) << torch.as_tensor(level, device=node.device)
        return index, torch.minimum(self.n - node * stride, stride).double() * inside

    def to(self, device: torch.device | str) -> "WindowTree":
        """The same on another device."""
        counts = None if self.counts is None else self.counts.to(device)
        return WindowTree(self.n, self.windows, counts)

    def centroid(self, level: Tensor | int, node: Tensor) -> NoReturn:
        """Refused: mean positions are not exchanged."""
        raise ValueError("a sharded pyramid has no centroids: the ladder alone reads it")

    def span(self, index: Tensor) -> NoReturn:
        """Refused: packed numbers here are a rank's own."""
        raise ValueError("a sharded pyramid has no mask: its packing is one rank's own")


class ShardedPyramid(Pyramid):
    """A `Pyramid` over rows that are shared out among ranks in order: rank r holds a stretch.

    Each rank pools its own rows; a node that began before its stretch is handed to the rank that
    holds its first row, once, and each rank then fetches ``halo`` nodes of every level on either
    side of its stretch, once. What a reader finds at its own times is what it would find in one
    `Pyramid`, up to rounding, gradients included. All ranks must make it, and go backward through
    it, together.

    Args:
        values: (B, N, H) floating point, this rank's rows, N >= 1; on other ranks another N.
        observed: (N,) or (B, N) bool, True where a row is there, of this rank; on all ranks or on
            none. A stretch may be empty, if not the whole.
        group: of `torch.distributed`; default all ranks, or this process alone.
        levels: number of levels; default all that the whole series has.
        halo: nodes of a level on either side. 3 are enough for
            ``FractalAttention(source="pyramid")``, 5 for its causal form.

    Attributes:
        values: (B, P, H), means of the nodes that are here, level upon level.
        tree: their `WindowTree`.
        shards: who holds what.

    Raises:
        TypeError, ValueError: as `Pyramid`; on every rank, if ranks do not agree.

    Complexity: O(N H / p) a rank, and O(halo log N) nodes sent and received a rank, in two
    all-to-alls; a node over many ranks' rows is received from each of them by its owner.
    Source: chapter ``scale/beyond_one_machine``.

    >>> from fractal_lib import FractalAttention
    >>> pyramid = ShardedPyramid(torch.randn(2, 1000, 3))
    >>> FractalAttention(source="pyramid")(pyramid, torch.rand(2, 7)).shape
    torch.Size([2, 7, 3])
    """

    def __init__(
        self,
        values: Any,
        observed: Any = None,
        group: Any = None,
        *,
        levels: int | None = None,
        halo: int = HALO,
    ):
        values, halo = as_float(values, "values"), as_int(halo, "halo", least=0)
        if values.dim() != 3:
            raise ValueError(f"values must have shape (B, N, H), got {tuple(values.shape)}")
        batch, rows, hidden = values.shape
        if observed is not None:
            observed = as_mask(observed, device=values.device)
            if observed.shape not in (values.shape[1:2], values.shape[:2]):
                raise ValueError(
                    f"observed must have shape ({rows},) or ({batch}, {rows}), got "
                    f"{tuple(observed.shape)}"
                )
            observed = torch.atleast_2d(observed)
            values = torch.where(observed.unsqueeze(-1), values, 0)
        require(
            lambda: values.isfinite().all(),
            "an observed row is NaN or infinite: mark missing rows with `observed`",
        )
        masks = 0 if observed is None else len(observed)
        agree = (batch, hidden, values.element_size(), halo, levels or 0, masks)
        self.shards = Shards.of(rows, group, agree, values.device)
        n, self._levels, self.expansion = self.shards.n, levels, 0
        has = all_levels(n)
        levels = has if levels is None else as_int(levels, "levels", least=1, most=has)
        widths, needs = [1 << k for k in range(levels)], self._needs(levels, halo)
        windows = [some[self.shards.rank] for some in needs]
        counts = None
        if observed is not None:
            counts = self._sums(observed.double().unsqueeze(-1), widths, needs)
            counts = torch.cat(counts, 1).squeeze(-1).round().to(torch.int32)
        self.tree = WindowTree(n, windows, counts)
        sums = self._sums(values, widths, needs)
        # sums become means level by level; the last node of a level may not be full
        held = self._held(values.device).split(self.tree.slots, 1)
        means = [
            part / count.clamp(min=1).unsqueeze(-1).to(part.dtype)
            for part, count in zip(sums, held, strict=True)
        ]
        self.values = torch.cat(means, 1)

    def _needs(self, levels: int, halo: int) -> list[list[tuple[int, int]]]:
        bounds, needs = self.shards.bounds, []
        for k in range(levels):
            size = -(-self.shards.n >> k)
            needs.append(
                [
                    (max((a >> k) - halo, 0), min(((b - 1) >> k) + halo + 1, size))
                    for a, b in zip(bounds[:-1], bounds[1:], strict=True)
                ]
            )
        return needs

    def _sums(self, rows: Tensor, widths: list[int], needs: list) -> list[Tensor]:
        dtype = torch.promote_types(rows.dtype, torch.float32)
        parts = cell_sums(rows.to(dtype), self.shards.stretch[0], widths)
        owned = complete_cells(parts, widths, self.shards)
        return [part.to(rows.dtype) for part in fetch_cells(owned, widths, needs, self.shards)]

    def _held(self, device: torch.device) -> Tensor:
        """(B or 1, P): how many rows stand behind each node that is here."""
        if self.tree.counts is not None:
            return self.tree.counts
        parts = [
            (self.shards.n - (torch.arange(*window, device=device) << k)).clamp(max=1 << k)
            for k, window in enumerate(self.tree.windows)
        ]
        return torch.cat(parts).unsqueeze(0)

    def mine(self, t: Any) -> Tensor:
        """Which of the times this rank answers: bool, of the shape of t, True on one rank alone.

        >>> ShardedPyramid(torch.randn(1, 5, 1)).mine(torch.tensor([[0.0, 1.0]]))
        tensor([[True, True]])
        """
        begin, end = self.shards.stretch
        n = self.shards.n
        row = (as_float(t, "t").double() * (n - 1)).floor().clamp(0, n - 1)
        return (row >= begin) & (row < end)

    def append(self, values: Any, observed: Any = None) -> NoReturn:
        """Refused."""
        raise ValueError("a sharded pyramid does not grow: make it anew")
