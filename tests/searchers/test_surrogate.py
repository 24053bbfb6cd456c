"""The model of option steps, the variances it goes by, and candidates picked within bounds."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from autoprune.objective import Constraint, parse_constraint
from autoprune.searchers.proposals import Bounds, step_values
from autoprune.searchers.surrogate import Posterior, Spread, StepModel
from autoprune.space import Candidate, CostTable
from tests.tabular import SHAPE, structured_space

SIZES = [3, 2, 4]
STEPS = 3 * 3


def candidates() -> list[Candidate]:
    return [Candidate(c) for c in itertools.product(*map(range, SIZES))]


def test_a_code_counts_the_steps_climbed() -> None:
    model = StepModel(SIZES, 6.0)
    assert model.code(Candidate((2, 0, 1))).tolist() == [1, 1, 0, 0, 0, 0, 1, 0, 0]


def test_it_recovers_the_effects_of_steps() -> None:
    model, rng = StepModel(SIZES, 1e9), np.random.default_rng(0)
    champion, true = Candidate((1, 1, 1)), rng.normal(size=STEPS)
    for c in candidates():
        gap = float((model.code(c) - model.code(champion)) @ true)
        model.learn(champion, c, gap, 1e-6)
    posterior = model.posterior(champion, np.zeros(STEPS), np.ones(STEPS), 0.0)
    used = [0, 1, 3, 6, 7, 8]  # the others are steps that these sites do not have
    assert posterior.best[used] == pytest.approx(true[used], abs=1e-2)
    steps = np.array([model.code(c) - model.code(champion) for c in candidates()])
    beliefs = posterior.beliefs(steps, 0.25)
    assert [b.gap for b in beliefs] == pytest.approx((steps @ true).tolist(), abs=1e-2)
    assert all(0.25 <= b.variance < 0.26 for b in beliefs)


def test_nothing_measured_leaves_what_was_known_before() -> None:
    model, mean = StepModel(SIZES, 6.0), np.arange(STEPS, dtype=float)
    posterior = model.posterior(Candidate((0, 0, 0)), mean, np.full(STEPS, 0.5), 0.0)
    assert posterior.best == pytest.approx(mean)
    drawn = posterior.draw(np.random.default_rng(0), 4000)
    assert drawn.std(axis=0) == pytest.approx(np.full(STEPS, 0.5), rel=0.1)


def test_draws_spread_as_the_posterior_does() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 3))
    posterior = Posterior(np.zeros(3), np.ones(3), rows, rng.normal(size=5), np.full(5, 0.3))
    exact = np.linalg.inv(np.eye(3) + rows.T @ rows / 0.3)
    drawn = posterior.draw(rng, 20_000)
    assert np.cov(drawn.T) == pytest.approx(exact, abs=0.02)
    assert drawn.mean(axis=0) == pytest.approx(exact @ rows.T @ posterior.gaps / 0.3, abs=0.02)


def test_measurements_far_away_count_less_and_a_pair_counts_once() -> None:
    model, zero, one = StepModel(SIZES, 1.0), np.zeros(STEPS), np.ones(STEPS)
    near, far, moved = Candidate((0, 0, 0)), Candidate((2, 1, 3)), Candidate((1, 0, 0))
    model.learn(near, moved, 9.0, 0.1)
    model.learn(near, moved, 1.0, 0.1)
    at_home = model.posterior(near, zero, one, 0.0)
    assert len(at_home.gaps) == 1 and at_home.best[0] == pytest.approx(1 / 1.1)
    assert model.posterior(far, zero, one, 0.0).best[0] < 0.1


def test_spread_finds_noise_and_misfit() -> None:
    spread, rng = Spread(), np.random.default_rng(0)
    for _ in range(20):
        spread.gaps([rng.normal(1.0, 0.3, 4) for _ in range(10)] + [np.array([5.0])])
        misses = rng.normal(0.0, np.hypot(0.2, 0.3), 10)
        spread.residuals(misses.tolist(), [0.3**2] * 10)
    assert spread.noise**0.5 == pytest.approx(0.3, rel=0.15)
    assert spread.misfit**0.5 == pytest.approx(0.2, rel=0.5)
    assert Spread().misfit > 0


def test_values_are_relative_to_the_champion_and_end_at_the_radius() -> None:
    effects = np.array([-1.0, -0.5, 0, -2.0, 0, 0, -3.0, -2.0, -1.0])
    values = step_values(effects, Candidate((1, 0, 1)), np.array(SIZES), radius=1, caution=0.25)
    assert values[0].tolist() == [1.25, 0.0, -0.25, np.inf]
    assert values[1].tolist() == [0.0, -1.75, np.inf, np.inf]
    assert values[2].tolist() == [3.25, 0.0, -1.75, np.inf]


@pytest.mark.parametrize("text", [{"params": "0.6x"}, {"params": "0.7x", "decode": "0.6x"}])
def test_picks_hold_every_bound_and_come_close_to_the_optimum(text: dict[str, str]) -> None:
    space = structured_space(dataclasses.replace(SHAPE, blocks=2))
    dense = space.cost(space.dense)
    limits = [parse_constraint(m, t, dense) for m, t in text.items()]
    tables = [t for c in limits if (t := space.cost_table(c.metric)) is not None]
    sizes = np.array([len(g.options) for g in space.genes])  # type: ignore[union-attr]
    bounds, rng = Bounds(tables, limits, int(sizes.max())), np.random.default_rng(0)
    for _ in range(10):
        effects = -rng.exponential(size=len(sizes) * (sizes.max() - 1))
        values = step_values(effects, space.dense, sizes, radius=99, caution=0.0)
        picked = bounds.pick(values, np.full(len(limits), 1 / len(limits)))
        assert picked is not None
        candidate = Candidate(tuple(picked.tolist()))
        assert not any(c.violation(space.cost(candidate)) for c in limits)
        fitting = [
            sum(values[g, o] for g, o in enumerate(c))
            for c in itertools.product(*map(range, sizes))
            if not any(k.violation(space.cost(Candidate(c))) for k in limits)
        ]
        mine = sum(values[g, o] for g, o in enumerate(picked))
        assert mine <= np.quantile(fitting, 0.02)


def test_bounds_that_nothing_meets_give_nothing() -> None:
    table = CostTable("params", 10.0, ((1.0, 2.0), (1.0, 2.0)))
    bounds = Bounds([table], [Constraint("params", 11.0)], 2)
    assert bounds.pick(np.zeros((2, 2)), np.ones(1)) is None
