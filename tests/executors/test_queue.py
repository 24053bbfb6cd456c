"""What the Ray executor does when workers die, fail or answer late: with a Ray that runs everything at once, here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoprune.errors import LedgerError, SettingError, StoppedError
from autoprune.evaluation import Failure, Scores, summarise
from autoprune.executors import ray as room
from autoprune.executors.base import Spec
from autoprune.executors.ray import Ray
from autoprune.executors.worker import Lacks, Ready, Scored
from autoprune.objective import Fidelity, Proposal, Result, Split, Status
from autoprune.space import Candidate, Plan
from autoprune.study import Job

SPEC = Spec({"threads": 1, "sequences": 2}, {}, "")


class RayError(Exception):
    """Ray's base class."""


class Died(RayError):
    """A worker that is gone."""


class TaskError(RayError):
    """What a worker raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


@dataclass(eq=False)
class Call:
    """A reference to what will be run when it is asked for."""

    function: Callable[..., Any]
    values: tuple[Any, ...]


@dataclass(eq=False)
class Handle:
    """A worker."""

    open: Any
    score: Any


@dataclass
class World:
    """A made-up Ray: what plans of each width do to a worker, and what was seen."""

    behave: Callable[[int], None] = lambda width: None
    opening: Callable[..., Any] = lambda *given: Ready(1, "here")
    hired: int = 0
    dismissed: int = 0
    scored: list[tuple[list[int], tuple[int, int]]] = field(default_factory=list)
    slow: bool = False
    eager: bool = False  # the first is ready first
    hung: set[int] = field(default_factory=set)  # widths that never answer, the first `patience` times
    patience: int = 1_000
    micro: int | None = None
    smaller: list[tuple[list[int], int]] = field(default_factory=list)
    stored: list[bytes] = field(default_factory=list)

    def hangs(self, call: Call) -> bool:
        if not isinstance(call.values[0], list):
            return False
        late = bool({plan.widths()[0][1] for plan in call.values[0]} & self.hung)
        self.patience -= late
        return late and self.patience >= 0

    def put(self, part: bytes) -> int:
        self.stored.append(part)
        return len(self.stored) - 1

    def score(self, plans: Sequence[Plan], fidelity: Fidelity, sequences: int | None = None) -> Scored:
        self.micro = sequences
        if sequences is not None:
            self.smaller.append(([plan.widths()[0][1] for plan in plans], sequences))
        widths = [plan.widths()[0][1] for plan in plans]
        self.scored.append((widths, fidelity.windows))
        for width in widths:
            self.behave(width)
        outcomes = [self.outcome(width, fidelity) for width in widths]
        return Scored(outcomes, 2 * len(plans), 4 * len(plans), 1.0)

    @staticmethod
    def outcome(width: int, fidelity: Fidelity) -> Scores | Failure:
        if width == 13:
            return Failure(f"NaN from window {fidelity.windows[0]} on")
        values = np.array([width / (w + 3) for w in range(*fidelity.windows)])
        return summarise({"kl": [values], "nll": [values * 2]})

    def hire(self) -> Any:
        self.hired += 1

        def remote(call: Callable[..., Any]) -> Any:
            return SimpleNamespace(remote=lambda *args: Call(call, args))

        return Handle(open=remote(lambda *given: self.opening(*given)), score=remote(self.score))

    def dismiss(self, worker: Any) -> None:
        self.dismissed += 1

    def workers(self) -> list[Any]:
        return [self.hire(), self.hire()]

    def stop(self) -> None:
        pass


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made, module = World(), ModuleType("ray")

    def get(reference: Call) -> Any:
        try:
            return reference.function(*reference.values)
        except RayError:
            raise
        except Exception as error:
            raise TaskError(error) from error

    def wait(references: list[Call], num_returns: int, timeout: float | None) -> Any:
        waiting = references[::-1] if made.eager else references
        ready = [] if made.slow else [r for r in waiting if not made.hangs(r)][-1:]  # the last is first
        if not ready and timeout:
            time.sleep(timeout)
        return ready, [r for r in references if r not in ready]

    module.get, module.wait = get, wait  # type: ignore[attr-defined]
    module.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=TaskError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(room, "find_spec", lambda name: object())
    monkeypatch.setattr(room, "Cluster", lambda *args: made)
    return made


@pytest.fixture
def executor(world: World) -> Iterator[Ray]:
    made = Ray(workers=2, retries=2)
    made.open(None, SPEC)  # type: ignore[arg-type]
    yield made
    made.close()


def jobs(widths: Sequence[int], windows: tuple[int, int] = (0, 2)) -> list[Job]:
    fidelity = Fidelity(Split.FITNESS, windows)
    return [Job(Proposal(i, Candidate((w,)), fidelity), Plan.of([(1, w)])) for i, w in enumerate(widths)]


def run(executor: Ray, batch: list[Job]) -> dict[int, Result]:
    executor.submit(batch)
    found = list(executor.results())
    assert len(found) == len(batch)
    return {r.proposal.id: r for r in found}


def test_pieces_of_windows_come_together_as_one_result(executor: Ray, world: World) -> None:
    found = run(executor, jobs([8, 16], (1, 8)))
    assert len({windows for _, windows in world.scored}) > 1, "the windows were not cut"
    for number, width in enumerate((8, 16)):
        whole = world.outcome(width, Fidelity(Split.FITNESS, (1, 8)))
        assert isinstance(whole, Scores)
        assert found[number].metrics == whole.metrics
        assert found[number].per_window["kl"].tobytes() == whole.per_window["kl"].tobytes()
        assert found[number].proposal.fidelity.windows == (1, 8)


def test_the_first_failure_in_window_order_is_the_reason(executor: Ray) -> None:
    found = run(executor, jobs([13, 8], (1, 8)))
    assert (found[0].status, found[0].reason) == (Status.FAILED, "NaN from window 1 on") and found[1].ok


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


def test_files_are_sent_to_nodes_that_do_not_see_them_and_once(world: World, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1234")
    spec = replace(SPEC, inputs=(str(tmp_path / "model"),))
    asked: list[Any] = []

    def elsewhere(spec: Spec, files: Any, parcel: Any) -> Any:
        asked.append((files, parcel))
        return Ready(1, "there") if parcel is not None else Lacks("model/weights", "there")

    world.opening = elsewhere
    executor, said = Ray(workers=2), []
    executor.say = said.append
    executor.open(None, spec)  # type: ignore[arg-type]
    assert all(r.ok for r in run(executor, jobs([8, 16])).values())
    assert asked[0] == ({str(tmp_path / "model"): {"weights": 4}}, None) and asked[1][1] is not None
    assert world.stored == [b"1234"] and said == ["node there does not see model/weights: sending it a copy"]
    refusing = Ray(workers=2, artifacts="shared")
    refusing.open(None, spec)  # type: ignore[arg-type]
    with pytest.raises(
        SettingError, match="executor.artifacts=shared: node there does not see model/weights"
    ):
        run(refusing, jobs([8, 16]))
    asked.clear()
    shipping = Ray(workers=2, artifacts="ship")
    shipping.open(None, spec)  # type: ignore[arg-type]
    run(shipping, jobs([8, 16]))
    assert asked and all(parcel is not None for _, parcel in asked)


def test_when_all_workers_die_the_run_stops_and_can_be_resumed(executor: Ray, world: World) -> None:
    def deadly(width: int) -> None:
        raise Died("no memory")

    world.behave = deadly
    with pytest.raises(StoppedError, match="workers in a row have died .no memory"):
        run(executor, jobs([8] * 30))


def test_workers_of_two_kinds_are_told_of_once(world: World) -> None:
    kinds, said = iter(["one", "two", "three"] * 9), list[str]()
    world.opening = lambda *given: Ready(1, "there", next(kinds))
    executor = Ray(workers=2)
    executor.say = said.append
    executor.open(None, SPEC)  # type: ignore[arg-type]
    world.eager = True
    for _ in range(3):
        run(executor, jobs([8, 16, 24, 32]))
    assert said == ["workers run on different machines (one, two): scores may differ in their last bits"]


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


def test_time_runs_out_without_a_result_and_nothing_is_lost(executor: Ray, world: World) -> None:
    executor.submit(jobs([8, 16]))
    world.slow = True
    assert list(executor.results(timeout=0.01)) == []
    world.slow = False
    assert len(list(executor.results())) == 2


def test_counters_count_since_the_last_call(executor: Ray, world: World) -> None:
    for expected in (3, 5):
        run(executor, jobs([8 * (i + 1) for i in range(expected)]))
        pieces, times = len(world.scored), executor.times()
        counted = executor.counters()
        assert counted["block_runs"] == expected and counted["block_runs_naive"] == 2 * expected
        assert counted["pieces"] == pieces == len(times) == counted["thread_seconds"]
        assert 1 <= counted["thread_seconds_longest"] <= pieces
        world.scored.clear()
    assert executor.counters() == {"thread_seconds": 0, "thread_seconds_longest": 0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workers": 0}, "executor.workers=0"),
        ({"retries": -1}, "executor.retries=-1"),
        ({"cpus": -1}, "executor.cpus=-1"),
        ({"gpus": 1.5}, "executor.gpus=1.5: above 1 Ray takes whole numbers only"),
        ({"resources": {"fast": "x"}}, "executor.resources.fast=x"),
        ({"limit": 0}, "executor.limit=0"),
        ({"artifacts": "shiped"}, "executor.artifacts=shiped is unknown; did you mean 'ship'"),
    ],
)
def test_settings_out_of_range(world: World, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Ray(**settings)


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"not installed: pip install autoprune\[ray\]"):
        Ray()
