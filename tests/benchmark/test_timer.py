"""The timer warms up and takes turns; the memory meter is right wherever it runs.

Where seconds are asserted, a clock that the test itself moves gives them.
"""

import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils.benchmark import Timer

from fractal_lib.benchmark import masks, peak, timer
from fractal_lib.benchmark.harness import benchmark_attention_methods
from fractal_lib.benchmark.heads import benchmark_heads
from fractal_lib.benchmark.hilbert_speed import hilbert_speed
from fractal_lib.benchmark.peak import high_water, high_water_mb, peak_memory
from fractal_lib.benchmark.posterior_cost import posterior_cost
from fractal_lib.benchmark.self_attention import benchmark_self_attention
from fractal_lib.benchmark.timer import TURNS, Clock, Turns


def test_the_first_call_is_made_before_the_clock_starts(monkeypatch):
    log, real = [], Timer.blocked_autorange

    def clocked(self, *arguments, **settings):
        log.append("clock")
        return real(self, *arguments, **settings)

    monkeypatch.setattr(Timer, "blocked_autorange", clocked)
    turns = Turns()
    for name in "ab":
        assert turns.add(name, lambda name=name: log.append(name) or len(log)) == len(log)
    assert log == ["a", "b"]
    turns.measure(1e-3, progress=False)
    clocks = [i for i, what in enumerate(log) if what == "clock"]
    assert clocks[0] == 2 and len(clocks) == 2 * TURNS
    assert [log[i + 1] for i in clocks] == ["a", "b"] * TURNS


def test_a_first_call_that_compiles_is_in_no_figure(monkeypatch):
    """Even where the timer would make no call beyond those that it measures."""
    monkeypatch.setattr(Timer, "_estimate_block_size", lambda self, min_run_time: 1)
    called, now = [], [0.0]
    monkeypatch.setattr(timer, "Timer", partial(Timer, timer=lambda: now[0]))

    def compiles_first():
        now[0] += 1e-5 if called else 0.3
        called.append(1)

    turns = Turns()
    turns.add("slow at first", compiles_first)
    took = turns.measure(1e-5, progress=False)["slow at first"]  # a block a turn
    assert took.quartiles[1] < 2e-5 and took.blocks == len(called) - 1


TINY = dict(sizes=[9], seconds=1e-4, progress=False)
BENCHMARKS = {
    "context": partial(benchmark_attention_methods, batch=1, hidden=2, queries=1, **TINY),
    "heads": partial(benchmark_heads, batch=1, hidden=2, queries=1, **TINY),
    "self-attention": partial(
        benchmark_self_attention, heads=1, width=4, near=4, cells=2, memory=False, **TINY
    ),
    "hilbert": partial(hilbert_speed, cells=9, order=3, seconds=1e-4, progress=False),
    "posterior": partial(posterior_cost, batch=1, hidden=2, **TINY),
    "masks": partial(masks.benchmark_masks, heads=1, width=16, **TINY),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_benchmark_times_a_call_that_was_not_warmed_up(name, monkeypatch, capsys):
    """The very function that the clock gets has been called, whole, before any clock starts."""
    warm, cold = set(), []

    class Spy(Timer):
        def __init__(self, stmt, globals, num_threads):
            self.call = globals["call"]
            super().__init__(stmt, globals=globals, num_threads=num_threads)

        def blocked_autorange(self, **settings):
            cold.extend([] if id(self.call) in warm else [self.call])
            return super().blocked_autorange(**settings)

    def add(self, key, call):
        def counted():
            result = call()
            warm.add(id(counted))
            return result

        return original(self, key, counted)

    original = Turns.add
    monkeypatch.setattr(Turns, "add", add)
    monkeypatch.setattr("fractal_lib.benchmark.timer.Timer", Spy)
    monkeypatch.setattr(masks.torch, "compile", lambda call, **settings: call)  # for time
    monkeypatch.setattr(masks, "flex_attention", lambda q, k, v, block_mask: q)
    BENCHMARKS[name]()
    assert warm and not cold


def test_median_and_quartiles_are_of_all_turns(monkeypatch):
    given = iter([[1.0, 2.0], [3.0], [4.0, 5.0]])
    found = lambda self, min_run_time: SimpleNamespace(times=next(given))  # noqa: E731
    monkeypatch.setattr(Timer, "blocked_autorange", found)
    turns = Turns()
    turns.add("it", int)
    took = turns.measure(1.0, progress=False)["it"]
    assert (took.median, took.quartiles, took.iqr, took.blocks) == (3.0, (2.0, 4.0), 2.0, 5)


def test_a_key_is_timed_once():
    turns = Turns()
    turns.add("it", int)
    with pytest.raises(ValueError, match="'it' is timed already"):
        turns.add("it", int)


def test_the_clock_adds_up_and_leaves_out_what_is_between(monkeypatch):
    now = {"wall": 5.0, "cpu": 1.0}
    clocks = SimpleNamespace(perf_counter=lambda: now["wall"], process_time=lambda: now["cpu"])
    monkeypatch.setattr(timer, "time", clocks)
    clock = Clock()
    for _ in range(2):
        with clock:
            now["wall"] += 0.25
            now["cpu"] += 0.125
        now["wall"] += 8.0
        now["cpu"] += 4.0
    assert (clock.wall, clock.cpu) == (0.5, 0.25)
    assert clock.taken() == {"wall_s": 0.5, "cpu_s": 0.25} and clock.taken(1)["cpu_s"] == 0.2


@pytest.mark.parametrize(("system", "unit"), [("darwin", 1), ("linux", 1024), ("freebsd14", 1024)])
def test_the_high_water_mark_is_in_bytes_everywhere(system, unit, monkeypatch, tmp_path):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(peak, "STATUS", tmp_path / "nothing")
    monkeypatch.setattr(sys, "platform", system)
    usage = SimpleNamespace(ru_maxrss=300 * 2**20 // unit)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    assert high_water() == 300 * 2**20 and high_water_mb() == 300


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(peak, "STATUS", tmp_path / "nothing")
    monkeypatch.setattr(peak, "RESET", tmp_path / "nothing")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert high_water() is high_water_mb() is peak_memory(lambda: int) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_high_water_mark_rises_by_what_was_allocated():
    before = high_water()
    torch.ones(2**24)  # 64 MiB, freed at once
    torch.ones(2**25)
    # what stood below the mark is used first
    assert high_water() >= max(before, 2**27)
