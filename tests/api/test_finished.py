"""What a finished run leaves behind, and what can be done with it."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from autoprune.kernels import native

import autoprune
from autoprune.errors import AutopruneError, SettingError
from autoprune.front import Front
from autoprune.hardware.table import LatencyTable
from autoprune.ledger import Ledger
from autoprune.models.llama import LlamaAdapter
from autoprune.models.load import load_model
from autoprune.objective import Fidelity, Split, Status
from autoprune.report import leaderboard
from autoprune.shape import AnalyticCosts
from autoprune.space import Plan, plan_cost
from tests import tiny

FILES = {
    *(
        "config.yaml",
        "ledger.sqlite",
        "environment.json",
        "latency.json",
        "leaderboard.csv",
        "leaderboard.md",
    ),
    *("report.html", "pictures", "best", "facts.json"),
}
RATIOS = {
    "params": "params",
    "params_total": "params_total",
    "flops": "flops",
    "kv_bytes": "kv",
    "bytes": "bytes",
}


@pytest.fixture(scope="module")
def frame(front: Front) -> pd.DataFrame:
    return front.frame()


@pytest.fixture(scope="module")
def analytic(given: Any) -> AnalyticCosts:
    return AnalyticCosts(LlamaAdapter(load_model(str(given.model)).model).shape, 32)


def test_the_folder_holds_what_scripts_rely_on(front: Front) -> None:
    assert {p.name for p in front.folder.iterdir()} == FILES
    assert list((front.folder / "pictures").glob("*.png"))
    assert "<html" in (front.folder / "report.html").read_text()
    assert (front.folder / "leaderboard.md").read_text().count("front") >= 2
    assert "autoprune" in json.loads((front.folder / "environment.json").read_text())["command"]


def test_best_loads_and_has_the_parameters_of_its_plan(front: Front, analytic: AnalyticCosts) -> None:
    best = front.folder / "best"
    row = front.frame().query("name == 'front' and params_ratio <= 0.5").sort_values("params_ratio").iloc[-1]
    model = autoprune.load(best)
    expected = plan_cost(Plan.from_json(row["plan"]), analytic)["params_total"]
    assert sum(p.numel() for p in model.parameters()) == expected
    assert row["plan"] in json.dumps(
        json.loads((best / "autoprune_plan.json").read_text()), separators=(",", ":")
    )
    assert model(input_ids=tiny.token_ids((1, 8))).logits.shape == (1, 8, tiny.VOCABULARY)


def test_rows_are_dense_uniform_and_front(frame: pd.DataFrame) -> None:
    assert frame["name"].tolist()[:3] == ["dense", "uniform@0.8", "uniform@0.5"]
    assert 2 <= (frame["name"] == "front").sum() <= 4
    assert set(frame[frame["name"] == "front"]["method"]) == {"nsga2"}
    assert frame["key"].is_unique


def test_ratios_are_those_of_the_plans(frame: pd.DataFrame, analytic: AnalyticCosts) -> None:
    dense = plan_cost(Plan.of([(tiny.GROUPS, tiny.FFN)] * 3), analytic)
    for row in frame.to_dict("records"):
        cost = plan_cost(Plan.from_json(row["plan"]), analytic)
        assert Plan.from_json(row["plan"]).key == row["key"]
        for metric, name in RATIOS.items():
            assert row[f"{name}_ratio"] == pytest.approx(cost[metric] / dense[metric])


def test_predicted_latencies_are_those_of_the_runs_table(front: Front, frame: pd.DataFrame) -> None:
    table = LatencyTable.load(front.folder / "latency.json")
    for row in frame.to_dict("records"):
        cost = plan_cost(Plan.from_json(row["plan"]), table)
        assert row["prefill_pred_ms"] == pytest.approx(cost["prefill"])
        assert row["decode_pred_ms"] == pytest.approx(cost["decode"])


def test_measured_latencies_are_relative_to_dense(frame: pd.DataFrame) -> None:
    assert frame[["prefill_ms", "decode_ms", "prefill_ratio", "decode_ratio"]].notna().all(axis=None)
    dense = frame[frame["name"] == "dense"].iloc[0]
    assert dense["prefill_ratio"] == dense["decode_ratio"] == 1.0


def test_qualities_are_those_of_the_ledger(front: Front, frame: pd.DataFrame) -> None:
    with closing(Ledger.open(front.folder / "ledger.sqlite")) as ledger:
        test = ledger.finals(Fidelity(Split.TEST, (0, 12)))
        selection = ledger.finals(Fidelity(Split.SELECTION, (0, 12)))
        searched = ledger.to_frame().drop_duplicates("key").set_index("key")
    for row in frame.to_dict("records"):
        assert row["kl_test"] == test[row["key"]]["kl"]
        assert row["perplexity_test"] == test[row["key"]]["perplexity"]
        assert row["kl_selection"] == selection[row["key"]]["kl"]
        if row["name"] == "front":
            assert row["kl_fitness"] == searched["kl"][row["key"]]
    dense = frame[frame["name"] == "dense"].iloc[0]
    assert abs(dense["kl_test"]) < 1e-5


def test_the_front_is_non_dominated_on_selection(frame: pd.DataFrame) -> None:
    front = frame[frame["name"] == "front"].sort_values("params_ratio")
    assert front["kl_selection"].is_monotonic_decreasing and front["params_ratio"].is_unique


def test_the_ledger_holds_the_search_within_its_tokens(front: Front) -> None:
    with closing(Ledger.open(front.folder / "ledger.sqlite")) as ledger:
        searched, spent = ledger.to_frame(), ledger.tokens()
        telemetry = ledger.telemetry()
    assert 12_000 - 128 < spent <= 12_000
    assert set(searched["split"]) == {"fitness"} and set(searched["status"]) == {Status.OK.value}
    assert spent == 128 * (searched["origin"] == "evaluated").sum()
    assert 0 < telemetry["block_runs"] < telemetry["block_runs_naive"]


def test_picking_the_best_within_a_ratio(front: Front, frame: pd.DataFrame) -> None:
    point = front.pick(params=0.6)
    within = frame[(frame["name"] == "front") & (frame["params_ratio"] <= 0.6)]
    assert point.key == within.sort_values("kl_selection").iloc[0]["key"]
    assert point.plan.key == point.key and point.figures["params_ratio"] <= 0.6
    assert front.pick(params="0.6x") == front.pick(key=point.key[:6]) == point


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "name exactly one of key, params, prefill, decode"),
        ({"params": 0.5, "decode": 0.5}, "name exactly one"),
        ({"params": 0.01}, "the smallest on the front is 0."),
        ({"params": "half"}, "is not a ratio to dense"),
        ({"key": "zzz"}, "is not on the leaderboard; keys: "),
    ],
)
def test_picking_what_there_is_not_is_told(front: Front, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        front.pick(**asked)


def test_exporting_a_point(front: Front, tmp_path: Path, analytic: AnalyticCosts) -> None:
    key = front.frame().query("name == 'front'").iloc[0]["key"]
    assert autoprune.export(front.folder, to=tmp_path / "small", key=key) == tmp_path / "small"
    expected = plan_cost(front.pick(key=key).plan, analytic)["params_total"]
    assert sum(p.numel() for p in autoprune.load(tmp_path / "small").parameters()) == expected


def test_making_the_report_again_changes_nothing(front: Front, capsys: pytest.CaptureFixture[str]) -> None:
    csv = (front.folder / "leaderboard.csv").read_text()
    (front.folder / "leaderboard.md").unlink()
    (front.folder / "report.html").unlink()
    autoprune.report(front.folder)
    assert str(front.folder / "report.html") in capsys.readouterr().out
    assert (front.folder / "leaderboard.csv").read_text() == csv
    assert (front.folder / "leaderboard.md").is_file() and (front.folder / "report.html").is_file()


def test_the_same_seed_and_table_give_the_same_ledger(
    given: Any, front: Front, tmp_path: Path, runs: SimpleNamespace, no_export: None
) -> None:
    again = given.search(tmp_path / "again", f"latency.file={front.folder / 'latency.json'}")
    assert runs.ordered(again.folder) == runs.ordered(front.folder)
    columns = ["key", "kl_fitness", "kl_selection", "kl_test", "perplexity_test"]
    pd.testing.assert_frame_equal(again.frame()[columns], front.frame()[columns])


def test_another_seed_gives_another_search(
    given: Any, front: Front, tmp_path: Path, runs: SimpleNamespace, no_export: None
) -> None:
    other = given.search(tmp_path / "other", "latency.mode=off", seed=1)
    keys = [{row[8] for row in runs.ordered(f.folder)} for f in (front, other)]
    assert keys[0] != keys[1]
    assert not (other.folder / "latency.json").exists()
    assert other.frame()[["prefill_ms", "decode_ms", "prefill_pred_ms"]].isna().all(axis=None)


def test_a_constraint_holds_for_the_whole_front(given: Any, tmp_path: Path, no_export: None) -> None:
    found = given.search(tmp_path / "run", "latency.mode=off", constraints={"params": "0.5x"}, tokens=4000)
    front = found.frame().query("name == 'front'")
    assert len(front) and (front["params_ratio"] <= 0.5 + 1e-9).all()


def test_leaderboard_is_read_back(front: Front) -> None:
    assert list(front.frame().columns)[: len(leaderboard.COLUMNS)] == list(leaderboard.COLUMNS)


def test_an_export_may_be_refit_once_more(front: Front, tmp_path: Path) -> None:
    row = front.frame().query("name == 'front' and params_ratio < 0.9").iloc[0]
    plain = autoprune.load(autoprune.export(front.folder, key=row["key"], to=tmp_path / "plain"))
    again = autoprune.load(autoprune.export(front.folder, key=row["key"], to=tmp_path / "again", refit=True))
    ours, theirs = plain.state_dict(), again.state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    moved = {n for n in ours if not ours[n].equal(theirs[n])}
    assert "--refit" in (tmp_path / "again" / "README.md").read_text()
    assert moved and all("proj" in n for n in moved)


def test_an_export_may_be_in_int8(front: Front, tmp_path: Path) -> None:
    if native.missing():
        pytest.skip(native.missing())
    row = front.frame().query("name == 'front'").iloc[-1]
    to = autoprune.export(front.folder, key=row["key"], to=tmp_path / "small", int8=True)
    card = (to / "README.md").read_text()
    figures = {
        name: float(re.search(rf"\| {name} \| (\S+) \| test", card)[1])
        for name in ("kl", "kl fp32", "kl int8")
    }  # type: ignore[index]
    assert abs(figures["kl"] - figures["kl fp32"]) < 1e-3 and figures["kl int8"] != figures["kl fp32"]
    assert "--int8" in card and "decode ratio" not in card and "bytes ratio" not in card
    loaded = autoprune.load(to)
    stored = (to / "int8/model.safetensors").stat().st_size
    assert "int8 matrices" in loaded.autoprune_kernels and not (to / "model.safetensors").exists()
    assert stored < 0.8 * sum(p.nbytes for p in autoprune.load(to, kernels=False).parameters())


def test_int8_is_refused_at_the_start_where_it_cannot_be_had(given: Any, tmp_path: Path) -> None:
    if native.missing():
        pytest.skip(native.missing())
    for space, settings, says in (
        ("structured", ("latency.kernels=false",), "latency.kernels=false measures without any"),
        (
            "structured",
            ("evaluator=[perplexity]", "objectives=[perplexity,params]"),
            "add divergence to evaluator",
        ),
        ("sparsity", ("space.sparsity.pattern=8x1",), "no int8 kernel for the pattern 8x1"),
    ):
        with pytest.raises(AutopruneError, match=f"^export.int8=true.*{says}"):
            given.search(tmp_path / space, "export.int8=true", *settings, space=space)
