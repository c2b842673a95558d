"""Hidden rows of a series: the task that the book's pages give to every reader of a context."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fractal_lib.attention.base import ContextAttention, normalise, position
from fractal_lib.attention.kernels import Kernel, as_kernel
from fractal_lib.attention.reader import Reads
from fractal_lib.attention.tree import Tree
from fractal_lib.checks import as_int

__all__ = ["LocalWindow", "best", "hidden_error", "hide_some", "learn"]


class LocalWindow(ContextAttention):
    """The 2 r + 1 rows around t under a kernel, whatever the kernel leaves outside them.

    `WindowAttention` with its promise given up: in a gap any one row within reach will do. It is
    the rival at an equal number of reads. Not smooth in t.

    Args:
        kernel: any `Kernel`.
        radius: r, rows to either side of the nearest one.

    Raises:
        ValueError: when called, for a query with no row within reach.

    Complexity: O(r H) per query. Source: chapter ``start/ladder``.

    >>> from fractal_lib import RBF
    >>> LocalWindow(RBF(2.0), 3).reads(torch.rand(1, 2), 100).indices.shape
    torch.Size([1, 2, 7])
    """

    smooth = False
    reach = "near"

    def __init__(self, kernel: Kernel, radius: int):
        super().__init__()
        self.kernel, self.radius = as_kernel(kernel), as_int(radius, "radius", least=0)

    def pattern(self, t: Tensor, tree: Tree) -> Reads:
        """`Reads` (B, Q, 2 r + 1) for t (B, Q)."""
        x = position(t, tree.n).unsqueeze(-1)
        row = x.detach().round().long() + torch.arange(
            -self.radius, self.radius + 1, device=t.device
        )
        index, count = tree.lookup(0, row)
        return Reads(index, normalise(self.kernel.log(x - row, tree.n), count))


def hide_some(seen: Tensor, count: int, seed: int, fraction: float = 0.1) -> list[Tensor]:
    """So many masks (n,) bool, each of about that fraction of the rows seen.

    >>> [int(m.sum()) for m in hide_some(torch.ones(1000, dtype=torch.bool), 2, seed=0)]
    [100, 102]
    """
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(len(seen), generator=generator) < fraction) & seen for _ in range(count)]


def hidden_error(reader: ContextAttention, values: Tensor, seen: Tensor, hide: Tensor) -> Tensor:
    """Mean square error on rows that are hidden from the reader, against their own values.

    Args:
        reader: maps values (1, n, H) and times (1, Q) to (1, Q, H).
        values: (1, n, H). seen, hide: (n,) bool, rows the reader may have, rows it is asked for.

    Raises:
        ValueError: as the reader says, where no row is within its reach.
    """
    n = values.shape[1]
    at = torch.linspace(0, 1, n, dtype=torch.float64, device=values.device)[None, hide]
    guess = reader(values, at, observed=seen & ~hide)
    return (guess[0] - values[0, hide]).square().mean()


def learn(
    reader: ContextAttention, values: Tensor, seen: Tensor, steps: int = 100, lr: float = 0.5
) -> ContextAttention:
    """The reader, its parameters fitted to rows seen: a fresh tenth is hidden at every step.

    Adam, with a rate that falls from ``lr`` to 0. Complexity: ``steps`` forward and backward passes
    over a tenth of the rows.
    """
    optimiser = torch.optim.Adam(reader.parameters(), lr=lr)
    slower = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0, steps)
    for hide in hide_some(seen, steps, seed=0):
        optimiser.zero_grad()
        hidden_error(reader, values, seen, hide).backward()
        optimiser.step()
        slower.step()
    return reader


@torch.no_grad()
def best(
    candidates: Iterable[ContextAttention], values: Tensor, seen: Tensor, trials: int = 6
) -> ContextAttention:
    """The candidate that errs least on rows seen: the sum over so many hidden tenths, the same
    for all.
    """
    hidden = hide_some(seen, trials, seed=1)
    return min(
        candidates, key=lambda c: sum(float(hidden_error(c, values, seen, h)) for h in hidden)
    )
