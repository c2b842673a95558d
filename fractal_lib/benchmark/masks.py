"""FlexAttention under the curves' masks. ``python -m fractal_lib.benchmark.self_attention
--masks``.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.benchmark import Measurement, Timer

from fractal_lib.benchmark.machine import check_device
from fractal_lib.self_attention.masks import (
    block_sparsity,
    cantor_mask_mod,
    dragon_mask_mod,
    hilbert_mask_mod,
    julia_mask_mod,
)

BLOCK = 128  # FlexAttention's own, and the grain of the masks that have one


def benchmark_masks(
    sizes: Sequence[int] = (1_024, 4_096),
    heads: int = 4,
    width: int = 64,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 1.0,
) -> list[dict]:
    """Time compiled FlexAttention under each curve's mask, forward, and count the blocks that it
    skips.

    Args:
        sizes: numbers of rows n; setting a mask up takes some 20 n^2 bytes.
        heads, width, device, threads, seconds: as in `benchmark_self_attention`.

    Returns:
        one record for each size and mask: ``skipped``, the share of blocks of 128 x 128,
        ``seconds`` (median) and ``iqr``.

    Raises:
        ValueError: for numbers that are not positive, or a CUDA device that is not there.

    Source: chapter ``attention/self_attention``.
    """
    if min([*sizes, heads, width, threads, seconds]) <= 0:
        raise ValueError("sizes, heads, width, threads and seconds must be positive")
    check_device(device)
    before, records = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for n in sizes:
            torch.compiler.reset()  # a size compiles for itself
            for name, mask_mod in masks(n, device).items():
                took = _time(mask_mod, n, heads, width, device, threads, seconds)
                skipped = block_sparsity(mask_mod, n, BLOCK, device)
                records.append(
                    dict(n=n, mask=name, skipped=skipped, seconds=took.median, iqr=took.iqr)
                )
                print(
                    f"{n:>7} | {name:<15} | skips {skipped:6.1%} | {1e3 * took.median:.3g} ms",
                    flush=True,
                )
    finally:
        torch.set_num_threads(before)
    return records


@torch.no_grad()
def _time(
    mask_mod: Callable, n: int, heads: int, width: int, device: str, threads: int, seconds: float
) -> Measurement:
    names = dict(zip("qkv", torch.randn(3, 1, heads, n, width, device=device), strict=True))
    names["mask"] = create_block_mask(mask_mod, None, None, n, n, device)
    names["flex"] = torch.compile(flex_attention, dynamic=False)
    timer = Timer("flex(q, k, v, block_mask=mask)", globals=names, num_threads=threads)
    timer.timeit(1)  # compiles
    return timer.blocked_autorange(min_run_time=seconds)


def masks(n: int, device: str = "cpu") -> dict[str, Callable]:
    """Each curve's mask for n rows, by name, and the mask that skips nothing."""
    order = max(1, -(-(n - 1).bit_length() // 2))
    return {
        "all": lambda b, h, q, kv: q >= 0,
        "Cantor": cantor_mask_mod(n, BLOCK, device),
        "dragon": dragon_mask_mod(),
        "Hilbert, 9 x 9": hilbert_mask_mod(order, window=9, device=device),
        "Julia, c = -6": julia_mask_mod(n, -6.0, BLOCK, device),
    }
