"""Attention over a context at a continuous time: a pattern says where to read, one reader reads.

A module that is put into this folder is found by itself, and its pattern is entered in `PATTERNS`.
"""

import importlib
import pkgutil

# ruff: noqa: I001  (in the order of the book: it is that of PATTERNS, and of every table)
from fractal_lib.attention.base import PATTERNS, ContextAttention, Reads, pattern, position, read
from fractal_lib.attention.dense import DenseAttention
from fractal_lib.attention.window import WindowAttention
from fractal_lib.attention.fractal import FractalAttention
from fractal_lib.attention.multilevel import MultilevelAttention
from fractal_lib.attention.hilbert import HilbertCurveAttention
from fractal_lib.attention.dragon import DragonCurveAttention
from fractal_lib.attention.julia import JuliaAttention
from fractal_lib.attention.kernels import RBF, Kernel, Matern12, OriginalKernel, RationalQuadratic
from fractal_lib.attention.mixture import MixtureAttention
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.tree import Tree
from fractal_lib.attention.choose import Choice, choose_reader

__all__ = [
    "PATTERNS",
    "RBF",
    "Choice",
    "ContextAttention",
    "DenseAttention",
    "DragonCurveAttention",
    "FractalAttention",
    "HilbertCurveAttention",
    "JuliaAttention",
    "Kernel",
    "Matern12",
    "MixtureAttention",
    "MultilevelAttention",
    "OriginalKernel",
    "Pyramid",
    "RationalQuadratic",
    "Reads",
    "Tree",
    "WindowAttention",
    "choose_reader",
    "pattern",
    "position",
    "read",
]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
for _attention in PATTERNS.values():  # a new pattern is public without a line here
    globals().setdefault(_attention.__name__, _attention)
    if _attention.__name__ not in __all__:
        __all__ += [_attention.__name__]
