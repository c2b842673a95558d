"""The ways to read far keys that every attention task compares, what each reads, and its error.

`FAR` is the one table: a task runs over it, so an option that is entered is measured everywhere.
"""

from collections.abc import Sequence
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
    "WAYS",
    "WINDOWS",
    "answer_and_mass",
    "compared",
    "exact",
    "far",
    "num_read",
    "rows_of",
    "trained",
    "window_like",
]

FAR: dict[str, dict[str, Any]] = {
    "cells by time": {"order": "time"},
    "cells by Hilbert": {"order": "hilbert"},
    "cells by tree": {"order": "tree"},
    "tree, 32 opened": {"order": "tree", "opened": 32},
}
"""Options of `fractal_self_attention` beside its geometry, by the name that records have."""

WINDOWS: dict[str, int] = {
    f"window, {opened} more" if opened else "window": opened
    for opened in sorted({options.get("opened", 0) for options in FAR.values()})
}
"""Windows that read as many keys as cells are read, and as many more as are opened."""

WAYS = ("mean of the values", *WINDOWS, *FAR, "k-means")
"""Names of all that `compared` compares."""


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
    """What a task trains with: full attention, windows of which each query reads as many keys as
    of cells and opened keys, and every way of `FAR`.

    >>> q, k, v = torch.randn(3, 1, 1, 40, 4)
    >>> [attend(q, k, v).shape[2] for attend in trained(4, 2).values()][:3]
    [40, 40, 40]
    """

    def window(opened: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = _window(q.shape[2], near, cells, is_causal, opened)
        return scaled_dot_product_attention(q, k, v, mask.to(q.device))

    full = partial(scaled_dot_product_attention, is_causal=is_causal)
    windows = {name: partial(window, opened) for name, opened in WINDOWS.items()}
    return {"full": full} | windows | far(near, cells, is_causal)


@lru_cache
def _window(n: int, near: int, cells: int, is_causal: bool, opened: int) -> Tensor:
    return window_like(num_read(n, near, cells, is_causal, opened), is_causal)


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


def answer_and_mass(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What an attention answers, and the logarithm of the normaliser that it used, (B, heads, N):
    from the weight of each query's own key, which every way reads by itself.

    >>> q, k, v = torch.randn(3, 1, 1, 6, 4, dtype=torch.float64)
    >>> out, mass = answer_and_mass(lambda q, k, v: exact(q, k, v)[0], q, k, v)
    >>> torch.allclose(out, exact(q, k, v)[0]), torch.allclose(mass, exact(q, k, v)[1])
    (True, True)
    """
    n, width = q.shape[2], v.shape[-1]
    places = torch.eye(n, dtype=v.dtype).expand(*v.shape[:2], n, n)
    both = attend(q, k, torch.cat([v, places], -1))  # (B, heads, N, Dv + N)
    own = both[..., width:].diagonal(dim1=-2, dim2=-1)
    return both[..., :width], (q * k).sum(-1) / q.shape[-1] ** 0.5 - own.log()


def compared(n: int, near: int, cells: int, count: int) -> dict[str, tuple[Attend, float]]:
    """Every way and every rival, with how many keys and cells a query reads in the mean; causal.

    The rivals: no logits at all, the mean of the values; the nearest keys, for each query as many
    as cells are read, and as many more as are opened; k-means with ``count`` centroids over all far
    keys, as `centroids` has it.
    """
    past = torch.ones(n, n, dtype=torch.bool).tril()
    found: dict[str, tuple[Attend, Tensor]] = {
        "mean of the values": (lambda q, k, v: exact(0 * q, k, v, past)[0], torch.zeros(1))
    }
    for name, opened in WINDOWS.items():
        read = num_read(n, near, cells, opened=opened)
        found[name] = partial(_masked, window_like(read)), read
    for name, attend in far(near, cells).items():
        found[name] = attend, num_read(n, near, cells, opened=FAR[name].get("opened", 0))
    place = torch.arange(n)
    first = (place // near - 1).clamp(min=0) * near
    means = partial(centroids, near=near, count=count)
    found["k-means"] = means, place + 1 - first + first.clamp(max=count)
    return {name: (attend, read.double().mean().item()) for name, (attend, read) in found.items()}


def _masked(mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return exact(q, k, v, mask)[0]


def rows_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    near: int,
    cells: int,
    count: int,
    only: Sequence[str] | None = None,
) -> list[dict]:
    """A row for every way and every rival (`compared`), or those of ``only``: relative ``error`` of
    the output over all that stands in q, k and v (B, heads, N, D); the same over the ``late`` half
    of the queries alone, which have the most far keys; root mean square error of the logarithm of
    the normaliser (``mass``; None without logits); and keys and cells that a query ``reads`` in the
    mean.
    """
    n = q.shape[2]
    out, mass = exact(q, k, v, torch.ones(n, n, dtype=torch.bool).tril())
    rows = []
    for name, (attend, reads) in compared(n, near, cells, count).items():
        if name in (only or [name]):
            found, used = answer_and_mass(attend, q, k, v)
            off, late = found - out, slice(n // 2, None)
            row = {"method": name, "error": (off.norm() / out.norm()).item()}
            row["late"] = (off[:, :, late].norm() / out[:, :, late].norm()).item()
            row["mass"] = (used - mass).square().mean().sqrt().item() if reads else None
            rows.append(row | {"reads": round(reads, 1)})
            told = f"error {row['error']:.3f}, late {row['late']:.3f}, {reads:.0f} reads"
            print(f"{name:20} {told}", flush=True)
    return rows
