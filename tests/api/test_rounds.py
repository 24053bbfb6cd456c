"""A search in rounds, from the settings to the leaderboard, whole and killed."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoprune.front import Front
from autoprune.ledger import Ledger
from autoprune.run.finals import chosen
from autoprune.run.supernets import SUPERNET
from autoprune.run.targets import PHASE
from autoprune.study import SupernetSpec
from tests.killing import events, killed_without_ladders

pytestmark = pytest.mark.alone

SETTINGS = (
    *("latency.mode=off", "search.candidates=6", "space.structured.ffn_options=4"),
    *("calibration.rounds=[1,1]", "calibration.follow=2", "calibration.relative=true"),
)
NAMED: dict[str, Any] = {"search": "auto", "constraints": {"params": "0.6x"}, "tokens": 6000}


@pytest.fixture(scope="module")
def whole(given: Any, tmp_path_factory: pytest.TempPathFactory) -> Front:
    """A finished run, best/ included."""
    found: Front = given.search(tmp_path_factory.mktemp("rounds") / "run", *SETTINGS, **NAMED)
    return found


def test_the_front_is_on_ladders_rebuilt_around_the_first_round_s_champion(whole: Front) -> None:
    frame, (noted,), phases = whole.frame(), events(whole.folder, SUPERNET), events(whole.folder, PHASE)
    front, spec = frame[frame["name"] == "front"], SupernetSpec.from_json(str(noted["spec"]))
    assert noted["number"] == 1 and len(phases) == 2 and spec.follow
    assert len(front) and set(front["ladders"]) == {noted["ladders"]}
    with closing(Ledger.open(whole.folder / "ledger.sqlite")) as ledger:
        best, rows = chosen(phases[:1])[0], ledger.to_frame()
    same = rows[rows["candidate"] == best.to_json()]
    assert set(same["key"]) == {spec.reference.key} and set(same["phase"]) == {0, 1}


def test_killed_in_the_second_round_and_resumed_it_ends_the_same(
    whole: Front, given: Any, tmp_path: Path, runs: SimpleNamespace
) -> None:
    out = tmp_path / "run"
    words = [f"model={given.model}", f"data={given.text}", f"out={out}", "search=auto", "tokens=6000"]
    line = [*words, "constraints={params: 0.6x}", *given.line(out)[5:-2], *SETTINGS]
    assert killed_without_ladders(runs, line, whole, 0.8) == 1
