"""A search whose phases rebuild their ladders, from the settings to an exported checkpoint."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import autoprune
from autoprune.config import compose
from autoprune.errors import LedgerError
from autoprune.front import Front
from autoprune.ledger import Ledger
from autoprune.objective import Fidelity, Split
from autoprune.progress import Progress
from autoprune.run.parts import open_parts
from autoprune.run.supernets import SUPERNET, parts_with
from autoprune.space import Plan
from tests.killing import SCORES, events, killed_without_ladders

pytestmark = pytest.mark.alone

TYR = (
    "latency.mode=off",
    "search.offspring=6",
    "search.survivors=[2,1]",
    "search.windows=[2,4]",
    "search.iterations=3",
)
NAMED: dict[str, Any] = {"search": "tyr", "constraints": {"params": "0.6x"}, "tokens": 9000}


@pytest.fixture(scope="module")
def rebuilt(given: Any, tmp_path_factory: pytest.TempPathFactory) -> Front:
    """A finished run, best/ included."""
    found: Front = given.search(tmp_path_factory.mktemp("rebuilt") / "run", *TYR, **NAMED)
    return found


def test_searched_rows_name_the_last_ladders_and_uniform_rows_none(rebuilt: Front) -> None:
    frame, noted = rebuilt.frame(), events(rebuilt.folder, SUPERNET)
    assert [e["number"] for e in noted] == [0, 1, 2] and len({e["ladders"] for e in noted}) == 3
    front = frame[frame["name"] == "front"]
    assert len(front) and set(front["ladders"]) == {noted[-1]["ladders"]}
    assert frame[frame["name"] != "front"]["ladders"].isna().all()
    assert (front["params_ratio"] <= 0.6 + 1e-9).all() and set(front["method"]) == {"tyr"}
    for said in ("leaderboard.md", "report.html"):
        assert "ladders rebuilt around what the search had found" in (rebuilt.folder / said).read_text()


def test_scores_are_those_of_the_last_ladders(rebuilt: Front, given: Any) -> None:
    frame = rebuilt.frame()
    row = frame[frame["name"] == "front"].iloc[0]
    cfg = compose([*given.line(rebuilt.folder, *TYR[:1])])
    parts = open_parts(cfg, Progress(quiet=True))
    fidelity, plan = Fidelity(Split.TEST, (0, 12)), Plan.from_json(str(row["plan"]))
    with closing(Ledger.open(rebuilt.folder / "ledger.sqlite")) as ledger:
        last = parts_with(parts, ledger, str(row["ladders"]), Progress(quiet=True))
        assert f"{plan.key}@{row['ladders']}" in ledger.finals(fidelity)
    found = [p.evaluation(p.evaluators).evaluate([plan], fidelity)[0].metrics["kl"] for p in (last, parts)]  # type: ignore[union-attr]
    assert found[0] == row["kl_test"] != found[1]


def test_the_checkpoint_has_the_last_ladders_weights(rebuilt: Front, given: Any, tmp_path: Path) -> None:
    frame = rebuilt.frame()
    row = frame[frame["name"] == "front"].sort_values("kl_selection").iloc[0]
    model = autoprune.load(rebuilt.folder / "best")
    parts = open_parts(compose([*given.line(rebuilt.folder, *TYR[:1])]), Progress(quiet=True))
    plan = Plan.from_json(str(row["plan"]))
    with closing(Ledger.open(rebuilt.folder / "ledger.sqlite")) as ledger:
        last = parts_with(parts, ledger, str(row["ladders"]), Progress(quiet=True))
    for source, same in ((last, True), (parts, False)):
        theirs = source.build(plan).state_dict()
        equal = all(theirs[n].equal(t) for n, t in model.state_dict().items())
        assert equal == same


@pytest.mark.parametrize("share", [0.1, 0.45, 0.8])
def test_killed_in_any_phase_and_resumed_it_ends_the_same(
    rebuilt: Front, given: Any, tmp_path: Path, runs: SimpleNamespace, share: float
) -> None:
    out = tmp_path / "run"
    words = [f"model={given.model}", f"data={given.text}", f"out={out}", "search=tyr", "tokens=9000"]
    killed_without_ladders(
        runs, [*words, "constraints={params: 0.6x}", *given.line(out)[5:-2], *TYR], rebuilt, share
    )


def test_a_ledger_that_notes_other_ladders_is_refused(rebuilt: Front, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(rebuilt.folder, run)
    with closing(Ledger.open(run / "ledger.sqlite")) as ledger, ledger._transaction() as db:
        db.execute("DELETE FROM events WHERE kind IN ('finished', 'searched', 'phase')")
        db.execute("UPDATE events SET payload = replace(payload, '\"number\": 1, ', '\"number\": 7, ')")
        row = {"number": 1, "ladders": "0123", "space": "0"}
    with closing(Ledger.open(run / "ledger.sqlite")) as ledger:
        ledger.event(SUPERNET, **row)
    with pytest.raises(LedgerError, match="the ladders of phase 1 are 0123 in the ledger"):
        autoprune.resume(run)


def test_a_fork_adopts_evaluations_of_the_same_ladders_only(rebuilt: Front, tmp_path: Path) -> None:
    forked = autoprune.resume(rebuilt.folder, fork=tmp_path / "fork")
    with closing(Ledger.open(forked.folder / "ledger.sqlite")) as ledger:
        frame = ledger.to_frame()
        assert "evaluated" not in set(frame["origin"]) and len(ledger.events(SUPERNET)) == 3
    pd.testing.assert_frame_equal(forked.frame()[SCORES], rebuilt.frame()[SCORES])
