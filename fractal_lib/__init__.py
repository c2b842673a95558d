"""Attention whose reads follow fractal patterns, and the book that builds it.

The parts by name: `fractal_lib.attention` (over a context at a time t),
`fractal_lib.self_attention`, `fractal_lib.posterior` (latent SDEs), `fractal_lib.inference` (exact
and rival smoothers), `fractal_lib.curves`, `fractal_lib.data`, and `fractal_lib.benchmark`, which
is not imported here.
"""

from fractal_lib import attention, posterior, self_attention
from fractal_lib.attention import *  # noqa: F403
from fractal_lib.curves.julia import julia_set_attention
from fractal_lib.posterior import *  # noqa: F403
from fractal_lib.self_attention import *  # noqa: F403

__version__ = "0.2.0"

__all__ = [
    *attention.__all__,
    *self_attention.__all__,
    *posterior.__all__,
    "julia_set_attention",
]
