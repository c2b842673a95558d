"""FlexAttention under the curves' masks."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from fractal_lib.attention import PATTERNS
from fractal_lib.benchmark.harness import milliseconds
from fractal_lib.benchmark.machine import check_device, positive, threads_of
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.timer import Turns
from fractal_lib.self_attention import masks as library

__all__ = ["LABELS", "benchmark_masks", "masks"]

BLOCK = 128  # FlexAttention's own, and the grain of the masks that have one
LABELS = {"cantor": "Cantor", "hilbert": "Hilbert, 9 x 9", "julia": "Julia, c = -6"}
"""What records call a mask, where that is not the name of its pattern."""


@case("masks", records="masks-*", speed={"sizes": (1_024,)})
def benchmark_masks(
    sizes: Sequence[int] = (1_024, 4_096),
    heads: int = 4,
    width: int = 64,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 1.0,
    progress: bool = True,
) -> list[dict]:
    """Time compiled FlexAttention under each curve's mask, and count the blocks that it skips.

    Args:
        sizes: numbers of rows n; setting a mask up takes some 20 n^2 bytes.
        heads, width: heads and numbers in a head of float32 queries, keys and values.
        device: of torch, "cpu" or "cuda".
        threads: of the CPU.
        seconds: measuring time for each mask, in three turns; forward passes only.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        one record for each size and mask: ``skipped``, the share of blocks of 128 x 128,
        ``seconds`` (median) and ``iqr``.

    Raises:
        ValueError: for numbers that are not positive, or a CUDA device that is not there.

    Source: chapter ``self_attention/near_in_content``.
    """
    positive(sizes=sizes, heads=heads, width=width, threads=threads, seconds=seconds)
    check_device(device)
    records = []
    with threads_of(threads), torch.no_grad():
        for n in sizes:
            torch.compiler.reset()  # a size compiles for itself
            turns, of_size = Turns[str](threads), masks(n, device)
            for name, mask_mod in of_size.items():
                turns.add(name, _call(mask_mod, n, heads, width, device))
            for name, took in turns.measure(seconds, f"n = {n}", progress).items():
                skipped = library.block_sparsity(of_size[name], n, BLOCK, device)
                record = {"n": n, "mask": name, "skipped": skipped}
                records.append(record | {"seconds": took.median, "iqr": took.iqr})
                words = f"{n:>7} | {name:<15} | skips {skipped:6.1%}"
                print(f"{words} | {milliseconds(took.median)}", flush=True)
    return records


def _call(mask_mod: Callable, n: int, heads: int, width: int, device: str) -> Callable[[], object]:
    q, k, v = torch.randn(3, 1, heads, n, width, device=device)
    mask = create_block_mask(mask_mod, None, None, n, n, device)
    flex = torch.compile(flex_attention, dynamic=False)
    return partial(flex, q, k, v, block_mask=mask)


def masks(n: int, device: str = "cpu") -> dict[str, Callable]:
    """Each curve's mask for n rows, by name, and the mask that skips nothing.

    Cantor's, which is no pattern of a context, and that of every pattern that has one.

    >>> list(masks(100))
    ['all', 'Cantor', 'Hilbert, 9 x 9', 'dragon', 'Julia, c = -6']
    """
    order = max(1, -(-(n - 1).bit_length() // 2))
    offered = {"n": n, "grain": BLOCK, "device": device, "order": order, "window": 9, "c": -6.0}
    found: dict[str, Callable] = {"all": lambda b, h, q, kv: q >= 0}
    for name in ("cantor", *PATTERNS):
        make = getattr(library, f"{name}_mask_mod", None)
        if make is not None:
            takes = inspect.signature(make).parameters
            given = {key: value for key, value in offered.items() if key in takes}
            found[LABELS.get(name, name)] = make(**given)
    return found
