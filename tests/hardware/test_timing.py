"""The loop: shuffled by seed, paired by round, refused when busy."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence

import pytest
import torch

from autoprune.errors import MeasurementError, SettingError
from autoprune.hardware import interruptions, timing
from autoprune.hardware.interruptions import Reading, Turn, disturbing, turn
from autoprune.hardware.sentinel import Sentinel
from autoprune.hardware.timing import Samples, clock_for, interleaved, orders, torch_threads


def test_more_work_reads_more_and_nothing_reads_zero() -> None:
    small, large = torch.ones(64, 64), torch.ones(64, 64 * 64)
    items = {"small": lambda: small @ small, "large": lambda: small @ large}
    samples = interleaved(items, 7, 0, 1, allow_contended=True)
    assert all(value > 0 for value in samples["small"].seconds)
    assert samples["large"].median > 4 * samples["small"].median


def test_orders_depend_on_the_seed_and_the_round() -> None:
    names = tuple("abcdefgh")
    first = list(orders(names, 5, seed=1))
    assert first == list(orders(names, 5, seed=1))
    assert first != list(orders(names, 5, seed=2))
    assert len(set(first)) == 5
    assert all(sorted(order) == sorted(names) for order in first)


class Bench:
    """A fake clock: `a` takes 1 ms in even rounds and 3 in odd ones, the sentinel what a test says."""

    def __init__(self, sentinel: list[float], rude: Sequence[str] = ()) -> None:
        self.sentinel, self.calls, self.timed = sentinel, [], []
        self.rude = rude  # names of items in whose samples other programs ran
        self.items = {"a": lambda: self.calls.append("a"), "b": lambda: self.calls.append("b")}
        self.names = {id(call): name for name, call in self.items.items()}

    def clock(self, call: object, repeats: int) -> float:
        name = self.names.get(id(call), "sentinel")
        done = sum(n == name for n, _ in self.timed)
        self.timed.append((name, repeats))
        assert not gc.isenabled()
        values = {"a": [1e-3, 3e-3], "b": [50e-6], "sentinel": self.sentinel}[name]
        return values[max(done - 1, 0) % len(values)] * repeats  # the first one only chooses the repeats

    def run(self, rounds: int, **settings: bool) -> dict[str, Samples]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(timing, "PER_ROUND", 0.0)  # one sample a round
            patch.setattr(interruptions, "counter", lambda *_: self.interruptions)
            return interleaved(self.items, rounds, 0, 1, clock=self.clock, **settings)

    def interruptions(self) -> int:
        return sum(name in self.rude for name, _ in self.timed)


def test_samples_are_seconds_per_call_after_a_warm_call_each() -> None:
    bench = Bench([1.0])
    samples = bench.run(6)
    assert samples["a"].seconds == pytest.approx([1e-3, 3e-3] * 3)
    assert samples["a"].repeats == 2
    assert samples["b"].repeats == 40  # 50 us until 2 ms are full
    assert samples["b"].median == pytest.approx(50e-6)
    assert bench.calls.count("a") == 1 + 6  # untimed ones: the clock is fake and calls nothing
    assert gc.isenabled()


def test_rounds_with_a_slow_sentinel_are_dropped_for_all_items() -> None:
    samples = Bench([1.0, 1.2, 1.0, 1.0, 1.0, 1.0]).run(6)
    assert samples["a"].seconds == pytest.approx([1e-3, 1e-3, 3e-3, 1e-3, 3e-3])
    assert len(samples["b"].seconds) == 5


def test_a_busy_machine_is_refused() -> None:
    with pytest.raises(MeasurementError, match=r"busy \(sentinel p50/min = 2.00, allowed 1.3\)") as refused:
        Bench([1.0, 2.0, 2.0, 2.0, 2.0, 2.0]).run(6)
    assert refused.value.exit_code == 3
    kept = Bench([1.0, 2.0, 2.5, 2.0, 2.5, 2.5]).run(6, allow_contended=True)["a"].seconds
    assert kept == pytest.approx([1e-3, 3e-3, 3e-3])  # rounds 0, 1 and 3


def test_too_few_quiet_rounds_are_refused() -> None:
    readings = (1.0,) * 3 + (1.2,) * 7
    assert Sentinel(readings).spread < 1.3
    with pytest.raises(MeasurementError, match="3 of 10 rounds"):
        Sentinel(readings).kept()
    assert Sentinel((1.0, 1.02, 1.0)).kept() == (0, 1, 2)


def test_an_item_that_was_never_left_in_peace_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        MeasurementError, match=r"busy \(other programs interrupted b in 6 of 6 turns\)"
    ) as refused:
        Bench([1.0], rude=["b"]).run(6)
    assert refused.value.exit_code == 3
    kept = Bench([1.0], rude=["b"]).run(6, allow_contended=True)
    assert len(kept["b"].seconds) == 6
    with pytest.raises(MeasurementError, match=r"what is timed in 6 of 9 turns"):  # early
        Bench([1.0], rude=["a", "b", "sentinel"]).run(10)
    monkeypatch.setattr(interruptions, "TOLERATED", float("inf"))
    assert len(Bench([1.0], rude=["b"]).run(6)["b"].seconds) == 6


def test_a_turn_uses_what_was_left_in_peace_and_tries_again_for_it() -> None:
    def of(*readings: tuple[float, int]) -> tuple[Turn, int]:
        left = [Reading(s, 2 * s, n, n > 0) for s, n in readings]
        taken = turn(lambda: left.pop(0), 2)
        return taken, len(readings) - len(left)

    assert of((5.0, 1), (1.0, 0)) == (Turn(1.0, 2.0, True), 2)
    assert of((5.0, 1), (6.0, 2), (4.0, 1), (1.0, 0), (0.5, 0)) == (Turn(1.0, 2.0, True), 4)
    rude = [(6.0, 2)] * (2 + interruptions.RETRIES - 1)
    assert of(*rude, (3.0, 1)) == (Turn(3.0, 6.0, False), 2 + interruptions.RETRIES)
    assert not disturbing(0, 1e-9) and disturbing(1, 5e-3) and not disturbing(1, 1.0) and disturbing(300, 1.0)


def test_the_counter_sees_that_a_thread_made_way() -> None:
    count = interruptions.counter(1)
    assert interruptions.counter(1, "cuda")() == 0
    assert count() >= 0 and count() <= count()


def test_pairs_share_their_rounds_only() -> None:
    a, b = Samples((2.0, 9.0, 4.0), rounds=(0, 1, 3)), Samples((1.0, 1.0, 2.0), rounds=(0, 2, 3))
    assert a.over(b).seconds == (2.0, 2.0) and a.over(b).rounds == (0, 3)
    assert Samples((1.0, 3.0), wall=(2.0, 4.0)).wall_median == 3.0


def test_without_a_common_round_nothing_is_compared() -> None:
    with pytest.raises(MeasurementError, match="no round left both models in peace"):
        Samples((1.0,), rounds=(0,)).over(Samples((1.0,), rounds=(1,)))


def test_interval_of_the_median_covers_95_percent() -> None:
    assert Samples(tuple(map(float, range(15)))).interval == (3.0, 11.0)  # the known ranks 4 and 12 of 15
    for n in (6, 9, 15, 31):
        low, _ = Samples(tuple(map(float, range(n)))).interval
        outside = 2 * sum(math.comb(n, k) for k in range(int(low) + 1)) / 2**n
        wider = 2 * sum(math.comb(n, k) for k in range(int(low) + 2)) / 2**n
        assert outside <= 0.05 < wider


def test_halves_and_pairs() -> None:
    a, b = Samples((1.0, 3.0, 1.0, 3.0)), Samples((2.0, 2.0, 2.0, 2.0))
    assert a.half(odd=False).median == 1.0 and a.half(odd=True).median == 3.0
    assert a.over(b).seconds == (0.5, 1.5, 0.5, 1.5)


def test_threads_are_restored_even_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_a_device_without_a_true_clock_is_refused() -> None:
    with pytest.raises(SettingError, match="device=mps cannot be timed; allowed: cpu, cuda"):
        clock_for(1, "mps")


def test_one_thread_is_timed_by_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoprune.hardware.timing.time.thread_time", iter([0.0, 7.0]).__next__)
    monkeypatch.setattr("autoprune.hardware.timing.time.perf_counter", iter([0.0, 9.0]).__next__)
    assert clock_for(1)(lambda: None, 1) == 7.0
    assert clock_for(2)(lambda: None, 1) == 9.0
