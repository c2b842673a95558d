"""Peak memory, each reading in a process of its own: a query's does not grow with n; a pyramid's is
twice the rows'.
"""

import subprocess
import sys

import pytest

CHILD = """
import sys, torch
from fractal_lib import DenseAttention, FractalAttention, MultilevelAttention
from fractal_lib import Pyramid, RationalQuadratic, WindowAttention
torch.set_num_threads(1)

def peak():
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the high-water mark falls back to what is resident now
    return high_water()

def high_water():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

what, n = sys.argv[1], int(sys.argv[2])
attention = {
    "dense": DenseAttention,
    "window": WindowAttention,
    "ladder": FractalAttention,
    "pyramid": lambda: FractalAttention(source="pyramid"),
    "multilevel": lambda: MultilevelAttention(RationalQuadratic(1.0, alpha=0.5)),
    "build": FractalAttention,
}[what]()
t = torch.rand(1, 4)
with torch.no_grad():
    attention(torch.ones(1, 1000, 8), t)  # what torch allocates once
    Pyramid(torch.ones(1, 1000, 8))
    rows = torch.ones(1, n, 8)
    context = attention.prepare(rows)
    before = peak()
    Pyramid(rows) if what == "build" else attention(context, t)
print(high_water() - before)
"""


def extra(what, n):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, what, str(n)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("what", ["window", "ladder", "pyramid", "multilevel"])
def test_a_query_needs_no_more_memory_at_ten_million_rows(what):
    small, large = extra(what, 10_000), extra(what, 10_000_000)
    # the rows themselves are 320 MB; pages of the allocator are what differs
    assert large - small < 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_measurement_sees_what_grows():
    # at least one weight a row
    assert extra("dense", 1_000_000) - extra("dense", 10_000) > 1_000_000 * 8


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_pyramid_needs_twice_the_rows_memory():
    n = 10_000_000
    assert extra("build", n) <= 2 * n * 8 * 4 + 2**20
