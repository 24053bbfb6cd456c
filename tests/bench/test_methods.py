"""What the command line names, and which methods' long runs hold the shorter ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoprune.bench.search.methods import ANYTIME, parse, stages
from autoprune.errors import SettingError
from tests.searchers.methods import METHODS, SHORT
from tests.tabular import KL, PARAMS, tabular_problem, trace


@pytest.mark.parametrize(
    ("share", "window", "windows"),
    [(4, 256, (2, 16, 64)), (16, 256, (1, 4, 16)), (64, 256, (1, 1, 4)), (16, 128, (1, 8, 32))],
)
def test_stages_of_the_published_sizes(share: int, window: int, windows: tuple[int, ...]) -> None:
    assert stages(share, window) == windows


def test_variants_and_settings() -> None:
    plain, variant, other = parse(
        "nsga2,evopress/4:search.swaps=2,mine=evopress:search.windows=[1,2,4]:search.offspring=8", 256
    )
    assert (plain.name, plain.search, plain.settings) == ("nsga2", "nsga2", ())
    assert variant.settings == ("search.windows=[2, 16, 64]", "search.swaps=2")
    assert (variant.name, other.name) == ("evopress/4:search.swaps=2", "mine")
    assert other.settings == ("search.windows=[1,2,4]", "search.offspring=8")
    assert len({m.folder for m in (plain, variant, other)}) == 3


@pytest.mark.parametrize("text", ["evopress/5", "nsga2/4", "nsga2,nsga2", "nsga2:population=3"])
def test_mistakes_are_named(text: str) -> None:
    with pytest.raises(SettingError, match="--methods"):
        parse(text, 256)


@pytest.mark.parametrize("name", sorted(ANYTIME & set(METHODS)))
def test_a_shorter_run_is_the_beginning_of_a_longer_one(name: str) -> None:
    problem = tabular_problem({"params": "0.7x"}, (KL, PARAMS))
    count = 30 if name in SHORT else 150  # evaluations
    short, long = (
        trace(METHODS[name](replace(problem, tokens=tokens)), problem, count) for tokens in (1_000, 1_000_000)
    )
    assert short == long
