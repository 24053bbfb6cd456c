"""What the Ray executor does when workers die, hang, fail or answer late: with a made-up Ray."""

from __future__ import annotations

from typing import Any

import pytest

from autoprune.errors import LedgerError, SettingError, StoppedError
from autoprune.executors.ray import Ray
from autoprune.objective import Status
from tests.made_up_ray import SPEC, Died, RayError, World, jobs, run


def test_a_lost_worker_is_replaced_and_its_piece_run_again(executor: Ray, world: World) -> None:
    deaths = iter([True])

    def once(width: int) -> None:
        if next(deaths, False):
            raise Died("gone")

    world.behave = once
    found = run(executor, jobs([8, 16, 24]))
    assert all(r.ok for r in found.values())
    assert (world.hired, world.dismissed) == (3, 1)
    counted = executor.counters()
    assert counted["workers_lost"] == 1 and counted["block_runs"] == 3


def test_a_plan_that_kills_every_worker_fails_alone(executor: Ray, world: World) -> None:
    def poisonous(width: int) -> None:
        if width == 24:
            raise Died("out of memory")

    world.behave = poisonous
    found = run(executor, jobs([8, 16, 24, 32]))
    assert {n for n, r in found.items() if not r.ok} == {2}
    assert "its worker died every time" in found[2].reason and found[2].status is Status.FAILED
    assert world.dismissed == 5, "three times as a piece, once by itself, once with smaller micro-batches"


def test_a_plan_that_needs_less_memory_is_scored_with_smaller_micro_batches(
    executor: Ray, world: World
) -> None:
    """A death says nothing of its cause; that it ends when micro-batches shrink does."""

    def hungry(width: int) -> None:
        if width == 24 and world.micro is None:
            raise Died("killed")

    world.behave = hungry
    found = run(executor, jobs([8, 16, 24, 32]))
    assert all(r.ok for r in found.values()) and world.smaller == [([24], 1)]


def test_a_plan_that_takes_too_long_loses_its_worker_and_then_fails_alone(world: World) -> None:
    executor = Ray(workers=2, retries=2, limit=0.01)
    executor.open(None, SPEC)  # type: ignore[arg-type]
    world.hung = {24}
    found = run(executor, jobs([8, 16, 24, 32]))
    assert {n for n, r in found.items() if not r.ok} == {2}
    assert found[2].reason.endswith("it took longer than executor.limit=0.01 s")
    assert executor.counters()["workers_late"] == 3, "with its piece, alone, and once more"
    assert world.dismissed == 3 and world.hired == 5


def test_a_limit_that_nothing_keeps_stops_the_run(world: World) -> None:
    executor = Ray(workers=2, limit=0.001)
    executor.open(None, SPEC)  # type: ignore[arg-type]
    world.hung = {8}
    with pytest.raises(StoppedError, match="executor.limit=0.001: 9 evaluations in a row took longer"):
        run(executor, jobs([8] * 12))


def test_a_plan_that_was_late_once_is_scored(world: World) -> None:
    executor = Ray(workers=2, limit=0.01)
    executor.open(None, SPEC)  # type: ignore[arg-type]
    world.hung, world.patience = {24}, 2
    assert all(r.ok for r in run(executor, jobs([8, 16, 24, 32])).values())


def test_when_all_workers_die_the_run_stops_and_can_be_resumed(executor: Ray, world: World) -> None:
    def deadly(width: int) -> None:
        raise Died("no memory")

    world.behave = deadly
    with pytest.raises(StoppedError, match="workers in a row have died .no memory"):
        run(executor, jobs([8] * 30))


def test_a_full_object_store_stops_the_run_at_once_and_blames_nobody(executor: Ray, world: World) -> None:
    class OutOfDiskError(RayError):
        pass

    def full(width: int) -> None:
        raise OutOfDiskError("Local disk is full")

    world.behave = full
    with pytest.raises(StoppedError, match="Ray has no room for results: Local disk is full"):
        run(executor, jobs([8]))
    assert world.dismissed == 0


def test_workers_that_cannot_start_stop_the_run_at_once(executor: Ray, world: World) -> None:
    def broken(*given: Any) -> None:
        raise Died(
            "The actor died because of an error raised in its creation task\nNo module named 'autoprune'"
        )

    world.opening = broken
    with pytest.raises(SettingError, match="a worker cannot start: No module named 'autoprune'"):
        run(executor, jobs([8]))
    assert world.hired == 2


@pytest.mark.parametrize("error", [LedgerError("another model"), OSError(28, "No space left on device")])
def test_what_no_plan_can_help_is_raised_here_as_it_was_there(
    executor: Ray, world: World, error: Exception
) -> None:
    def failing(width: int) -> None:
        raise error

    world.behave = failing
    with pytest.raises(type(error)) as caught:
        run(executor, jobs([8]))
    assert caught.value is error
