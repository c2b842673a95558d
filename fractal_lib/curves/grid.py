"""Permutations: in which order to walk over the cells of a grid, and pictures written out along
them.

Chapter ``gallery/hilbert``. A permutation is an int64 vector: ``permutation[k]`` is the flat
index ``row * width + column`` of the k-th cell of the walk. Cells are ``(x, y)``: x counts columns,
y rows, from 0.
"""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fractal_lib.checks import as_int, as_integers, as_tensor

__all__ = [
    "check_range",
    "flatten",
    "grid_cells",
    "integers",
    "inverse_permutation",
    "morton_decode",
    "morton_encode",
    "morton_permutation",
    "raster_permutation",
    "unflatten",
]

Array = TypeVar("Array", np.ndarray, Tensor)

_SPREAD = (  # shift, and the bits that stay after it
    (16, 0x0000FFFF0000FFFF),
    (8, 0x00FF00FF00FF00FF),
    (4, 0x0F0F0F0F0F0F0F0F),
    (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)


def integers(top: int, **arrays: Any) -> list[Tensor]:
    """The arguments as int64 tensors (arrays share their memory), in [0, ``top``]; tensors and
    numpy arrays are not mixed, lists and numbers go with either.

    >>> integers(4, x=np.array([3]))
    [tensor([3])]
    >>> integers(4, x=np.array([5]))
    Traceback (most recent call last):
    ...
    ValueError: expected x from 0 to 4, got 5 to 5
    """
    tensors = [as_integers(values, name, 0, top) for name, values in arrays.items()]
    kinds = {type(v) for v in arrays.values() if isinstance(v, np.ndarray | Tensor)}
    if len(kinds) > 1:
        raise TypeError(
            f"expected {' and '.join(arrays)} of one kind, got a tensor and a numpy array"
        )
    return tensors


def check_range(name: str, values: Tensor, top: int) -> None:
    """Raise ValueError unless all values are in [0, ``top``]; compiled graphs and vmap, which know
    none, skip it.
    """
    if torch.compiler.is_compiling() or not values.numel():
        return
    try:
        low, high = (v.item() for v in torch.aminmax(values.detach()))
    except RuntimeError as error:
        if "vmap" in str(error):
            return
        raise
    if not 0 <= low <= high <= top:  # nan fails too
        raise ValueError(f"expected {name} in [0, {top}], got {low} to {high}")


def morton_encode(x: Array, y: Array) -> Array:
    """Place of each cell along the Z-order curve: the bits of y and x, in turns.

    Args:
        x, y: whole numbers in [0, 2**31): tensors, numpy arrays, lists or numbers, shapes that
            broadcast.

    Returns:
        int64 in [0, 2**62) of the broadcast shape, an array if an array was given.

    Raises:
        TypeError, ValueError: for another kind, or values outside the range.

    Complexity: O(1) per cell, some 30 operations on whole words. Source: Morton (1966); chapter
    ``gallery/hilbert``.

    >>> morton_encode(torch.tensor([0, 1, 0, 1, 2]), torch.tensor([0, 0, 1, 1, 0]))
    tensor([0, 1, 2, 3, 4])
    """
    spread = []
    for v in integers((1 << 31) - 1, x=x, y=y):
        for shift, keep in _SPREAD:
            v = (v | v << shift) & keep
        spread.append(v)
    d = spread[0] | spread[1] << 1
    return d.numpy() if isinstance(x, np.ndarray) or isinstance(y, np.ndarray) else d


def morton_decode(d: Array) -> tuple[Array, Array]:
    """The cell at each place along the Z-order curve.

    Args:
        d: whole numbers in [0, 2**62), of any shape: a tensor, numpy array, list or number.

    Returns:
        x, y: int64 of the kind and shape of ``d``, in [0, 2**31).

    Raises:
        TypeError, ValueError: for another kind, or values outside the range.

    Complexity: O(1) per cell. Source: Morton (1966); chapter ``gallery/hilbert``.

    >>> morton_decode(torch.arange(4))
    (tensor([0, 1, 0, 1]), tensor([0, 0, 1, 1]))
    """
    (code,) = integers((1 << 62) - 1, d=d)
    cell = []
    for v in (code, code >> 1):
        v = v & _SPREAD[-1][1]
        # backwards: each shift is undone under the mask that stood before it
        for (shift, _), (_, keep) in zip(
            _SPREAD[::-1], [*_SPREAD[-2::-1], (0, 0x00000000FFFFFFFF)], strict=True
        ):
            v = (v | v >> shift) & keep
        cell.append(v.numpy() if isinstance(d, np.ndarray) else v)
    return cell[0], cell[1]


def grid_cells(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Columns x and rows y of all cells in raster order, each (height * width,) int64.

    >>> grid_cells(2, 3)
    (tensor([0, 1, 2, 0, 1, 2]), tensor([0, 0, 0, 1, 1, 1]))
    """
    height, width = as_int(height, "height", 1, 1 << 31), as_int(width, "width", 1, 1 << 31)
    cell = torch.arange(height * width)
    return cell % width, cell // width


def raster_permutation(height: int, width: int) -> Tensor:
    """Row after row: the order in which pictures are stored.

    Returns:
        (height * width,) int64.

    >>> raster_permutation(2, 3)
    tensor([0, 1, 2, 3, 4, 5])
    """
    return torch.arange(len(grid_cells(height, width)[0]))


def morton_permutation(height: int, width: int) -> Tensor:
    """The cells of a grid in the order of the Z-order curve of the enclosing square.

    Args:
        height, width: of the grid, at least 1; any sizes.

    Returns:
        (height * width,) int64, a permutation of the flat indices.

    Complexity: O(n log n) for n cells. Source: chapter ``gallery/hilbert``.

    >>> morton_permutation(2, 3)
    tensor([0, 1, 3, 4, 2, 5])
    """
    return morton_encode(*grid_cells(height, width)).argsort()


def inverse_permutation(permutation: Tensor) -> Tensor:
    """Where each cell stands in a permutation: ``inverse_permutation(permutation)[permutation[k]]
    == k``.

    >>> inverse_permutation(torch.tensor([2, 0, 1]))
    tensor([1, 2, 0])
    """
    permutation = as_integers(permutation, "permutation", least=0)
    if not torch.compiler.is_compiling() and len(permutation.unique()) != len(permutation):
        raise ValueError("expected a permutation, got a number twice")
    place = torch.empty_like(permutation)
    place[permutation] = torch.arange(len(permutation), device=permutation.device)
    return place


def flatten(image: Array, permutation: Tensor) -> Array:
    """Write pictures out along a permutation.

    Args:
        image: (..., H, W) tensor or numpy array.
        permutation: (H * W,) int64.

    Returns:
        (..., H * W), of the kind of ``image``: element k is the cell ``permutation[k]``.

    Raises:
        ValueError: if the permutation is not as long as the picture has cells.

    >>> flatten(torch.tensor([[10, 20], [30, 40]]), torch.tensor([0, 2, 3, 1]))
    tensor([10, 30, 40, 20])
    """
    permutation = as_integers(permutation, "permutation")
    image = image if isinstance(image, np.ndarray) else as_tensor(image, "image")
    if image.ndim < 2 or image.shape[-2] * image.shape[-1] != len(permutation):
        raise ValueError(
            f"expected a picture (..., H, W) of {len(permutation)} cells, "
            f"got shape {tuple(image.shape)}"
        )
    cells = image.reshape(*image.shape[:-2], len(permutation))
    return cells[
        ..., permutation.numpy(force=True) if isinstance(image, np.ndarray) else permutation
    ]


def unflatten(values: Array, permutation: Tensor, height: int, width: int) -> Array:
    """Lay a sequence down along a permutation: the inverse of `flatten`.

    Args:
        values: (..., H * W) tensor or numpy array.
        permutation: (H * W,) int64.
        height, width: H and W.

    Returns:
        (..., H, W), of the kind of ``values``.

    Raises:
        ValueError: if the lengths do not agree.

    >>> unflatten(torch.tensor([10, 30, 40, 20]), torch.tensor([0, 2, 3, 1]), 2, 2)
    tensor([[10, 20],
            [30, 40]])
    """
    permutation = as_integers(permutation, "permutation")
    values = values if isinstance(values, np.ndarray) else as_tensor(values, "values")
    if not values.shape[-1] == len(permutation) == height * width:
        raise ValueError(
            f"expected {height * width} values, got {values.shape[-1]} and a permutation of "
            f"{len(permutation)}"
        )
    place = inverse_permutation(permutation)
    cells = values[..., place.numpy(force=True) if isinstance(values, np.ndarray) else place]
    return cells.reshape(*values.shape[:-1], height, width)
