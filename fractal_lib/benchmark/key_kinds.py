"""Keys that are smooth, that walk and that are random: how well each way of reading far keys does."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fractal_lib.benchmark.attentions import rows_of
from fractal_lib.benchmark.machine import positive
from fractal_lib.benchmark.registry import case
from fractal_lib.progress import progress_bar

__all__ = ["KINDS", "key_kinds", "keys_of"]

KINDS = ("smooth", "random walk", "random")


def keys_of(kind: str, n: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each (1, 1, n, width) float64; values standard normal.

    "smooth" keys are eight waves and their cosines, the slowest not quite once along the rows,
    mixed at random; "random walk" keys take standard normal steps, scaled so that the walk ends as
    far off as a standard normal key is long; both are asked with queries half as long as the keys
    in their places. "random" keys and queries are standard normal.

    >>> q, k, v = keys_of("smooth", 10, 6, seed=0)
    >>> k.shape, torch.equal(q, k / 2)
    (torch.Size([1, 1, 10, 6]), True)
    """
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, 1, n, width, generator=generator, dtype=torch.float64)
    if kind == "smooth":
        angle = torch.linspace(0, 6, n, dtype=torch.float64)[:, None] * torch.arange(1, 9)
        waves = torch.cat([angle.sin(), angle.cos()], 1)  # (n, 16)
        mix = torch.randn(16, width, generator=generator, dtype=torch.float64)
        k = (waves @ mix / 8**0.5)[None, None]  # of variance 1
    elif kind == "random walk":
        k = k.cumsum(2) / n**0.5
    return (q if kind == "random" else k / 2), k, v


@case("key-kinds", records="key-kinds", choices={"only": KINDS})
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
        n, width: rows, and numbers in a key and a value.
        near, cells: of `fractal_self_attention`, causal.
        centroids: of k-means over all far keys, the mark.
        seeds: of keys, queries and values.
        only: these kinds of keys alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        ``rows``, one for each kind (``name``), seed and method, as `rows_of` makes them.

    Source: chapter ``attention/self_attention``.
    """
    positive(n=n, width=width)
    rows, kinds = [], only or KINDS
    with progress_bar(len(kinds) * len(seeds), "key-kinds", progress) as step:
        for kind in kinds:
            for seed in seeds:
                print(f"{kind}, seed {seed}")
                made = rows_of(*keys_of(kind, n, width, seed), near, cells, centroids)
                rows += [{"name": kind, "seed": seed} | row for row in made]
                step("")
            yield {"rows": rows}
