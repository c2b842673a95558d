"""The ways to read far keys that every attention task compares, what each reads, and its error.

`FAR` is the one table: a task runs over it, so an option that is entered is measured everywhere.
"""

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fractal_lib.benchmark.centroids import centroids
from fractal_lib.benchmark.transformer import Attend
from fractal_lib.self_attention import fractal_self_attention

__all__ = [
    "FAR",
    "exact",
    "far",
    "log_mass",
    "num_read",
    "rows_of",
    "trained",
    "window_like",
]

FAR: dict[str, dict[str, Any]] = {
    "cells by time": {"order": "time"},
    "cells by Hilbert": {"order": "hilbert"},
    "cells by tree": {"order": "tree"},
}
"""Options of `fractal_self_attention` beside its geometry, by the name that records have."""


def far(near: int, cells: int, is_causal: bool = True) -> dict[str, Attend]:
    """Every way of `FAR` with this geometry.

    >>> list(far(16, 4))[0]
    'cells by time'
    """
    return {
        name: partial(
            fractal_self_attention, near=near, cells=cells, is_causal=is_causal, **options
        )
        for name, options in FAR.items()
    }


def trained(near: int, cells: int, is_causal: bool = True) -> dict[str, Attend]:
    """What a task trains with: full attention, a window of which each query reads as many keys as
    cells would be read, and every way of `FAR`.

    >>> q, k, v = torch.randn(3, 1, 1, 40, 4)
    >>> [attend(q, k, v).shape[2] for attend in trained(4, 2).values()][:3]
    [40, 40, 40]
    """

    def window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = _window(q.shape[2], near, cells, is_causal).to(q.device)
        return scaled_dot_product_attention(q, k, v, mask)

    full = partial(scaled_dot_product_attention, is_causal=is_causal)
    return {"full": full, "window": window} | far(near, cells, is_causal)


@lru_cache
def _window(n: int, near: int, cells: int, is_causal: bool) -> Tensor:
    return window_like(num_read(n, near, cells, is_causal), is_causal)


def num_read(n: int, near: int, cells: int, is_causal: bool = True, opened: int = 0) -> Tensor:
    """How many keys and cells each of n queries reads, (n,): what counts in its softmax.

    >>> num_read(8, near=2, cells=0).tolist()
    [1, 2, 3, 4, 3, 4, 3, 4]
    >>> num_read(64, near=2, cells=1).max().item()
    12
    """
    place, scale = torch.arange(n), 1
    block = place // near
    low, high = (block - 1) * near, (block + 2) * near
    read = (place + 1 if is_causal else high.clamp(max=n)) - low.clamp(min=0)
    while cells and ((low > 0).any() or not is_causal and (high < n).any()):
        width, mine = near << scale, block >> scale
        first, last = (mine - 1) * width, (mine + 2) * width
        cell = width // (2 * cells)
        read = read + (low - first.clamp(min=0)).clamp(min=0) // cell
        if not is_causal:
            read = read - (high - last.clamp(max=n)).clamp(max=0) // cell
        low, high, scale = first, last, scale + 1
    return torch.minimum(read + opened, place + 1 if is_causal else torch.full_like(place, n))


def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Softmax attention to what a mask (N, N) lets through, and the logarithm of its normaliser:
    (..., N, Dv) and (..., N).
    """
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


def window_like(read: Tensor, is_causal: bool = True) -> Tensor:
    """(n, n) bool: the nearest keys of each query, as many as ``read`` (n,) says.

    >>> window_like(torch.tensor([1, 2, 2])).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    place = torch.arange(len(read))
    behind = place[:, None] - place  # (n, n)
    if is_causal:
        return (behind >= 0) & (behind < read[:, None])
    rank = behind.abs().sort(dim=-1, stable=True).indices.argsort(-1)
    return rank < read[:, None]


def log_mass(attend: Attend, q: Tensor, k: Tensor) -> Tensor:
    """The logarithm of the normaliser that an attention used, (B, heads, N), from the weight of
    each query's own key, which every way reads by itself.

    >>> q, k = torch.randn(2, 1, 1, 6, 4, dtype=torch.float64)
    >>> used = log_mass(lambda q, k, v: exact(q, k, v)[0], q, k)
    >>> torch.allclose(used, exact(q, k, k)[1])
    True
    """
    n = q.shape[2]
    places = torch.eye(n, dtype=q.dtype).expand(*q.shape[:2], n, n)
    weights = attend(q, k, places).diagonal(dim1=-2, dim2=-1)
    return (q * k).sum(-1) / q.shape[-1] ** 0.5 - weights.log()


def rows_of(
    q: Tensor, k: Tensor, v: Tensor, near: int, cells: int, count: int, is_causal: bool = True
) -> list[dict]:
    """A row for every way and every rival: relative ``error`` of the output over all that stands
    in q, k and v (B, heads, N, D), the same over the ``late`` half of the queries alone, which have
    the most far keys, root mean square error of the logarithm of the normaliser (``mass``; None
    without logits), and keys and cells that a query ``reads`` in the mean.

    The rivals: the nearest keys, for each query as many as the cells in time order; k-means with
    ``count`` centroids over all far keys (`centroids`; 0 for none); and no logits at all, the mean
    of the values.
    """
    n = q.shape[2]
    past = torch.ones(n, n, dtype=torch.bool)
    past = past.tril() if is_causal else past
    out, mass = exact(q, k, v, past)
    read = num_read(n, near, cells, is_causal)
    window = window_like(read, is_causal)
    ways: dict[str, tuple[Attend, float]] = {
        "mean of the values": (lambda q, k, v: exact(0 * q, k, v, past)[0], 0),
        "window": (lambda q, k, v: exact(q, k, v, window)[0], read.double().mean().item()),
    }
    for name, attend in far(near, cells, is_causal).items():
        opened = num_read(n, near, cells, is_causal, FAR[name].get("opened", 0))
        ways[name] = attend, opened.double().mean().item()
    if count and is_causal:
        place = torch.arange(n)
        first = (place // near - 1).clamp(min=0) * near
        reads = place + 1 - first + first.clamp(max=count)
        ways["k-means"] = (
            partial(centroids, near=near, count=count),
            reads.double().mean().item(),
        )
    rows = []
    for name, (attend, reads) in ways.items():
        off = attend(q, k, v) - out
        row = {"method": name, "error": (off.norm() / out.norm()).item()}
        row |= {"late": (off[:, :, n // 2 :].norm() / out[:, :, n // 2 :].norm()).item()}
        used = (log_mass(attend, q, k) - mass).square().mean().sqrt().item() if reads else None
        rows.append(row | {"mass": used, "reads": round(reads, 1)})
        told = ", ".join(
            f"{key} {value:.3f}"
            for key, value in rows[-1].items()
            if key != "method" and value is not None
        )
        print(f"{name:20} {told}", flush=True)
    return rows
