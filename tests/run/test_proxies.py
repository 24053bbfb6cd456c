"""proxies.md: ranked on what the search evaluated, the parameter count beside every proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from torch import Tensor

from autoprune.evaluation import Context, Failure, Scores
from autoprune.objective import Fidelity, Objective, Split
from autoprune.progress import Progress
from autoprune.run import proxies
from autoprune.space import Candidate, Plan
from autoprune.supernet import Supernet


class Told:
    """A proxy; its figures are made up by `evaluate` below."""

    metrics = ("told",)
    needs: Literal["supernet"] = "supernet"

    def bind(self, context: Context) -> None:
        """Nothing to prepare."""

    def measure(self, supernet: Supernet, plans: Sequence[Plan], ids: Tensor) -> list[Mapping[str, Tensor]]:
        raise NotImplementedError


def frame(count: int) -> pd.DataFrame:
    """A search of which `count` plans were seen on 8 windows, each twice; others on fewer windows or other ladders."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for at in range(count):
        kl = float(rng.uniform())
        row = {"key": f"k{at}", "candidate": Candidate((at,)).to_json(), "split": "fitness", "status": "ok"}
        row |= {
            "phase": 0,
            "start": 0,
            "stop": 8,
            "kl": kl,
            "params": 100.0 - 60 * kl + float(rng.uniform(0, 40)),
        }
        rows += [row, row, {**row, "stop": 4, "kl": 9.0}]
    rows += [{**rows[0], "key": "failed", "status": "failed", "kl": None}]
    rows += [{**rows[0], "key": f"rebuilt{at}", "phase": 7, "stop": 9} for at in range(count)]
    return pd.DataFrame([*rows, {**rows[0], "key": "elsewhere", "start": 8, "stop": 16}])


def run(folder: Path, rows: pd.DataFrame, value: Any, *evaluators: Any) -> tuple[Any, Any, list[Any]]:
    """A run whose proxies give `value(kl)`."""
    asked: list[Any] = []
    kls = dict.fromkeys(rows["candidate"])
    kls = {c: float(rows[(rows["candidate"] == c) & (rows["stop"] == 8)]["kl"].iloc[0]) for c in kls}

    def evaluate(plans: Sequence[str], fidelity: Fidelity) -> list[Scores | Failure]:
        asked.append((list(plans), fidelity))
        return [Failure("broken") if p == "[1]" else Scores({"told": value(kls[p])}, {}) for p in plans]

    def evaluation(chosen: Sequence[Any], only: Split) -> Any:
        assert [type(e) for e in chosen] == [Told] and only is Split.FITNESS
        return SimpleNamespace(evaluate=evaluate)

    parts = SimpleNamespace(evaluators=evaluators, evaluation=evaluation)
    space = SimpleNamespace(decode=lambda candidate: candidate.to_json())
    made = SimpleNamespace(
        parts=parts, space=space, path=folder, cfg=SimpleNamespace(sequences=2), progress=Progress(quiet=True)
    )
    made.objectives = (Objective("kl"), Objective("params"))
    rebuilt = [{"number": 7, "ladders": "others"}]
    return made, SimpleNamespace(to_frame=lambda: rows, events=lambda kind: rebuilt), asked


def test_the_table(tmp_path: Path) -> None:
    made, ledger, asked = run(tmp_path, frame(20), lambda kl: kl**2, object(), Told())
    told = proxies.write_proxies(made, ledger)
    assert told is not None and told.startswith("1 of 1 proxies (told) rank this search's plans better than")
    (plans, fidelity), *rest = asked
    assert not rest and len(plans) == len(set(plans)) == 20 and fidelity == Fidelity(Split.FITNESS, (0, 2))
    text = (tmp_path / proxies.FILE).read_text()
    assert "ranks 19 plans of this search by kl on 8 fitness windows" in text  # one of them failed
    lines = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if "|" in line}
    assert lines["told"][0].split()[0] == "-1.00" and lines["told"][3].strip() == "better than counting"
    assert lines["params"][3].strip() == "baseline" and 0.2 < float(lines["params"][2]) < 1
    assert lines["told"][2] == lines["params"][2]


def test_a_constant_proxy_is_told(tmp_path: Path) -> None:
    made, ledger, _ = run(tmp_path, frame(20), lambda kl: 1.0, Told())
    told = proxies.write_proxies(made, ledger)
    assert told is not None and told.startswith("0 of 1 proxies rank")
    assert "| told | constant | – |" in (tmp_path / proxies.FILE).read_text()
    assert "ranks nothing" in (tmp_path / proxies.FILE).read_text()


@pytest.mark.parametrize(("count", "evaluators"), [(3, [Told()]), (20, [object()]), (20, [])])
def test_nothing_to_rank(tmp_path: Path, count: int, evaluators: list[Any]) -> None:
    made, ledger, asked = run(tmp_path, frame(count), float, *evaluators)
    assert proxies.write_proxies(made, ledger) is None and not asked
    assert not (tmp_path / proxies.FILE).exists()


def test_a_long_search_is_sampled_evenly() -> None:
    rows = frame(500)
    found = proxies.sample(rows[rows["phase"] == 0], "kl")
    numbers = [int(key[1:]) for key in found["key"]]
    assert len(numbers) == proxies.PLANS and numbers[0] == 0 and numbers[-1] == 499
    assert max(np.diff(numbers)) <= 9 and set(found["stop"]) == {8} and set(found["start"]) == {0}
    assert not len(proxies.sample(rows, "nll")) and not len(proxies.sample(pd.DataFrame(), "kl"))
