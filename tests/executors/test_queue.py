"""What the Ray executor does with pieces, files and settings: with a made-up Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.evaluation import Scores
from autoprune.executors import ray as room
from autoprune.executors import task
from autoprune.executors.base import Spec
from autoprune.executors.ray import Ray
from autoprune.executors.worker import Lacks, Ready
from autoprune.objective import Fidelity, Split, Status
from tests.made_up_ray import SPEC, World, jobs, run


def test_pieces_of_windows_come_together_as_one_result(executor: Ray, world: World) -> None:
    found = run(executor, jobs([8, 16], (1, 8)))
    assert len({windows for _, windows in world.scored}) > 1, "the windows were not cut"
    for number, width in enumerate((8, 16)):
        whole = world.outcome(width, Fidelity(Split.FITNESS, (1, 8)))
        assert isinstance(whole, Scores)
        assert found[number].metrics == whole.metrics
        assert found[number].per_window["kl"].tobytes() == whole.per_window["kl"].tobytes()
        assert found[number].proposal.fidelity.windows == (1, 8)


def test_plans_are_packed_once_for_all_their_windows(
    executor: Ray, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs: list[int] = []
    real = task.packed_plans
    monkeypatch.setattr(task, "packed_plans", lambda plans: packs.append(len(plans)) or real(plans))
    run(executor, jobs([8, 16], (1, 8)))
    assert len(packs) == len({tuple(widths) for widths, _ in world.scored}) < len(world.scored)


def test_the_first_failure_in_window_order_is_the_reason(executor: Ray) -> None:
    found = run(executor, jobs([13, 8], (1, 8)))
    assert (found[0].status, found[0].reason) == (Status.FAILED, "NaN from window 1 on") and found[1].ok


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
