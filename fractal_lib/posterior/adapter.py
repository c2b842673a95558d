"""The ladder posterior where a head stands: in loops that call one, and know no `Observations`."""

from typing import Any

import torch
from torch import Tensor, nn

from fractal_lib.checks import as_float
from fractal_lib.posterior.base import as_times
from fractal_lib.posterior.heads import Coefficients
from fractal_lib.posterior.ladder import LadderPosterior
from fractal_lib.posterior.marginals import Marginals
from fractal_lib.posterior.observations import Observations
from fractal_lib.posterior.reader import Reader

__all__ = ["LadderAffine"]


class LadderAffine(nn.Module):
    """A `LadderPosterior` with the calls of `PosteriorAffine`, whose context is the data itself.

    In the public loop of SDE Matching it takes the place of encoder and head:

        posterior = LadderPosterior(latent_size, hidden_size, channels=3, n=41)
        q_enc = nn.Identity()
        q_affine = LadderAffine(posterior)

    The pyramid of a tensor is built when it is first met, and kept while the same tensor comes
    again unchanged.

    Args:
        posterior: a `LadderPosterior`.

    Raises:
        TypeError: for another posterior.
        ValueError: for one whose coordinates are correlated, as (m, s) cannot say it.

    Complexity: that of the posterior, and O(B N X) for a tensor that was not the last. Source:
    Bartosh, Vetrov and Naesseth (2025), their public notebook; chapter ``posterior/latent_sde``.

    >>> head = LadderAffine(LadderPosterior(latent_size=4, hidden_size=16, channels=3, n=41))
    >>> (m, s), (dm, ds) = head(torch.randn(8, 41, 3), torch.rand(8, 1), return_t_dir=True)
    >>> m.shape, ds.shape
    (torch.Size([8, 4]), torch.Size([8, 4]))
    """

    def __init__(self, posterior: LadderPosterior):
        super().__init__()
        if not isinstance(posterior, LadderPosterior):
            raise TypeError(f"expected a LadderPosterior, got {type(posterior).__name__}")
        if posterior.correlated:
            raise ValueError("expected a posterior with correlated=False: (m, s) tells no more")
        self.posterior = posterior
        self._last: tuple[Tensor, int, Reader] | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_last": None}  # a pyramid is made again, not copied or saved

    def get_coeffs(self, ctx: Any, t: Any) -> Coefficients:
        """Mean m and std s, (B, Z) each, for series ctx (B, N, X) and t (B, 1) in [0, 1]."""
        return self.forward(ctx, t)

    def forward(self, ctx: Any, t: Any, return_t_dir: bool = False) -> Any:
        """(m, s); with ``return_t_dir`` also their derivatives in t: ((m, s), (dm, ds)).

        Raises:
            TypeError, ValueError: for series that the posterior does not read, or another t than
                one a series.
        """
        q = self.get_marginals(ctx, t)
        if q.mean.shape[1] != 1:
            raise ValueError(f"expected t (B, 1), one time a series, got {q.mean.shape[:2]}")
        m, s, dm, ds = (part.squeeze(1) for part in q)
        return ((m, s), (dm, ds)) if return_t_dir else (m, s)

    def get_marginals(self, ctx: Any, t: Any) -> Marginals:
        """Mean, std and their derivatives at many times of each series, t (B, Q)."""
        prepared = self._prepared(as_float(ctx, "ctx"))
        series = torch.arange(len(prepared.data), device=prepared.data.values.device)
        return self.posterior(prepared, series, as_times(t, series))

    def _prepared(self, ctx: Tensor) -> Reader:
        last, version = self._last, 0 if ctx.is_inference() else ctx._version
        if last is None or last[0] is not ctx or last[1] != version:
            data = Observations(ctx.detach(), duration=self.posterior.duration)
            last = self._last = ctx, version, self.posterior.prepare(data)
        return last[2]
