"""What a run searches for, and which of the plans it found it hands on: also for whoever compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoprune.allocation import Allocation
from autoprune.objective import Objective
from autoprune.run.finals import finalists
from autoprune.run.parts import instantiate
from autoprune.run.targets import Shared, Target, loosest, within
from autoprune.run.typed import check_types
from autoprune.space import Candidate, Plan, Space
from autoprune.study import Budget

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig


def shared_of(
    cfg: DictConfig,
    space: Space,
    objectives: tuple[Objective, ...],
    targets: tuple[Target, ...],
    windows: int,
    allocations: Sequence[Allocation] = (),
) -> Shared:
    """What the phases of a run with these settings and so many fitness windows share."""
    check_types(cfg.search, "search")
    return Shared(
        space=space,
        objectives=objectives,
        targets=targets,
        budget=Budget(int(cfg.tokens), cfg.evaluations, cfg.seconds),
        windows=windows,
        window=int(cfg.window),
        seed=int(cfg.seed),
        ratios=tuple(cfg.uniform),
        allocations=tuple(allocations),
        make=lambda problem: instantiate(cfg.search, problem),
        stitch=tuple(cfg.targets),
        rounds=tuple(cfg.calibration.rounds),
        follow=cfg.calibration.follow,
    )


def picked(
    frame: pd.DataFrame,
    named: Sequence[Candidate],
    space: Space,
    dense: Plan,
    objectives: Sequence[Objective],
    targets: Sequence[Target],
    limit: int,
) -> list[Candidate]:
    """What the searchers name, else of every phase its share, or of every target where one phase has them all.

    Without `dense`, which has a row of its own.
    """
    if others := [c for c in named if space.decode(c) != dense]:
        return [c for c in others if any(t.met(space.cost(c)) for t in targets)][:limit]
    fitting = within(frame, loosest(targets))
    phases = [rows for _, rows in fitting.groupby("phase")] if len(fitting) else []
    parts = phases if len(phases) > 1 else [within(frame, target) for target in targets]
    found: dict[Candidate, None] = {}
    for part in parts:
        found |= dict.fromkeys(finalists(part, objectives, max(1, limit // len(parts))))
    return list(found)
