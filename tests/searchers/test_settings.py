"""Settings out of range: every method refuses them in one line that names setting, value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from autoprune.errors import SettingError
from tests.searchers.methods import METHODS, make_auto, make_dp
from tests.tabular import KL, PARAMS, WINDOWS, tabular_problem

MAKE = {**METHODS, "dp": make_dp}
STAGES = ("evopress", "evopress+", "tyr")
TABLES = ("dp", "milp")
FRONTS = ("auto", "nsga2", "nsga3", "optuna_nsga2", "tpe", "gp", "emo", *TABLES)

MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    *(
        ("auto", {name: 0}, f"search.{name}=0 must be at least 1")
        for name in ("candidates", "racers", "radius")
    ),
    *(("auto", {name: -0.1}, f"search.{name}=-0.1 must be at least 0") for name in ("z", "drop")),
    *(
        ("auto", {"caution": value}, f"search.caution={value} must be two numbers: 0 <= least <= most")
        for value in ([], [1.0], [2.0, 1.0], [-1.0, 1.0], [0.0, 1.0, 2.0])
    ),
    *(("auto", {"reach": value}, f"search.reach={value} must be above 0") for value in (0, -1.0)),
    ("auto", {"cap": 1}, "search.cap=1 must be at least search.first=1 and search.chunk=2"),
    ("auto", {"first": 8}, "search.cap=4 must be at least search.first=8 and search.chunk=2"),
    ("auto", {"cap": WINDOWS + 1}, f"search.cap={WINDOWS + 1} is not between 1 and the {WINDOWS} fitness"),
    (
        "auto",
        {"confirm": -1},
        f"search.confirm=-1 is not between 1 and the {WINDOWS} fitness windows there are",
    ),
    ("auto", {"spacing": 1e-9}, "search.spacing=1e-09 must be at least 0.001 and below 1"),
    *(
        (n, {"smallest": 1.0}, "search.smallest=1.0 must be at least 0 and below 1")
        for n in ("auto", *TABLES)
    ),
    *(
        (n, {"smallest": 1.0}, "search.smallest=1.0 must be at least 0 and below 1")
        for n in ("nsga2", "optuna_nsga2", "tpe", "gp", "emo")
    ),
    *((n, {"confirm": 0}, "search.confirm=0 must be at least 1") for n in TABLES),
    *((n, {"spread": 1e9}, "search.spread=1000000000.0 is not between 0 and 10") for n in TABLES),
    *((n, {"windows": (4, 2, 1)}, "search.windows=[4, 2, 1] must not fall") for n in STAGES),
    *((n, {"swaps": 0}, "search.swaps=0 must be at least 1") for n in STAGES),
    *((n, {"generations": 0}, "search.generations=0 must be at least 1, or null") for n in STAGES),
    ("evopress+", {"far": 2.0}, "search.far=2.0 is not between 0 and 1"),
    ("tyr", {"follow": 5}, "search.follow=5 is not between 1 and search.iterations=4, or null"),
    ("tyr", {"ffn_multiple": 0}, "search.ffn_multiple=0 must be at least 1, or null"),
    ("emo", {"part_population": 1}, "search.part_population=1 must be at least 4"),
    ("emo", {"part_generations": 0}, "search.part_generations=0 must be at least 1"),
    *((n, {"mutation": 1e9}, "is not between 0 and the 8 sites, or null") for n in ("nsga2", "nsga3")),
    *((n, {"population": 3}, "search.population=3 must be at least 4") for n in ("nsga2", "nsga3", "emo")),
    ("optuna_nsga2", {"mutation": 3.0}, "search.mutation=3.0 is not between 0 and 1, or null"),
    ("tpe", {"candidates": 0}, "search.candidates=0 must be at least 1"),
    ("gp", {"startup": 1}, "search.startup=1 must be at least 2"),
    *((n, {"batch": 0}, "search.batch=0 must be at least 1") for n in ("random", "tpe", "gp", "local")),
    ("local", {"restarts": -1}, "search.restarts=-1 must be at least 0, or null"),
    ("greedy", {"step": 0}, "search.step=0 must be at least 1"),
]


@pytest.mark.parametrize(("name", "settings", "said"), MISTAKES)
def test_what_is_out_of_range_is_refused(name: str, settings: dict[str, Any], said: str) -> None:
    """With a budget and, by methods that need none, without one, too."""
    for bounds in ({"params": "0.6x"}, {}) if name in FRONTS else ({"params": "0.6x"},):
        with pytest.raises(SettingError) as caught:
            MAKE[name](tabular_problem(bounds, (KL, PARAMS)), **settings)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_radius_beyond_all_options_still_draws_without_caution_when_nothing_is_new() -> None:
    """It means any step; the widest there is comes to the same."""
    problem = tabular_problem({"params": "0.6x"}, (KL, PARAMS))
    widest = int(problem.sizes("auto").max()) - 1
    far, wide = (make_auto(problem, radius=radius)._reaches() for radius in (99, widest))
    assert far == wide and len(far) == 2 and far[-1] == (widest, (0.0, 0.0))
