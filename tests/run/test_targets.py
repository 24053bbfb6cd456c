"""Several targets in one run: read, searched phase by phase, resumed, and looked up afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import InfeasibleError, SettingError
from autoprune.ledger import Ledger
from autoprune.objective import Objective
from autoprune.run.targets import (
    PHASE,
    Shared,
    TargetsDriver,
    loosest,
    read_targets,
    stitched,
    winner,
    within,
)
from autoprune.searchers.dp import DP
from autoprune.searchers.evopress import EvoPress
from autoprune.searchers.greedy import Greedy
from autoprune.searchers.random import Random
from autoprune.shape import AnalyticCosts
from autoprune.study import Budget, Study
from autoprune.sublayers import join
from search_spaces.structured import Structured
from tests.core.runs import DENSE, SPACE, TOKENS, FakeExecutor, Killed, create
from tests.tabular import KL, PARAMS, SHAPE

DENSE_COST = SPACE.cost(DENSE)
THREE = {"params": ["0.8x", "0.6x", "0.4x"]}


def shared(
    settings: dict[str, Any],
    searcher: str = "evopress",
    tokens: int = 99 * TOKENS,
    objectives: tuple[Objective, ...] = (KL, PARAMS),
) -> Shared:
    """What a driver is given; EvoPress works at one budget, Random at any."""
    makes: dict[str, Any] = {
        "evopress": lambda problem: EvoPress(problem, 6, (2, 1), (1, 2)),
        "random": lambda problem: Random(problem, windows=2, batch=4),
        "greedy": lambda problem: Greedy(problem, windows=2, confirm=4),
        "tolerant": lambda problem: Greedy(problem, windows=2, tolerance=0.5, confirm=4),
        "dp": lambda problem: DP(problem, windows=2, confirm=2),
    }
    return Shared(
        space=SPACE,
        objectives=objectives,
        targets=read_targets(settings, SPACE),
        budget=Budget(tokens, 100, 30.0),
        windows=8,
        window=TOKENS,
        seed=0,
        ratios=(0.8, 0.5),
        make=makes[searcher],
    )


def run(driver: TargetsDriver, ledger: Ledger, executor: FakeExecutor) -> None:
    """See all phases through, as a run does."""
    while (phase := driver.next(ledger)) is not None:
        Study(phase, ledger, executor).run()
        ledger.event(PHASE, number=phase.number)


def test_bounds_may_be_ratios_numbers_and_lists_of_both() -> None:
    space = join([Structured()], SHAPE, [AnalyticCosts(SHAPE)])
    dense = space.cost(space.dense)
    (one,) = read_targets({"flops": "0.6x", "kv": "0.5x", "bytes": 1e6}, space)
    assert [c.metric for c in one.constraints] == ["flops", "kv_bytes", "bytes"]
    assert [c.bound for c in one.constraints] == [0.6 * dense["flops"], 0.5 * dense["kv_bytes"], 1e6]
    number = 0.5 * DENSE_COST["params"]
    found = read_targets({"params": ["0.7x", number]}, SPACE)
    assert [t.constraints[0].bound for t in found] == pytest.approx([0.7 * DENSE_COST["params"], number])
    assert read_targets({}, SPACE)[0].met(DENSE_COST)
    assert [t.name for t in read_targets(THREE, SPACE)] == ["params=0.8x", "params=0.6x", "params=0.4x"]
    assert loosest(found).constraints[0].text == "0.7x"


def test_lists_go_together_and_single_bounds_hold_throughout() -> None:
    other = next(m for m in DENSE_COST if m != "params")
    found = read_targets({"params": ["0.8x", "0.6x"], other: "0.9x"}, SPACE)
    assert [t.name for t in found] == [f"params={r},{other}=0.9x" for r in ("0.8x", "0.6x")]
    found = read_targets({"params": ["0.8x", "0.6x"], other: ["0.6x", "0.9x"]}, SPACE)
    assert [c.text for c in loosest(found).constraints] == ["0.8x", "0.9x"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"params": []}, "equally long and not empty; params has 0"),
        ({"params": ["0.5x", "0.5x"]}, "name the target params=0.5x twice"),
        ({"params": ["0.5x", "half"]}, "constraints.params=half is not a bound"),
        ({"parms": ["0.5x"]}, "did you mean 'params'"),
    ],
)
def test_mistakes_are_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        read_targets(settings, SPACE)


def test_unequal_lists_and_infeasible_targets_are_told() -> None:
    other = next(m for m in DENSE_COST if m != "params")
    with pytest.raises(SettingError, match=f"params has 2, {other} has 1"):
        read_targets({"params": ["0.8x", "0.6x"], other: ["0.9x"]}, SPACE)
    space = join([Structured()], SHAPE, [AnalyticCosts(SHAPE)])
    with pytest.raises(
        InfeasibleError, match=r"constraints.bytes=0.001x cannot be met: the smallest feasible"
    ):
        read_targets({"params": ["0.8x", "0.6x"], "bytes": ["0.9x", "0.001x"]}, space)


def test_one_phase_a_target_each_with_its_share(tmp_path: Path) -> None:
    ledger = create(tmp_path / "ledger.sqlite")
    driver = TargetsDriver(shared(THREE, tokens=100 * TOKENS))
    run(driver, ledger, FakeExecutor())
    frame = ledger.to_frame()
    ok = frame[frame["status"] == "ok"]
    spent = ok.groupby("phase")["tokens"].sum()
    assert list(spent.index) == [0, 1, 2] and (spent <= 34 * TOKENS).all() and (spent > 20 * TOKENS).all()
    for number, target in enumerate(driver.targets):
        assert all(map(target.met, ok[ok["phase"] == number].to_dict("records")))
    shares = [driver.phase(n).budget for n in range(3)]
    assert (
        sum(s.tokens or 0 for s in shares) == 100 * TOKENS and sum(s.evaluations or 0 for s in shares) == 100
    )
    assert sum(s.seconds or 0 for s in shares) == pytest.approx(30.0)


def test_a_later_phase_starts_from_the_winner_before(tmp_path: Path) -> None:
    ledger = create(tmp_path / "ledger.sqlite")
    given = shared({"params": ["0.5x", "0.8x"]})
    driver = TargetsDriver(given)
    run(driver, ledger, FakeExecutor())
    won = winner(ledger.to_frame(), 0, given.objectives)
    assert won is not None
    first = ledger.proposals(1, 0)
    assert first[0].candidate == won  # it fits the looser bound as it is
    assert won not in [p.candidate for p in TargetsDriver(given).phase(1).searcher.ask(6)]  # type: ignore[union-attr]


def test_a_searcher_of_fronts_gets_the_loosest_bound_in_one_phase(tmp_path: Path) -> None:
    ledger = create(tmp_path / "ledger.sqlite")
    driver = TargetsDriver(shared(THREE, "random"))
    run(driver, ledger, FakeExecutor())
    frame = ledger.to_frame()
    assert set(frame["phase"]) == {0} and [t.name for t in driver.targets] == ["params=0.8x"]
    assert ledger.tokens() > 90 * TOKENS
    tight = within(frame, read_targets(THREE, SPACE)[1])
    assert 0 < len(tight) < len(frame) and (tight["params"] <= 0.6 * DENSE_COST["params"] + 1e-6).all()


@pytest.mark.parametrize("evaluations", [3, 17, 30, 50])
def test_a_run_killed_anywhere_ends_with_the_same_ledger(tmp_path: Path, evaluations: int) -> None:
    whole, cut = create(tmp_path / "whole.sqlite"), create(tmp_path / "cut.sqlite")
    executor = FakeExecutor()
    run(TargetsDriver(shared(THREE)), whole, executor)
    assert len(executor.seen) > 50
    with pytest.raises(Killed):
        run(TargetsDriver(shared(THREE)), cut, FakeExecutor(die_after=evaluations))
    run(TargetsDriver(shared(THREE)), cut, FakeExecutor())
    assert cut.ordered() == whole.ordered()


def test_without_a_bound_a_front_is_stitched_from_targets(tmp_path: Path) -> None:
    ledger, executor = create(tmp_path / "ledger.sqlite"), FakeExecutor()
    driver = TargetsDriver(shared({}, tokens=300 * TOKENS))
    assert [t.name for t in driver.targets] == [f"params={r}x" for r in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)]
    run(driver, ledger, executor)
    frame = ledger.to_frame()
    frame = frame[frame["status"] == "ok"]
    spent = frame.groupby("phase")["tokens"].sum()
    assert list(spent.index) == list(range(6)) and spent.max() <= 51 * TOKENS and spent.min() > 0
    for number in range(1, 6):
        won = winner(ledger.to_frame(), number - 1, (KL,))
        assert won is not None
        first = SPACE.cost(ledger.proposals(number, 0)[0].candidate)["params"]
        assert first <= min(SPACE.cost(won)["params"], (0.9 - 0.1 * number) * DENSE_COST["params"] + 1e-6)


def test_the_cost_objective_is_stitched_and_what_no_plan_meets_left_out() -> None:
    by_time = stitched((0.9, 0.5, 0.001), (KL, Objective("decode")), SPACE)
    assert [t.name for t in by_time] == ["decode=0.9x", "decode=0.5x"]
    assert [t.name for t in stitched((0.7,), (KL,), SPACE)] == ["params=0.7x"]
    swapped = TargetsDriver(shared({}, objectives=(Objective("decode"), KL)))
    assert swapped.targets[0].name == "decode=0.9x"


def test_nothing_is_stitched_for_searchers_of_fronts_nor_where_there_is_a_bound() -> None:
    for searcher in ("random", "tolerant", "dp"):
        assert [t.name for t in TargetsDriver(shared({}, searcher)).targets] == [""]
    assert len(TargetsDriver(shared({}, "greedy")).targets) == 6
    assert [t.name for t in TargetsDriver(shared({"params": "0.7x"})).targets] == ["params=0.7x"]


def test_targets_out_of_reach_are_refused_by_the_method() -> None:
    given = replace(shared({}, objectives=(KL, Objective("decode"))), stitch=(0.001,))
    with pytest.raises(SettingError, match="search=evopress works at one budget"):
        TargetsDriver(given)


def test_the_winner_is_the_one_of_best_quality_whatever_the_order_of_objectives(tmp_path: Path) -> None:
    ledgers = []
    for index, objectives in enumerate(((KL, PARAMS), (PARAMS, KL))):
        ledger = create(tmp_path / f"{index}.sqlite")
        run(TargetsDriver(shared(THREE, objectives=objectives)), ledger, FakeExecutor())
        ledgers.append([row[3] for row in ledger.ordered()])
    assert ledgers[0] == ledgers[1]
