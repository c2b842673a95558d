"""A needle in a haystack: one key, far away, is what the query asks for."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fractal_lib.benchmark.attentions import FAR, far, num_read
from fractal_lib.benchmark.machine import positive
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.transformer import Attend
from fractal_lib.progress import progress_bar

__all__ = ["haystack", "needle"]

NEEDLES, ABOVE, MEAN = 16, 8.0, "mean of the values"


def haystack(n: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k and v, each (1, 1, n, width) float32 standard normal, and the places (16,) of queries
    that ask for one key each: they are parallel to it, and its logit is log(n) + 8.

    The other n logits of such a query have a standard deviation of (log(n) + 8) / |key|, about 2
    with a width of 64, so its needle has nearly all the weight at any n here. Needles are in the
    first half, those who ask in the last quarter, both at random.

    >>> q, k, v, rows = haystack(200, 64, seed=0)
    >>> weights = (q[0, 0, rows] @ k[0, 0].T / 8).softmax(-1)
    >>> weights.max(-1).values.mean() > 0.95
    tensor(True)
    """
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, 1, n, width, generator=generator)
    count = min(NEEDLES, n // 4)
    place = torch.randperm(n // 2, generator=generator)[:count]
    rows = n - 1 - torch.randperm(n // 4, generator=generator)[:count]
    needles = k[:, :, place]
    logit = math.log(n) + ABOVE
    q[:, :, rows] = needles * logit * width**0.5 / needles.square().sum(-1, keepdim=True)
    return q, k, v, rows


def asked(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """Exact causal attention of some queries alone, in float64: (1, 1, rows, D)."""
    logits = q[:, :, rows].double() @ k.double().mT / q.shape[-1] ** 0.5
    ahead = torch.arange(k.shape[2]) > rows[:, None]
    return logits.masked_fill(ahead, -torch.inf).softmax(-1) @ v.double()


@case("needle", records="needle", choices={"only": (MEAN, *FAR)})
def needle(
    sizes: Sequence[int] = (2_048, 16_384, 65_536),
    width: int = 64,
    near: int = 64,
    cells: int = 16,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    only: Sequence[str] | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Ask for single keys among many random ones, and tell the error of every way to read them.

    Args:
        sizes: numbers of rows n.
        width: numbers in a key and a value.
        near, cells: of `fractal_self_attention`, causal.
        seeds: of keys, queries and values.
        only: these ways alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        ``rows``, one for each n, seed and method: relative ``error`` over the 16 queries that ask
        for a needle, and how many keys and cells one of them ``reads`` at most.

    Source: chapter ``self_attention/opening``.
    """
    positive(sizes=sizes, width=width)
    rows = []
    with progress_bar(len(sizes) * len(seeds), "needle", progress) as step:
        for n in sizes:
            ways: dict[str, Attend] = {
                name: attend for name, attend in far(near, cells).items() if name in (only or FAR)
            }
            for seed in seeds:
                q, k, v, places = haystack(n, width, seed)
                out = asked(q, k, v, places)
                mean = v.double().cumsum(2)[:, :, places] / (places[:, None] + 1)
                answers = {MEAN: mean} if MEAN in (only or [MEAN]) else {}
                answers |= {name: attend(q, k, v)[:, :, places] for name, attend in ways.items()}
                for name, answer in answers.items():
                    opened = FAR.get(name, {}).get("opened", 0)
                    read = num_read(n, near, cells, opened=opened)[places].max().item()
                    row = {"n": n, "seed": seed, "method": name}
                    row |= {"error": ((answer - out).norm() / out.norm()).item()}
                    rows.append(row | {"reads": read if name in ways else 0})
                    print(f"n = {n}, seed {seed}, {name:20} error {rows[-1]['error']:.3f}")
                step("")
            yield {"rows": rows}
