"""Several targets in one run: `constraints='{params: [0.7x, 0.5x]}'` is searched phase by phase, or all at once.

A method that works at one budget gets targets even where there are no constraints: its front is stitched from theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from autoprune.allocation import Allocation
from autoprune.errors import InfeasibleError, SettingError, UnboundedError
from autoprune.ledger import Ledger
from autoprune.objective import Constraint, Objective, parse_constraint
from autoprune.run.seeds import seed_candidates
from autoprune.searchers.problem import Problem
from autoprune.space import Candidate, Space, dense_costs
from autoprune.study import Budget, Phase, Searcher

PHASE = "phase"  # the ledger's event of a finished one
ROUNDS = "autoprune.run.rounds.RoundsDriver"


@dataclass(frozen=True)
class Target:
    """The constraints that hold together."""

    constraints: tuple[Constraint, ...]

    @property
    def name(self) -> str:
        """As the user wrote it, e.g. `decode=0.6x,kv_bytes=0.5x`."""
        return ",".join(f"{c.metric}={c.text}" for c in self.constraints)

    def met(self, costs: Mapping[str, float]) -> bool:
        """Whether a plan of these costs is within all bounds."""
        return not any(c.violation(costs) for c in self.constraints)


def read_targets(settings: Mapping[str, Any], space: Space) -> tuple[Target, ...]:
    """The settings' constraints in the metrics' units; a list of bounds makes one target of each.

    One bound beside a list holds for every target; lists go together, first with first. Raises SettingError when
    they are of unlike lengths, InfeasibleError when a target cannot be met.
    """
    dense = dense_costs(space)
    lists = {
        str(m): list(v) for m, v in settings.items() if isinstance(v, Sequence) and not isinstance(v, str)
    }
    lengths = {metric: len(bounds) for metric, bounds in lists.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        said = ", ".join(f"{metric} has {count}" for metric, count in lengths.items())
        raise SettingError(f"constraints: lists of bounds must be equally long and not empty; {said}")
    found = []
    for index in range(max(lengths.values(), default=1)):
        bounds = {str(m): lists[str(m)][index] if str(m) in lists else v for m, v in settings.items()}
        found.append(Target(tuple(parse_constraint(m, v, dense) for m, v in bounds.items())))
    smallest = Candidate(tuple(0 for _ in space.genes))
    for target in found:
        nearest = space.repair(
            smallest, target.constraints, np.random.default_rng(0)
        )  # refuses single bounds at once
        _check_together(target, space.cost(nearest), dense)
    names = [target.name for target in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingError(f"constraints name the target {twice} twice; name each once")
    return tuple(found)


def _check_together(target: Target, nearest: Mapping[str, float], dense: Mapping[str, float]) -> None:
    """Bounds that are met one by one, but not all of them at once."""
    broken = [c for c in target.constraints if c.violation(nearest)]
    if broken:
        metric, others = broken[0].metric, [c.metric for c in target.constraints if c not in broken]
        raise InfeasibleError(
            f"constraints.{metric}={broken[0].text or broken[0].bound} cannot be met together with "
            f"{', '.join(others) or 'the others'}: the nearest plan that was found has "
            f"{nearest[metric]:.6g} ({nearest[metric] / dense[metric]:.3f}x of dense)"
        )


def stitched(ratios: Sequence[float], objectives: Sequence[Objective], space: Space) -> tuple[Target, ...]:
    """Targets of the cost objective (else of `params`), one a ratio; those that no plan meets are left out."""
    dense = dense_costs(space)
    metric = next((o.metric for o in objectives if o.metric in dense), "params")
    least = space.cost(Candidate(tuple(0 for _ in space.genes)))[metric] / dense[metric]
    return tuple(Target((parse_constraint(metric, f"{r:g}x", dense),)) for r in ratios if r >= least)


def loosest(targets: Sequence[Target]) -> Target:
    """The largest bound of each metric: what meets any target meets it."""
    by_metric = zip(*(t.constraints for t in targets), strict=True)
    return Target(tuple(max(group, key=lambda c: c.bound) for group in by_metric))


@dataclass(frozen=True)
class Shared:
    """What all phases of a run share."""

    space: Space
    objectives: tuple[Objective, ...]
    targets: tuple[Target, ...]
    budget: Budget
    windows: int  # fitness windows there are
    window: int  # tokens in one
    seed: int
    ratios: tuple[float, ...]  # of uniform plans to start from
    allocations: tuple[Allocation, ...] = field(
        default=(), kw_only=True
    )  # what else a constraint may start from
    make: Callable[[Problem], Searcher]
    stitch: tuple[float, ...] = (
        0.9,
        0.8,
        0.7,
        0.6,
        0.5,
        0.4,
    )  # ratios to search one by one, for lack of bounds
    rounds: tuple[float, ...] = field(
        default=(1.0,), kw_only=True
    )  # shares of the tokens; later ones rebuild ladders
    follow: int | None = field(default=None, kw_only=True)  # from this round on they aim at the dense model


class TargetsDriver:
    """One phase a target for a searcher that works at one budget, with equal shares of tokens; else one for all.

    Each later phase may start from the winner of the one before, made to fit.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.targets = self._targets()
        self.count = len(self.targets)  # phases in all
        costs = shared.space.cost(shared.space.dense)
        self._quality = sorted(shared.objectives, key=lambda o: o.metric in costs)

    def _targets(self) -> tuple[Target, ...]:
        """One a phase; a method that needs a budget and has none gets stitched ones."""
        all_at_once, shared = (loosest(self._shared.targets),), self._shared
        bounded = bool(all_at_once[0].constraints)
        instead = () if bounded else stitched(shared.stitch, shared.objectives, shared.space)
        try:
            first = self._searcher(all_at_once[0], (), shared.budget)
        except UnboundedError:
            if not instead:
                raise
            return instead
        if not getattr(first, "single_target", False):
            return all_at_once
        return shared.targets if bounded else instead or all_at_once

    def next(self, ledger: Ledger) -> Phase | None:
        """The first phase that is not finished; what it holds already is replayed."""
        number = len(ledger.events(PHASE))
        return None if number == self.count else self.phase(number, ledger)

    def phase(self, number: int, ledger: Ledger | None = None) -> Phase:
        """A phase by number; without a ledger it starts from uniform plans only."""
        target, shared = self.targets[number], self._shared
        seeds: tuple[Candidate, ...] = ()
        won = winner(ledger.to_frame(), number - 1, self._quality) if number and ledger else None
        if won is not None:
            rng = np.random.default_rng([shared.seed, number])
            seeds = (shared.space.repair(won, target.constraints, rng),)
        return Phase(
            number=number,
            space=shared.space,
            searcher=self._searcher(target, seeds, self._share(number)),
            objectives=shared.objectives,
            constraints=target.constraints,
            budget=self._share(number),
            window=shared.window,
        )

    def rivals(self, ledger: Ledger) -> list[list[tuple[int, ...]]]:
        """Phases that compete, being of one supernet; in each list the last ones that have results count."""
        return [[tuple(range(self.count))]]

    def space(self, number: int, ledger: Ledger) -> Space:
        """What the candidates of a phase are of."""
        return self._shared.space

    def _share(self, number: int) -> Budget:
        budget, count = self._shared.budget, self.count

        def of(whole: int | None) -> int | None:
            return None if whole is None else whole * (number + 1) // count - whole * number // count

        return Budget(
            of(budget.tokens),
            of(budget.evaluations),
            None if budget.seconds is None else budget.seconds / count,
        )

    def _searcher(
        self,
        target: Target,
        first: tuple[Candidate, ...],
        budget: Budget,
        around: Candidate | None = None,
    ) -> Searcher:
        shared = self._shared
        given = target.constraints, list(shared.ratios), shared.seed, shared.allocations
        seeds = seed_candidates(shared.space, *given)
        return self._made(shared.space, target, (*first, *seeds), budget, around)

    def _made(
        self,
        space: Space,
        target: Target,
        seeds: Sequence[Candidate],
        budget: Budget,
        around: Candidate | None = None,
    ) -> Searcher:
        shared = self._shared
        return shared.make(
            Problem(
                space=space,
                objectives=shared.objectives,
                constraints=target.constraints,
                seed=shared.seed,
                windows=shared.windows,
                seeds=tuple(dict.fromkeys(seeds)),
                tokens=budget.tokens,
                window=shared.window,
                around=around,
            )
        )


def driver_of(shared: Shared) -> TargetsDriver:
    """The driver that the searcher's class names in `driver`, else rounds where there are some, one phase a target.

    Raises SettingError for rounds of a searcher that has others.
    """
    from hydra.utils import get_class

    plain = TargetsDriver(shared)
    named = getattr(plain.phase(0).searcher, "driver", None)
    if len(shared.rounds) == 1:
        return plain if named is None else get_class(named)(shared)
    if named is not None:
        raise SettingError(
            f"calibration.rounds={list(shared.rounds)}: this search rebuilds ladders by itself; allowed: [1.0]"
        )
    found: TargetsDriver = get_class(ROUNDS)(shared)
    return found


def winner(frame: pd.DataFrame, phase: int, objectives: Sequence[Objective]) -> Candidate | None:
    """The best of the last results of a phase on its largest fidelity, by the first objective; None without any.

    Only results on the same windows are compared.
    """
    usable = frame[(frame["phase"] == phase) & (frame["status"] == "ok")] if len(frame) else frame
    if not len(usable):
        return None
    windows = usable["stop"] - usable["start"]
    largest = usable[windows == windows.max()]
    at = largest.iloc[-1]
    rows = largest[(largest["start"] == at["start"]) & (largest["batch"] == at["batch"])].to_dict("records")
    return Candidate.from_json(str(min(rows, key=objectives[0].value)["candidate"]))


def within(frame: pd.DataFrame, target: Target) -> pd.DataFrame:
    """The results that meet a target."""
    if not len(frame) or not target.constraints:
        return frame
    return frame[[target.met(row) for row in frame.to_dict("records")]]
