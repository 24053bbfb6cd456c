"""Gaussian processes: the contract, one thread, at most four objectives; the rest is in test_optuna.py."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.errors import SettingError
from autoprune.objective import Objective, Result
from autoprune.searchers.gp import GP
from autoprune.searchers.problem import Problem
from tests.contracts import SearcherContract
from tests.searchers.methods import make_gp, make_tpe
from tests.tabular import KL, PARAMS, Tabular, drive, tabular_problem

BOUND = {"params": "0.6x"}


class TestGP(SearcherContract):
    def make(self, problem: Problem, **settings: Any) -> GP:
        return make_gp(problem, **settings)


@pytest.mark.slow
def test_gp_thinks_the_same_with_two_threads_and_other_global_states() -> None:
    problem, proposed = tabular_problem(BOUND, (KL, PARAMS)), []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        random.seed(threads)
        np.random.seed(threads)
        torch.manual_seed(threads)
        state = torch.get_rng_state()
        try:
            done: list[Result] = drive(make_gp(problem, startup=14, batch=2), Tabular(problem.space), 16)
            assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
        finally:
            torch.set_num_threads(before)
        proposed.append([r.proposal for r in done])
    assert proposed[0] == proposed[1]


def test_gp_takes_four_objectives_at_most() -> None:
    many = (KL, PARAMS, *map(Objective, ("decode", "flops", "bytes")))
    with pytest.raises(SettingError, match=r"search=gp takes at most 4 objectives; objectives=\[kl, params"):
        make_gp(tabular_problem({}, many))
    drive(make_tpe(tabular_problem({}, many)), Tabular(tabular_problem().space), 24)
