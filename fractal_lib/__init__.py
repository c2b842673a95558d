"""Attention whose reads follow fractal patterns, and the book that builds it."""

from fractal_lib.attention.cells import Cells
from fractal_lib.attention.dense import DenseAttention
from fractal_lib.attention.dragon import DragonCurveAttention
from fractal_lib.attention.fractal import FractalAttention
from fractal_lib.attention.hilbert import HilbertCurveAttention
from fractal_lib.attention.julia import JuliaAttention
from fractal_lib.attention.kernels import Cauchy, Exponential, Gaussian, Kernel, OriginalKernel, PowerLaw
from fractal_lib.attention.mixture import MixtureAttention
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.reads import ContextAttention, Reads, read
from fractal_lib.attention.self_attention import FractalSelfAttention, fractal_attention
from fractal_lib.attention.window import WindowAttention
from fractal_lib.curves.julia import julia_set_attention
from fractal_lib.posterior.heads import PosteriorAffine, UltimateFractalPosteriorAffine

__version__ = "0.1.0"

__all__ = [
    "Cauchy", "Cells", "ContextAttention", "DenseAttention", "DragonCurveAttention", "Exponential",
    "FractalAttention", "FractalSelfAttention", "Gaussian", "HilbertCurveAttention", "JuliaAttention", "Kernel",
    "MixtureAttention", "OriginalKernel", "PosteriorAffine", "PowerLaw", "Pyramid", "Reads",
    "UltimateFractalPosteriorAffine", "WindowAttention", "fractal_attention", "julia_set_attention", "read",
]  # fmt: skip
