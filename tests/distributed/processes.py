"""Functions run by several processes at once, each with its rank, joined by gloo on the loopback.

A fork server imports torch once; every process is a fork of it, clean of what the tests have done.
"""

import contextlib
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait

CONTEXT = multiprocessing.get_context("forkserver")
# the last is what torch imports in the first backward pass with a gradient, for seconds
CONTEXT.set_forkserver_preload(
    [
        "torch._dynamo",
        "fractal_lib.distributed.training",
        "torch.fx.experimental.symbolic_shapes",
    ]
)
LIMIT = 60  # seconds


def stretches(n, size, uneven=False):
    """The rows of each rank, as slices."""
    bounds = [rank * n // size for rank in range(size + 1)]
    if uneven and size > 1:
        bounds[1] = max(1, n // 7)
    return [slice(*pair) for pair in zip(bounds[:-1], bounds[1:], strict=True)]


def run(size, folder, function, *arguments, limit=LIMIT, lost=()):
    """What ``function(rank, size, *arguments)`` returns on each of ``size`` ranks, in their order;
    None for ranks that are ``lost`` on purpose.

    Whatever happens, it ends within the limit and leaves no process behind.
    """
    store = folder / f"store-{time.monotonic_ns()}"
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(size)]
    processes = [
        CONTEXT.Process(
            target=_work, args=(rank, size, str(store), send, function, arguments), daemon=True
        )
        for rank, (_, send) in enumerate(pipes)
    ]
    found, deadline = {}, time.monotonic() + limit
    try:
        for process, (_, send) in zip(processes, pipes, strict=True):
            process.start()
            send.close()
        waiting = {receive: rank for rank, (receive, _) in enumerate(pipes)}
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"ranks {sorted(waiting.values())} took more than {limit} s")
            for receive in ready:
                rank = waiting.pop(receive)
                try:
                    good, result = pickle.loads(receive.recv_bytes())
                except EOFError:
                    if rank not in lost:
                        raise RuntimeError(f"rank {rank} ended without a result") from None
                    good, result = True, None
                if not good:
                    raise RuntimeError(f"rank {rank} of {size}: {result}")
                found[rank] = result
    finally:
        for process in processes:
            if process.pid is not None:
                process.join(5 if len(found) == size else 0)
                if process.is_alive():
                    process.kill()
                    process.join()
        for receive, _ in pipes:
            receive.close()
    return [found[rank] for rank in range(size)]


def _work(rank, size, store, send, function, arguments):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if sys.platform == "linux":  # a host's name may lead nowhere
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        dist.init_process_group(
            "gloo", f"file://{store}", timedelta(seconds=40), rank=rank, world_size=size
        )
        result = True, function(rank, size, *arguments)
    except BaseException:
        result = False, traceback.format_exc()
    send.send_bytes(pickle.dumps(result))  # tensors by value, not by shared memory
    if result[0]:
        with contextlib.suppress(RuntimeError):  # of a rank that is lost
            dist.barrier()  # who ends early closes what others still read
            dist.destroy_process_group()
