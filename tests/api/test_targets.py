"""Several targets in one run, from the settings to the leaderboard."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.front import Front
from autoprune.hardware.endtoend import Measured
from autoprune.hardware.table import LatencyTable
from autoprune.ledger import FILE, Ledger
from autoprune.run import verdicts
from autoprune.space import Plan, plan_cost

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


def test_a_front_stitched_from_targets(
    given: Any, tmp_path: Path, runs: SimpleNamespace, no_export: None
) -> None:
    """Without any constraint: one phase a ratio, and every phase has a point on the front."""
    wanted = "targets=[0.9,0.7,0.5]"
    found = given.search(tmp_path / "run", OFF, wanted, *EVOPRESS, search="evopress", tokens=12000)
    ledger = Ledger.open(found.folder / FILE)
    assert set(ledger.to_frame()["phase"]) == {0, 1, 2} and len(ledger.events("phase")) == 3
    rows = found.frame()
    sizes = rows[rows["name"] == "front"]["params_ratio"]
    for low, high in ((0.7, 0.9), (0.5, 0.7), (0.0, 0.5)):
        assert ((sizes > low) & (sizes <= high + 1e-9)).any(), sizes.tolist()
    assert not rows["name"].str.startswith("target@").any()


def test_all_budgets_at_once(given: Any, tmp_path: Path, no_export: None) -> None:
    bounds = {"params": ["0.8x", "0.5x"]}
    found = given.search(tmp_path / "run", OFF, constraints=bounds, tokens=8000)
    rows = found.frame().set_index("name")
    assert rows.loc["target@params=0.5x"]["params_ratio"] <= 0.5 + 1e-9
    loose = rows.loc["target@params=0.8x"]
    assert 0.5 < loose["params_ratio"] <= 0.8 + 1e-9
    assert loose["kl_selection"] <= rows.loc["target@params=0.5x"]["kl_selection"]


def test_a_search_for_another_machine(given: Any, front: Front, tmp_path: Path) -> None:
    data = json.loads((front.folder / "latency.json").read_text())
    data["fingerprint"]["cpu"] = "Abacus 9"
    file = tmp_path / "device.json"
    file.write_text(json.dumps(data))
    named = {
        "objectives": ("kl", "decode"),
        "constraints": {"decode": "0.8x", "params": "0.9x"},
        "tokens": 4000,
    }
    with pytest.raises(SettingError, match="cpu='Abacus 9'.*add latency.foreign=true"):
        given.search(tmp_path / "refused", f"latency={file}", **named)
    assert not (tmp_path / "refused" / FILE).exists()
    found = given.search(tmp_path / "run", f"latency={file}", "latency.foreign=true", **named)
    rows = found.frame()
    assert rows["decode_pred_ms"].notna().all() and rows["decode_ms"].isna().all()
    dense = float(rows[rows["name"] == "dense"]["decode_pred_ms"].iloc[0])
    assert (found.folder / "best").is_dir()
    assert (rows[rows["name"] == "front"]["decode_pred_ms"] <= 0.8 * dense + 1e-9).all()
    report = (found.folder / "report.html").read_text()
    assert "Predicted latencies are those of another machine: Abacus 9, 1 threads" in report
    assert "The front was not timed" in report


def test_a_latency_target_that_was_missed_is_searched_again(
    given: Any, front: Front, tmp_path: Path, no_export: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine on which smaller plans save three tenths less than its table says."""
    data, file = json.loads((front.folder / "latency.json").read_text()), tmp_path / "clean.json"
    for entry in data["entries"]:
        entry["ms"] = dict.fromkeys(entry["ms"], 0.1 + 0.01 * entry["option"])
    data |= {"base_ms": {"prefill": 0.3, "decode": 0.3}, "correction": {"prefill": [0, 1], "decode": [0, 1]}}
    file.write_text(json.dumps(data))
    table = LatencyTable.load(file)

    def measure(parts: Any, plans: dict[str, Plan], *_: Any) -> dict[str, Measured]:
        dense = plan_cost(parts.dense_plan(), table)
        found = {}
        for name, plan in plans.items():
            cost = plan_cost(plan, table)
            r = {m: 1 - 0.7 * (1 - cost[m] / dense[m]) for m in ("prefill", "decode")}
            ms = [r[m] * dense[m] for m in ("prefill", "decode") for _ in range(3)]
            found[name] = Measured(*ms, *(r[m] for m in ("prefill", "decode") for _ in range(3)))
        return found

    monkeypatch.setattr(verdicts, "measure_plans", measure)
    named = {"objectives": ("kl", "decode"), "constraints": {"decode": "0.6x"}, "tokens": 8000}
    found = given.search(tmp_path / "run", f"latency={file}", *EVOPRESS, search="evopress", **named)
    ledger = Ledger.open(found.folder / FILE)
    events = ledger.events("kept")
    assert events[0]["missed"] == ["decode=0.6x"] and events[0]["again"]
    assert 1 in set(ledger.to_frame()["phase"]) and len(events) == len(ledger.events("phase")) > 1
    off = [min(abs(t["ratio"]["decode"][0] / 0.6 - 1) for t in e["found"]) for e in events]
    assert off[-1] < off[0]
    report = (found.folder / "report.html").read_text()
    assert "Target decode=0.6x: decode measured" in report
