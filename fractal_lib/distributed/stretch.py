"""A stretch of long series, as the posterior of one process reads it (chapter
``scale/beyond_one_machine``).
"""

from typing import Any

import torch
from torch import Tensor

from fractal_lib.distributed.exchange import Shards
from fractal_lib.distributed.pyramid import ShardedPyramid, WindowTree
from fractal_lib.posterior import LadderPosterior
from fractal_lib.posterior.features import DataPyramid
from fractal_lib.posterior.observations import Drawn, Observations
from fractal_lib.posterior.packed import PackedPyramids

__all__ = ["ShardedDataPyramid", "Stretch", "prepare"]


class Stretch(Observations):
    """This rank's rows of series on an even grid, which ranks share out in their order.

    `LatentSDE` draws times and rows within the stretch, and counts them as what they are of the
    whole: the terms of all ranks add up to one estimate of the negative ELBO. All ranks must make
    theirs together.

    Args:
        values: (S, N, X) floating point, this rank's rows.
        observed: bool, True for what is there, as in `Observations`; give it on all ranks or none.
        duration: T, of the whole series.
        group: of `torch.distributed`; default all ranks, or this process alone.

    Attributes:
        n: rows of the whole series.
        shards: who holds what.
        span: this stretch, as a share of the time.
        counts: (S,) observed rows of the stretch.

    Raises:
        TypeError, ValueError: as `Observations`, for a stretch without an observed row too; on
            every rank, if ranks do not agree.

    >>> stretch = Stretch(torch.randn(1, 50, 2))
    >>> stretch.n, stretch.span, stretch.shards.stretch
    (50, (0.0, 1.0), (0, 50))
    """

    def __init__(self, values: Any, observed: Any = None, duration: float = 1.0, group: Any = None):
        super().__init__(values, observed=observed, duration=duration)
        shape = (len(self), self.channels, 0 if self.observed is None else self.observed.dim())
        self.shards = Shards.of(self.n, group, shape, self.values.device)
        self.n = self.shards.n
        last, (begin, end) = max(self.n - 1, 1), self.shards.stretch
        self.span = begin / last, min(end, last) / last

    def sample(self, series: Any, fraction: Any) -> Drawn:
        """As `Observations.sample`, of the stretch's rows; ``row`` counts from its first."""
        drawn = super().sample(series, fraction)
        row = drawn.row + self.shards.stretch[0]
        return drawn._replace(t=row.double() / max(self.n - 1, 1))


class _ShardedPyramids(PackedPyramids):
    """`PackedPyramids` of which each rank has the nodes around its stretch."""

    def __init__(
        self, values: Tensor, observed: Tensor | None, group: Any, levels: int, causal: bool
    ):
        pyramid = ShardedPyramid(values, observed, group, levels=levels, halo=5 if causal else 3)
        counts = pyramid.tree.counts
        self.tree = WindowTree(pyramid.shards.n, pyramid.tree.windows)  # as if complete
        self.stride = torch.ones((), dtype=torch.int64, device=values.device) << torch.arange(
            levels, device=values.device
        )
        self.values, self.packed = pyramid.values.flatten(0, 1), pyramid.values.shape[1]
        self.counts = None if counts is None else counts.expand(len(values), -1).flatten()


class ShardedDataPyramid(DataPyramid):
    """`DataPyramid` of a `Stretch`: what is read at its times is what one process would read of
    the whole. The arguments are those of `DataPyramid`.
    """

    def _packed(self, levels: int) -> PackedPyramids:
        values, observed, _ = self.tables()
        shards: Shards = self.data.shards  # type: ignore[attr-defined]
        return _ShardedPyramids(values, observed, shards.group, levels, self.causal)


def prepare(posterior: Any, data: Stretch) -> ShardedDataPyramid:
    """What a posterior reads of a stretch, once for a data set; on all ranks together.

    Raises:
        TypeError: for another posterior than `LadderPosterior`, or data that are no `Stretch`.
        ValueError: for one that reads splines, or series of another size.

    Complexity: that of a `ShardedPyramid`.

    >>> stretch = Stretch(torch.randn(1, 50, 2))
    >>> posterior = LadderPosterior.of(stretch, 3, 16, features="means")
    >>> posterior(prepare(posterior, stretch), [0], torch.rand(1, 7)).mean.shape
    torch.Size([1, 7, 3])
    """
    if not isinstance(posterior, LadderPosterior) or not isinstance(data, Stretch):
        got = f"{type(posterior).__name__} and {type(data).__name__}"
        raise TypeError(f"expected a LadderPosterior and a Stretch, got {got}")
    if posterior.features != "means":
        raise ValueError(
            'across processes a posterior reads means: LadderPosterior(..., features="means"); a '
            "smoothing spline is solved for the whole series at once"
        )
    if (posterior.n, posterior.channels, posterior.duration) != (
        *(data.n, data.channels),
        data.duration,
    ):
        raise ValueError(
            f"this posterior reads series of n = {posterior.n}, channels = {posterior.channels}, "
            f"duration = {posterior.duration}, the data have {data.n}, {data.channels}, "
            f"{data.duration}"
        )
    return ShardedDataPyramid(
        data,
        posterior.levels,
        posterior.gaps,
        causal=posterior.causal,
        per_channel=posterior.per_channel,
    )
