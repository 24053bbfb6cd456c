"""Every method in a small form, and the digests of what they propose."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from autoprune.searchers.auto import Auto
from autoprune.searchers.dp import DP
from autoprune.searchers.emo import EMO
from autoprune.searchers.evopress import EvoPress
from autoprune.searchers.evopress_plus import EvoPressPlus
from autoprune.searchers.gp import GP
from autoprune.searchers.greedy import Greedy
from autoprune.searchers.local import Local
from autoprune.searchers.milp import MILP
from autoprune.searchers.nsga2 import NSGA2
from autoprune.searchers.nsga3 import NSGA3
from autoprune.searchers.optuna_nsga2 import OptunaNSGA2
from autoprune.searchers.problem import Problem
from autoprune.searchers.random import Random
from autoprune.searchers.tpe import TPE
from autoprune.searchers.tyr import Tyr
from autoprune.study import Searcher
from tests.tabular import KL, PARAMS, tabular_problem, trace


def make_random(problem: Problem, **settings: Any) -> Random:
    """8 candidates an ask."""
    return Random(problem, **{"windows": 2, "batch": 8, **settings})


def make_nsga2(problem: Problem, **settings: Any) -> NSGA2:
    """Generations of 8."""
    return NSGA2(problem, **{"windows": 2, "population": 8, **settings})


def make_nsga3(problem: Problem, **settings: Any) -> NSGA3:
    """Generations of 8."""
    return NSGA3(problem, **{"windows": 2, "population": 8, **settings})


def make_optuna_nsga2(problem: Problem, **settings: Any) -> OptunaNSGA2:
    """Generations of 8."""
    return OptunaNSGA2(problem, **{"windows": 2, "population": 8, **settings})


def make_tpe(problem: Problem, **settings: Any) -> TPE:
    """8 candidates an ask, few samples for each."""
    return TPE(problem, **{"windows": 2, "batch": 8, "candidates": 4, **settings})


def make_gp(problem: Problem, **settings: Any) -> GP:
    """Models only what comes after the 147th: each suggestion takes half a second."""
    return GP(problem, **{"windows": 2, "batch": 3, "startup": 147, **settings})


def make_emo(problem: Problem, **settings: Any) -> EMO:
    """Two sub-networks, two generations of 4 each, then generations of 8."""
    small = {"parts": 2, "part_population": 4, "part_generations": 2, "population": 8, "windows": 2}
    return EMO(problem, **{**small, **settings})


def make_evopress(problem: Problem, **settings: Any) -> EvoPress:
    """Generations of 8, 3, 1 and the parent."""
    settings = {"windows": (1, 2, 4), "survivors": (3, 2, 1), "offspring": 8, **settings}
    return EvoPress(problem, **settings)


def make_evopress_plus(problem: Problem, **settings: Any) -> EvoPressPlus:
    """Generations of 8, 3, 1 and the parent."""
    settings = {"windows": (1, 2, 4), "survivors": (3, 2, 1), "offspring": 8, **settings}
    return EvoPressPlus(problem, **settings)


def make_dp(problem: Problem, **settings: Any) -> DP:
    """Confirmed on 4 windows."""
    return DP(problem, **{"windows": 2, "confirm": 4, **settings})


def make_milp(problem: Problem, **settings: Any) -> MILP:
    """Confirmed on 4 windows."""
    return MILP(problem, **{"windows": 2, "confirm": 4, **settings})


def make_local(problem: Problem, **settings: Any) -> Local:
    """8 neighbours an ask."""
    return Local(problem, **{"windows": 2, "batch": 8, **settings})


def make_greedy(problem: Problem, **settings: Any) -> Greedy:
    """Confirmed on 4 windows."""
    return Greedy(problem, **{"windows": 2, "confirm": 4, **settings})


def make_auto(problem: Problem, **settings: Any) -> Auto:
    """Rounds of 8 moves."""
    return Auto(problem, **{"candidates": 8, "racers": 2, **settings})


def make_tyr(problem: Problem, **settings: Any) -> Tyr:
    """One iteration's search, as small."""
    settings = {"windows": (1, 2, 4), "survivors": (3, 2, 1), "offspring": 8, **settings}
    return Tyr(problem, **settings)


METHODS: dict[str, Callable[..., Searcher]] = {
    "random": make_random,
    "auto": make_auto,
    "nsga2": make_nsga2,
    "nsga3": make_nsga3,
    "optuna_nsga2": make_optuna_nsga2,
    "tpe": make_tpe,
    "gp": make_gp,
    "emo": make_emo,
    "evopress": make_evopress,
    "evopress+": make_evopress_plus,
    "milp": make_milp,
    "local": make_local,
    "greedy": make_greedy,
    "tyr": make_tyr,
}
SHORT = {"gp": 150, "tpe": 150}  # evaluations, where 300 would take too long


def digests() -> dict[str, str]:
    """What every method proposes, under two constraints."""
    problem = tabular_problem({"params": "0.7x", "decode": "0.6x"}, (KL, PARAMS))
    return {name: trace(make(problem), problem, SHORT.get(name, 300)) for name, make in METHODS.items()}


if __name__ == "__main__":
    print(json.dumps(digests()))
