"""Phases that rebuild their supernet: what follows from the ledger, whole or cut, and which driver a searcher gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.ledger import Ledger
from autoprune.objective import Proposal, Result, Status
from autoprune.run.rebuilding import RebuildingDriver
from autoprune.run.targets import PHASE, Shared, TargetsDriver, driver_of, read_targets, winner
from autoprune.searchers.evopress import EvoPress
from autoprune.searchers.tyr import Tyr
from autoprune.space import Candidate, OptionGene, Plan, Space
from autoprune.study import Budget, Phase, Study, SupernetSpec
from tests.core.runs import SPACE, TOKENS, FakeExecutor, Killed, create
from tests.tabular import KL, PARAMS

ITERATIONS = 3


class AnySpace(FakeExecutor):
    """Scores plans, whatever space their candidates are of: better the more the deeper blocks keep."""

    def _result(self, proposal: Proposal) -> Result:
        if self._fails(proposal):
            return Result(proposal, Status.FAILED, reason="the model said NaN")
        widths = self.seen[-1].plan.widths()
        value = 10.0 - sum((b + 1) * (16 * groups + width) for b, (groups, width) in enumerate(widths)) / 1000
        return Result(proposal, Status.OK, {"kl": value}, {"kl": np.full(proposal.fidelity.count, value)})


def shared(settings: dict[str, Any], search: str = "tyr") -> Shared:
    makes: dict[str, Any] = {
        "tyr": lambda p: Tyr(p, ITERATIONS, offspring=6, survivors=(2, 1), windows=(1, 2)),
        "evopress": lambda p: EvoPress(p, 6, (2, 1), (1, 2)),
    }
    targets, budget = read_targets(settings, SPACE), Budget(120 * TOKENS, None, 30.0)
    return Shared(SPACE, (KL, PARAMS), targets, budget, 8, TOKENS, 0, (), makes[search])


def see_through(driver: TargetsDriver, ledger: Ledger, executor: FakeExecutor) -> list[Phase]:
    """All phases, as a run does."""
    phases = []
    while (phase := driver.next(ledger)) is not None:
        phases.append(phase)
        Study(phase, ledger, executor).run()
        ledger.event(PHASE, number=phase.number)
    return phases


def options(space: Space) -> dict[str, tuple[int, ...]]:
    return {g.name: g.options for g in space.genes if isinstance(g, OptionGene)}


def spec(phase: Phase) -> SupernetSpec:
    assert phase.supernet is not None
    return phase.supernet


def test_the_searcher_s_class_names_the_driver() -> None:
    assert type(driver_of(shared({"params": "0.5x"}))) is RebuildingDriver
    assert type(driver_of(shared({"params": "0.5x"}, "evopress"))) is TargetsDriver


def test_every_iteration_is_around_what_the_one_before_found(tmp_path: Path) -> None:
    ledger, given = create(tmp_path / "ledger.sqlite"), shared({"params": "0.5x"})
    driver = driver_of(given)
    phases = see_through(driver, ledger, AnySpace())
    assert len(phases) == ITERATIONS
    frame, centre = ledger.to_frame(), 32
    first = spec(phases[0])
    assert set(first.options.values()) == {tuple(range(5)), tuple(range(0, 65, 8))}
    assert len({w for _, w in first.reference.widths()}) <= 2, "the first reference is uniform"
    for number in (1, 2):
        won = winner(frame, number - 1, given.objectives)
        assert won is not None
        found, here = phases[number - 1].space.decode(won), spec(phases[number])
        assert here.reference == found != spec(phases[number - 1]).reference
        step = 8 >> number
        for block, (_, width) in enumerate(found.widths()):
            widths = here.options[f"block{block}.ffn.width"]
            assert width in widths and {b - a for a, b in zip(widths, widths[1:], strict=False)} <= {step, 8}
        assert ledger.proposals(number, 0)[0].candidate == candidate_of(phases[number].space, found)
    assert centre in first.options["block0.ffn.width"]
    spent = frame.groupby("phase")["tokens"].sum()
    assert (spent <= 40 * TOKENS).all() and (spent > 20 * TOKENS).all(), "equal shares"


def candidate_of(space: Space, plan: Plan) -> Candidate:
    kept = [n for pair in plan.widths() for n in pair]
    return Candidate(tuple(o.index(k) for o, k in zip(options(space).values(), kept, strict=True)))


def test_several_targets_have_iterations_of_their_own(tmp_path: Path) -> None:
    ledger, driver = create(tmp_path / "ledger.sqlite"), driver_of(shared({"params": ["0.7x", "0.4x"]}))
    phases = see_through(driver, ledger, AnySpace())
    assert len(phases) == 2 * ITERATIONS
    assert driver.rivals(ledger) == [[(2,), (1,), (0,)], [(5,), (4,), (3,)]]
    bounds = [p.constraints[0].text for p in phases]
    assert bounds == ["0.7x"] * 3 + ["0.4x"] * 3
    assert spec(phases[3]).reference != spec(phases[2]).reference
    assert options(driver.space(5, ledger)) == spec(phases[5]).options


@pytest.mark.parametrize("evaluations", [2, 15, 33, 47])
def test_killed_anywhere_the_ledger_and_the_ladders_are_the_same(tmp_path: Path, evaluations: int) -> None:
    whole, cut = create(tmp_path / "whole.sqlite"), create(tmp_path / "cut.sqlite")
    undisturbed = see_through(driver_of(shared({"params": "0.5x"})), whole, AnySpace())
    with pytest.raises(Killed):
        see_through(driver_of(shared({"params": "0.5x"})), cut, AnySpace(die_after=evaluations))
    resumed = see_through(driver_of(shared({"params": "0.5x"})), cut, AnySpace())
    assert cut.ordered() == whole.ordered()
    assert [spec(p) for p in resumed] == [spec(p) for p in undisturbed][-len(resumed) :]


def test_a_phase_without_results_leaves_the_next_one_where_it_was(tmp_path: Path) -> None:
    ledger, driver = create(tmp_path / "ledger.sqlite"), driver_of(shared({"params": "0.5x"}))
    phases = see_through(driver, ledger, AnySpace(fails=lambda p: True))
    assert not len(ledger.to_frame().query("status == 'ok'"))
    assert {spec(p).reference for p in phases} == {spec(phases[0]).reference}


def test_a_spec_survives_json() -> None:
    given = SupernetSpec({"block0.ffn.width": (0, 8, 16)}, Plan.of([(1, 8)]), follow=True)
    assert SupernetSpec.from_json(given.to_json()) == given
