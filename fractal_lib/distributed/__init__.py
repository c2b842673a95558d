"""Beyond one machine, on plain `torch.distributed`: a pyramid, self-attention and training over
rows that are shared out among processes (chapter ``scale/beyond_one_machine``).

``import fractal_lib`` does not import this.
"""

from fractal_lib.distributed.exchange import Shards, Traffic, counted
from fractal_lib.distributed.pyramid import ShardedPyramid
from fractal_lib.distributed.self_attention import fractal_self_attention

__all__ = ["ShardedPyramid", "Shards", "Traffic", "counted", "fractal_self_attention"]
