"""Several targets in one run, from the settings to the leaderboard."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from autoprune.ledger import FILE, Ledger

EVOPRESS = ("search.offspring=6", "search.survivors=[2,1]", "search.windows=[2,4]")
OFF = "latency.mode=off"


def test_one_budget_after_the_other(
    given: Any, tmp_path: Path, runs: SimpleNamespace, no_export: None
) -> None:
    bounds = {"params": ["0.8x", "0.5x"], "kv": "0.9x"}
    found = given.search(tmp_path / "run", OFF, *EVOPRESS, search="evopress", constraints=bounds, tokens=8000)
    rows = found.frame().set_index("name")
    for ratio in (0.8, 0.5):
        row = rows.loc[f"target@params={ratio}x,kv_bytes=0.9x"]
        assert row["params_ratio"] <= ratio + 1e-9 and row["kv_ratio"] <= 0.9 + 1e-9
        assert row["kl_test"] > 0 and row["method"] == "evopress"
    ledger = Ledger.open(found.folder / FILE)
    assert set(ledger.to_frame()["phase"]) == {0, 1}
    assert len(ledger.events("phase")) == 2


def test_all_budgets_at_once(given: Any, tmp_path: Path, no_export: None) -> None:
    bounds = {"params": ["0.8x", "0.5x"]}
    found = given.search(tmp_path / "run", OFF, constraints=bounds, tokens=8000)
    rows = found.frame().set_index("name")
    assert rows.loc["target@params=0.5x"]["params_ratio"] <= 0.5 + 1e-9
    loose = rows.loc["target@params=0.8x"]
    assert 0.5 < loose["params_ratio"] <= 0.8 + 1e-9
    assert loose["kl_selection"] <= rows.loc["target@params=0.5x"]["kl_selection"]
