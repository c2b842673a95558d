"""Beyond one machine, on plain `torch.distributed`: a pyramid, self-attention and training over
rows that are shared out among processes (chapter ``scale/beyond_one_machine``).

``import fractal_lib`` does not import this; training is in `fractal_lib.distributed.training`,
which imports what torch has for checkpoints.
"""

from fractal_lib.distributed.exchange import Shards, Traffic, counted
from fractal_lib.distributed.pyramid import ShardedPyramid
from fractal_lib.distributed.self_attention import fractal_self_attention
from fractal_lib.distributed.stretch import ShardedDataPyramid, Stretch, prepare

__all__ = [
    "ShardedDataPyramid",
    "ShardedPyramid",
    "Shards",
    "Stretch",
    "Traffic",
    "counted",
    "fractal_self_attention",
    "prepare",
]
