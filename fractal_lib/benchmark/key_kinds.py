"""Keys that are smooth, that walk and that are random: the error of each way to read far keys."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fractal_lib.benchmark.attentions import WAYS, rows_of
from fractal_lib.benchmark.machine import positive
from fractal_lib.benchmark.registry import case
from fractal_lib.progress import progress_bar

__all__ = ["KINDS", "key_kinds", "keys_of"]

KINDS = ("smooth", "random walk", "random")


def keys_of(kind: str, n: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each (1, 1, n, width) float64, values standard normal.

    "smooth" keys are four waves and their cosines, the slowest not quite once along the rows, in
    eight of the ``width`` dimensions, turned at random; they are asked with twice themselves, and
    logits have the scale of eight dimensions. "random walk" keys take standard normal steps, scaled
    so that the walk ends as far off as a standard normal key is long, and are asked with half
    themselves. "random" keys and queries are standard normal.

    >>> q, k, v = keys_of("random walk", 10, 8, seed=0)
    >>> k.shape, torch.equal(q, k / 2)
    (torch.Size([1, 1, 10, 8]), True)
    """
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, 1, n, width, generator=generator, dtype=torch.float64)
    if kind == "smooth":
        angle = torch.linspace(0, 6, n, dtype=torch.float64)[:, None] * torch.arange(1, 5)
        waves = torch.cat([angle.sin(), angle.cos()], 1)  # (n, 8)
        turn = torch.linalg.qr(k[0, 0, :width]).Q[:, :8]  # (width, 8), orthonormal
        k = (waves @ turn.T)[None, None]
        q = 2 * (width / 8) ** 0.5 * k
    elif kind == "random walk":
        k = k.cumsum(2) / n**0.5
        q = k / 2
    return q, k, v


@case("key-kinds", records="key-kinds", choices={"only": WAYS})
def key_kinds(
    n: int = 1024,
    width: int = 64,
    near: int = 64,
    cells: int = 16,
    centroids: int = 96,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    only: Sequence[str] | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Tell the error of every way to read far keys that are smooth, that walk or that are random.

    Args:
        n, width: rows, and numbers in a key and a value, eight at least and n at most.
        near, cells: of `fractal_self_attention`, causal.
        centroids: of k-means over all far keys, the mark.
        seeds: of keys, queries and values.
        only: these ways and rivals alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        ``rows``, one for each kind (``name``), seed and method, as `rows_of` makes them.

    Source: chapter ``self_attention/near_in_content``.
    """
    positive(n=n, width=width)
    rows: list[dict] = []
    with progress_bar(len(KINDS) * len(seeds), "key-kinds", progress) as step:
        for kind in KINDS:
            for seed in seeds:
                print(f"{kind}, seed {seed}")
                made = rows_of(*keys_of(kind, n, width, seed), near, cells, centroids, only)
                rows += [{"name": kind, "seed": seed} | row for row in made]
                step("")
            yield {"rows": rows}
