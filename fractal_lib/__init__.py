"""Attention whose reads follow fractal patterns, and the book that builds it."""

from fractal_lib.attention.cells import Cells
from fractal_lib.attention.dense import DenseAttention
from fractal_lib.attention.fractal import FractalAttention
from fractal_lib.attention.kernels import Cauchy, Exponential, Gaussian, Kernel, OriginalKernel, PowerLaw
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.reads import ContextAttention, Reads, read
from fractal_lib.attention.window import WindowAttention

__version__ = "0.1.0"

__all__ = [
    "Cauchy", "Cells", "ContextAttention", "DenseAttention", "Exponential", "FractalAttention", "Gaussian",
    "Kernel", "OriginalKernel", "PowerLaw", "Pyramid", "Reads", "WindowAttention", "read",
]  # fmt: skip
