"""The curves as masks for FlexAttention: which pairs of query and key are computed
(``self_attention/near_in_content``).

Each function returns a ``mask_mod(b, h, q, kv)`` for
`torch.nn.attention.flex_attention.create_block_mask`. FlexAttention skips a block of pairs, of 128
x 128 unless asked otherwise, if none of its pairs is wanted: `block_sparsity` tells how many. To
make one causal, join it to another mask by ``and_masks`` of the same module.

They are masks of positions: an ``order`` of `fractal_lib.fractal_self_attention` by content is none
of them, since what it reads together depends on the keys.

Some patterns of `fractal_lib.attention.PATTERNS` have a function of their own, which needs a small
table or none; `pattern_masks` gives a mask for each of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from fractal_lib.attention.base import PATTERNS
from fractal_lib.attention.julia import JuliaAttention
from fractal_lib.checks import as_int
from fractal_lib.curves.cantor import cantor_indices
from fractal_lib.curves.grid import grid_cells
from fractal_lib.curves.hilbert import hilbert_decode, touching_permutation

__all__ = [
    "MaskMod",
    "block_sparsity",
    "cantor_mask_mod",
    "dragon_mask_mod",
    "hilbert_mask_mod",
    "julia_mask_mod",
    "pattern_masks",
]

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def cantor_mask_mod(n: int, grain: int = 1, device: torch.device | str = "cpu") -> MaskMod:
    """Pairs whose distance, in grains, has no digit 1 in base 3: some n^0.63 keys for each query.

    Args:
        n: number of rows that it is meant for, at least 1.
        grain: rows in a grain, at least 1. All pairs less than a grain apart are wanted. A grain as
            large as a block keeps blocks whole; a smaller one leaves blocks half empty, which saves
            no time.
        device: of the indices that it will be called with.

    Returns:
        ``mask_mod(b, h, q, kv)``: indices of any shapes that broadcast, int64 or int32 -> bool.

    Raises:
        ValueError: if ``n`` or ``grain`` is below 1.

    Complexity: a table of n / grain flags; one table entry per pair. Source: Cantor (1883); chapter
    ``self_attention/near_in_content``.

    >>> [kv for kv in range(30) if cantor_mask_mod(30)(0, 0, torch.tensor(0), torch.tensor(kv))]
    [0, 2, 6, 8, 18, 20, 24, 26]
    """
    wanted, levels = _no_distances(n, grain, device), 0
    while 3**levels < len(wanted):
        levels += 1
    distance = cantor_indices(levels).to(device)
    wanted[distance[distance < len(wanted)]] = True
    return _by_distance(wanted, grain)


def julia_mask_mod(
    n: int, c: float = -6.0, grain: int = 1, device: torch.device | str = "cpu"
) -> MaskMod:
    """Pairs whose distance, in grains, is an offset of `JuliaAttention`: n^D keys, D falling from 1
    to 0 with c.

    Args:
        n: number of rows that it is meant for, at least 1.
        c: real, below -2: the dial from dense to sparse.
        grain, device: as in `cantor_mask_mod`.

    Returns:
        ``mask_mod(b, h, q, kv)``, as `cantor_mask_mod` does.

    Raises:
        ValueError: if ``n`` or ``grain`` is below 1, or ``c`` is not a finite real number below -2.

    Complexity: a table of n / grain flags; one table entry per pair. Source: Fatou and Julia
    (1917-1918); chapters ``gallery/julia`` and ``self_attention/near_in_content``.

    >>> [kv for kv in range(64) if julia_mask_mod(64)(0, 0, torch.tensor(0), torch.tensor(kv))]
    [0, 2, 10, 11, 13, 50, 52, 53, 61, 63]
    """
    wanted = _no_distances(n, grain, device)
    distance = JuliaAttention(c).offsets(len(wanted)).abs().to(device)
    wanted[distance[distance < len(wanted)]] = True  # the dust is laid over a power of two
    return _by_distance(wanted, grain)


def dragon_mask_mod(reach: int = 2) -> MaskMod:
    """Pairs of a query and a crease that is near on its own scale: some 2 ``reach`` log2(n) keys
    for each query.

    Key kv carries crease kv + 1 = (2j + 1) 2^k of the folded strip. Creases of level k are 2^(k+1)
    apart, and one is wanted by the queries less than ``reach`` such strides away. With 2, four of
    each level: those of `DragonCurveAttention`.

    Args:
        reach: strides, at least 1.

    Returns:
        ``mask_mod(b, h, q, kv)``, as `cantor_mask_mod` does; for any n and device.

    Raises:
        ValueError: if ``reach`` is below 1.

    Complexity: O(1) per pair, no table. Source: Davis and Knuth (1970); chapters
    ``gallery/dragon`` and ``self_attention/near_in_content``.

    >>> [kv for kv in range(64) if dragon_mask_mod(1)(0, 0, torch.tensor(20), torch.tensor(kv))]
    [7, 15, 17, 19, 20, 21, 23, 27, 31, 47, 63]
    """
    reach = as_int(reach, "reach")
    if reach < 1:
        raise ValueError(f"reach must be at least 1, got {reach}")

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        crease = kv + 1
        return (q - kv).abs() < 2 * reach * (crease & -crease)  # crease & -crease is 2^k

    return mask_mod


def hilbert_mask_mod(
    order: int | None = None,
    grid: tuple[int, int] | None = None,
    window: int = 5,
    device: torch.device | str = "cpu",
) -> MaskMod:
    """Pairs of cells of a picture that are near in the plane, its rows written out along the
    Hilbert curve.

    So written, a block of rows is a compact patch, and meets few others. To write a picture out,
    use `fractal_lib.curves.grid.flatten` along `hilbert_permutation` or `touching_permutation`.

    Args:
        order: the order of the Hilbert curve, 1 to 31, for a square of side 2**order; or
        grid: (height, width) of any grid along `touching_permutation`.
        window: side, in cells, of the square around the query's cell whose keys are wanted; odd, at
            least 1.
        device: as in `cantor_mask_mod`.

    Returns:
        ``mask_mod(b, h, q, kv)``, as `cantor_mask_mod` does, for as many rows as there are cells.

    Raises:
        ValueError: unless one of ``order`` and ``grid`` is given and in range, and ``window`` is
            odd and positive.

    Complexity: two tables of as many numbers as there are cells; four table entries per pair.
    Source: Hilbert (1891); chapters ``gallery/hilbert`` and
    ``self_attention/near_in_content``.

    >>> near = hilbert_mask_mod(order=2, window=3)
    >>> [kv for kv in range(16) if near(0, 0, torch.tensor(0), torch.tensor(kv))]
    [0, 1, 2, 3]
    """
    both = f"expected either order or grid, got {order=} and {grid=}"
    if order is not None and grid is not None:
        raise ValueError(both)
    window = as_int(window, "window")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 1, got {window}")
    if order is not None:
        order = as_int(order, "order", least=1, most=31)
        x, y = hilbert_decode(torch.arange(4**order), order)
    elif grid is not None:
        x, y = (cell[touching_permutation(*grid)] for cell in grid_cells(*grid))
    else:
        raise ValueError(both)
    x, y = x.to(device), y.to(device)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return ((x[q] - x[kv]).abs() <= window // 2) & ((y[q] - y[kv]).abs() <= window // 2)

    return mask_mod


# what has a mask without a table of all pairs, for n rows on a device
OWN: dict[str, Callable[[int, torch.device | str], MaskMod]] = {
    "dragon": lambda n, device: dragon_mask_mod(),
    "hilbert": lambda n, device: hilbert_mask_mod(
        max(1, ((n - 1).bit_length() + 1) // 2), device=device
    ),
    "julia": lambda n, device: julia_mask_mod(n, device=device),
}


def pattern_masks(n: int, device: torch.device | str = "cpu") -> dict[str, MaskMod]:
    """A mask for n rows of each pattern in `fractal_lib.attention.PATTERNS`, by its name.

    By the function of this module where there is one, else by what the pattern reads with its
    default settings, row i at t = i / (n - 1): of a pooled node, all rows.

    Complexity: for each pattern without a function here a table of n^2 flags, made from n K reads.

    Raises:
        ValueError: if ``n`` is below 1.

    >>> list(pattern_masks(100))
    ['dense', 'window', 'ladder', 'multilevel', 'hilbert', 'dragon', 'julia']
    """
    n = as_int(n, "n", least=1)
    return {
        name: OWN[name](n, device) if name in OWN else made.make().mask_mod(n, device)
        for name, made in PATTERNS.items()
    }


def block_sparsity(
    mask_mod: MaskMod, n: int, block: int = 128, device: torch.device | str = "cpu"
) -> float:
    """Share of the blocks of pairs that a mask lets FlexAttention skip.

    Args:
        mask_mod: one of this module's, or any other that does not depend on sample and head.
        n: number of queries and of keys, at least 1.
        block: side of a block, at least 1.
        device: where to compute it.

    Returns:
        0 if no block is skipped, towards 1 if nearly all are.

    Raises:
        ValueError: if ``n`` or ``block`` is below 1.

    Complexity: O(n^2) time and O(n block) memory: one row of blocks at a time, and
    `BlockMask.sparsity` is not asked, which may change the mask's own counts (PyTorch 2.13).
    Source: Dong et al., Flex Attention (2024); chapter ``self_attention/near_in_content``.

    >>> block_sparsity(lambda b, h, q, kv: q >= kv, n=512)
    0.375
    """
    n, block = as_int(n, "n"), as_int(block, "block")
    if min(n, block) < 1:
        raise ValueError(f"n and block must be at least 1, got {n=}, {block=}")
    kept = 0
    for start in range(0, n, block):
        rows = min(block, n - start)
        strip = create_block_mask(_from_row(mask_mod, start), None, None, rows, n, device, block)
        kept += int(strip.kv_num_blocks.sum())
        kept += 0 if strip.full_kv_num_blocks is None else int(strip.full_kv_num_blocks.sum())
    return 1 - kept / (-(-n // block)) ** 2


def _from_row(mask_mod: MaskMod, start: int) -> MaskMod:
    return lambda b, h, q, kv: mask_mod(b, h, q + start, kv)


def _no_distances(n: int, grain: int, device: torch.device | str) -> Tensor:
    """Flags of the distances 0 to n - 1, in grains, all False."""
    n, grain = as_int(n, "n"), as_int(grain, "grain")
    if min(n, grain) < 1:
        raise ValueError(f"n and grain must be at least 1, got {n=}, {grain=}")
    return torch.zeros(-(-n // grain), dtype=torch.bool, device=device)


def _by_distance(wanted: Tensor, grain: int) -> MaskMod:
    grain = as_int(grain, "grain")
    return lambda b, h, q, kv: wanted[(q - kv).abs() // grain]
