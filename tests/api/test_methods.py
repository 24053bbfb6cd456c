"""Methods that measure beyond the constraint, or have a name of their own: from the settings to the leaderboard."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoprune.ledger import FILE, Ledger

OFF = "latency.mode=off"
SMALL = {
    "dp": ("search.windows=2", "search.confirm=4"),
    "greedy": ("search.windows=1", "search.confirm=4", "search.step=4"),
    "evopress+": ("search.offspring=6", "search.survivors=[2,1]", "search.windows=[2,4]"),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_bound_holds_and_the_name_is_the_one_asked_for(
    name: str, given: Any, tmp_path: Path, runs: SimpleNamespace, no_export: None
) -> None:
    found = given.search(
        tmp_path / "run", OFF, *SMALL[name], search=name, constraints={"params": "0.6x"}, tokens=8000
    )
    rows = found.frame()
    front = rows[rows["name"] == "front"]
    assert len(front) and set(front["method"]) == {name}
    assert (front["params_ratio"] <= 0.6 + 1e-9).all()
    ledger = Ledger.open(found.folder / FILE)
    (reason,) = {e["reason"] for e in ledger.events("phase")}
    assert reason == ("tokens" if name == "evopress+" else "finished")
    told, row = ledger.to_frame(), front.iloc[0]
    dense = told[told["key"] == row["key"]]["params"].iloc[0] / row["params_ratio"]
    assert (told["params"] > 0.601 * dense).any() == (name != "evopress+")
    ledger.close()


def test_dp_without_a_constraint_gives_a_front(given: Any, tmp_path: Path, no_export: None) -> None:
    found = given.search(tmp_path / "run", OFF, *SMALL["dp"], search="dp", tokens=8000)
    rows = found.frame()
    front = rows[rows["name"] == "front"]
    assert len(front) == 4 and front["params_ratio"].min() < 0.5 < front["params_ratio"].max()
