"""The doors: what users bring, turned into tensors, or refused in one sentence with expected and
got; and constants that are kept.
"""

import functools
import importlib
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

__all__ = [
    "as_float",
    "as_int",
    "as_integers",
    "as_mask",
    "as_positive",
    "as_tensor",
    "kept",
    "optional",
    "require",
]

Function = TypeVar("Function", bound=Callable)


def require(
    holds: Callable[[], Tensor], message: str, details: Callable[[], object] | None = None
) -> None:
    """Raise ValueError unless ``holds()`` is true, where its value can be known.

    Compiled graphs, vmap and the meta device have no concrete values to look at; they skip the
    check. An error inside ``holds`` itself is passed on.

    >>> require(lambda: torch.tensor(False), "expected {}", lambda: "better")
    Traceback (most recent call last):
    ...
    ValueError: expected better
    """
    if torch.compiler.is_compiling():
        return
    result = holds()
    if result.device.type == "meta":
        return
    try:
        true = bool(result)
    except RuntimeError as error:
        if "vmap" in str(error):  # data-dependent control flow
            return
        raise
    if not true:
        raise ValueError(message.format(details()) if details else message)


def as_tensor(value: object, name: str) -> Tensor:
    """A tensor, or what numpy makes an array of numbers or flags of: arrays, lists, pandas,
    numbers.

    Tensors pass as they are. Arrays keep their dtype and share their memory where that is safe;
    Python's own floats get torch's default dtype, as by `torch.tensor`.

    Raises:
        TypeError: for anything else.

    >>> as_tensor([0.5, 1], "t").dtype, as_tensor(np.ones(2), "t").dtype
    (torch.float32, torch.float64)
    """
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:  # a ragged list
        raise TypeError(f"{name} must be a tensor or an array, got a ragged list") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} must be a tensor or an array of numbers, got {type(value).__name__} "
            f"of {array.dtype}"
        )
    if array.dtype.kind == "f" and not hasattr(value, "dtype") and not hasattr(value, "dtypes"):
        array = array.astype(str(torch.get_default_dtype()).removeprefix("torch."))
    # of another byte order, or long double
    native = "b1" if array.dtype.kind == "b" else f"{array.dtype.kind}{min(array.itemsize, 8)}"
    array = array.astype(native, copy=False)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def as_float(value: object, name: str) -> Tensor:
    """As `as_tensor`, and floating point; whole numbers from Python are unambiguous, integer
    tensors not.

    Raises:
        TypeError: for an integer, bool or complex tensor or array.

    >>> as_float(1, "t")
    tensor(1.)
    """
    plain = not hasattr(value, "dtype") and not hasattr(value, "dtypes")
    tensor = as_tensor(value, name)
    if plain and tensor.dtype == torch.int64:
        return tensor.to(torch.get_default_dtype())
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    return tensor


def as_integers(
    value: object, name: str, least: int | None = None, most: int | None = None
) -> Tensor:
    """As `as_tensor`, of whole numbers, as int64, within bounds; bool is refused.

    Raises:
        TypeError: for another dtype. ValueError: for a number out of bounds, where the numbers are
            known: compiled graphs and vmap know none.

    >>> as_integers(np.array([3], dtype=np.int32), "step", least=0)
    tensor([3])
    """
    tensor = as_tensor(value, name)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be whole numbers, got {tensor.dtype}")
    tensor = tensor.long()
    if tensor.numel():
        require(
            lambda: (
                ((tensor >= least) if least is not None else tensor == tensor).all()
                & ((tensor <= most) if most is not None else tensor == tensor).all()
            ),
            f"expected {name} {_bounds(least, most)}, got {{0[0]}} to {{0[1]}}",
            lambda: (int(tensor.min()), int(tensor.max())),
        )
    return tensor


def as_mask(value: object, name: str = "observed", device: torch.device | None = None) -> Tensor:
    """As `as_tensor`, of bool, on the device.

    Raises:
        TypeError: for another dtype.

    >>> as_mask([True, False])
    tensor([ True, False])
    """
    tensor = as_tensor(value, name)
    if tensor.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {tensor.dtype}")
    return tensor if device is None else tensor.to(device)


def as_int(value: Any, name: str, least: int | None = None, most: int | None = None) -> int:
    """An int from whatever counts as one (numpy's integers too), within bounds.

    Raises:
        TypeError: for anything that is not a whole number. ValueError: for one out of bounds.

    >>> as_int(np.int64(3), "order", least=1)
    3
    """
    if not isinstance(value, int):
        try:
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            got = type(value).__name__
            raise TypeError(f"expected {name} as a whole number, got {got} {value!r}") from None
    if (least is not None and value < least) or (most is not None and value > most):
        raise ValueError(f"expected {name} {_bounds(least, most)}, got {value}")
    return value


def as_positive(value: object, name: str) -> float:
    """A positive, finite number from whatever holds one (numpy's and tensors too).

    Raises:
        TypeError: for what is no single number. ValueError: for one that is not positive and
            finite.

    >>> as_positive(np.float32(0.5), "dt")
    0.5
    """
    try:
        number = float(np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value))
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, str | bytes):
        got = type(value).__name__
        raise TypeError(f"expected {name} as one number, got {got} {value!r}") from None
    if not 0 < number < float("inf"):
        raise ValueError(f"expected {name} as a positive, finite number, got {number}")
    return number


def _bounds(least: int | None, most: int | None) -> str:
    if least is None or most is None:
        return f"of at most {most}" if least is None else f"of at least {least}"
    return f"from {least} to {most}"


def kept(maxsize: int = 64) -> Callable[[Function], Function]:
    """As `functools.lru_cache`, for constant tables, which must serve whoever asks next.

    They are made on the CPU and as plain tensors, even if the first who asks is in inference mode,
    on another default device, or is traced, as by `torch.export`, where tensors are fakes.

    >>> @kept(maxsize=1)
    ... def table(n):
    ...     return torch.arange(n)
    >>> with torch.inference_mode(), torch.device("meta"):
    ...     first = table(3)
    >>> first.device.type, first.is_inference(), table(3) is first
    ('cpu', False, True)
    """

    def decorate(function: Function) -> Function:
        @functools.lru_cache(maxsize)
        @functools.wraps(function)
        def make(*args):
            plain = _disable_current_modes(), torch.inference_mode(False), torch.no_grad()
            with plain[0], plain[1], plain[2], torch.device("cpu"):
                return function(*args)

        return make  # type: ignore[return-value]

    return decorate


def optional(module: str, what: str) -> ModuleType:
    """A module that `pip install fractal-lib` does not bring, or one sentence that says how to get
    it.

    Args:
        module: its full name.
        what: who asks, as it starts the sentence.

    Raises:
        ImportError: if it is not installed.

    >>> optional("no_such_module", "fit()")
    Traceback (most recent call last):
    ...
    ImportError: fit() needs no_such_module: pip install no_such_module
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        package = {"sklearn": "scikit-learn", "PIL": "pillow"}.get(root, root)
        raise ImportError(f"{what} needs {package}: pip install {package}") from error
