"""Tasks as fitness: items apart from those of the report, packed as windows, scored as lm-eval scores them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.api import run_config
from autoprune.cache import Cache
from autoprune.config import compose
from autoprune.errors import DataError, SettingError
from autoprune.evaluation import Context
from autoprune.front import Front
from autoprune.ledger import FILE, Ledger
from autoprune.models.llama import LlamaAdapter
from autoprune.objective import Split
from autoprune.run import parts
from autoprune.space import Plan
from autoprune.supernet import Supernet
from tests import tiny
from tests.prefixes import Prefixes

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")

DENSE, SMALL = Plan.of([(2, 48)] * 3), Plan.of([(1, 8), (2, 0), (2, 30)])
ITEMS, PAIRS = 60, 50
LIMIT, COUNT = 16, 12
WINDOW = 192


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The example tasks of the documentation with items; every fifth question stands there twice."""
    path = tmp_path_factory.mktemp("tasks")
    for example in (root / "docs" / "tasks").glob("*.yaml"):
        (path / example.name).write_text(example.read_text())
    rng, words = np.random.default_rng(0), tiny.text(8000).split()

    def pick(count: int) -> str:
        return " ".join(rng.choice(words, count))

    questions = [
        {"query": pick(5), "choices": [pick(k + 1) for k in range(3)], "gold": int(i % 3 == 0)}
        for i in range(ITEMS)
    ]
    pairs = [{"sentence_good": pick(4), "sentence_bad": pick(4)} for _ in range(PAIRS)]
    for name, rows in (("questions", [*questions, *questions[::5]]), ("minimal_pairs", pairs)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tasks(folder: Path, tmp_path: Path, **settings: Any) -> Any:
    from evaluators.tasks import Tasks

    given = {"limit": LIMIT, "fitness": COUNT, "rows": 7, "include": str(folder), **settings}
    return Tasks(["questions", "minimal_pairs"], **given)


def bound(evaluator: Any, tmp_path: Path) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = "!"
    evaluator.bind(Context(lambda x: x, Cache(tmp_path / "c"), "d", tokenizer, longest=256, window=WINDOW))
    return evaluator


@pytest.fixture(scope="module")
def net() -> Supernet:
    adapter = LlamaAdapter(tiny.llama(noise=0.3))
    return Supernet(adapter, Prefixes(adapter))


def documents(evaluator: Any, split: Split) -> list[tuple[str, str]]:
    harness = evaluator._harness[split]
    return [(n, repr(harness._documents[n][i])) for n, i in harness.items]


def test_no_item_is_in_two_splits(folder: Path, tmp_path: Path) -> None:
    whole = tasks(folder, tmp_path)
    searched, final = bound(whole.searched(), tmp_path), bound(whole, tmp_path)
    test = {(n, repr(final._harness._documents[n][i])) for n, i in final._harness.items}
    fitness, selection = (documents(searched, s) for s in (Split.FITNESS, Split.SELECTION))
    assert len(fitness) == len(set(fitness)) == len(selection) == 2 * COUNT and len(test) > LIMIT
    assert not set(fitness) & set(selection) and not (set(fitness) | set(selection)) & test
    rights = [i.right for i in searched._harness[Split.FITNESS].items.values() if i.task == "questions"]
    assert rights.count(1) == COUNT // 3, "labels keep their shares"


def test_scores_are_lm_eval_s_own_item_by_item(folder: Path, tmp_path: Path, net: Supernet) -> None:
    searched = bound(tasks(folder, tmp_path).searched(), tmp_path)
    harness, packs = searched._harness[Split.FITNESS], searched._packs[Split.FITNESS]
    assert sum(map(len, packs)) == 2 * COUNT and len(packs) > 3
    for plan in (DENSE, SMALL):
        numbers = range(len(harness.requests))
        (answers,) = searched._answers(net, [plan], harness, numbers)
        report = harness.score([answers[n] for n in numbers])
        correct = dict[tuple[str, int], float]()
        for name in ("questions", "minimal_pairs"):
            own = sorted(at for at in harness.items if at[0] == name)
            correct |= dict(zip(own, report.items[f"{name}_acc"], strict=True))
        (found,) = searched.answer(net, [plan], Split.FITNESS, (0, len(packs)))
        wanted = [1 - np.mean([correct[i.task, i.index] for i in pack]) for pack in packs]
        assert found["task_error"].tolist() == pytest.approx(wanted)
        losses = []
        for item in packs[0]:
            values = np.array([answers[n][0] for n in item.requests])
            losses.append(np.log(np.exp(values - values[item.right]).sum()))
        assert float(found["task_loss"][0]) == pytest.approx(np.mean(losses))


def test_windows_are_the_same_packs_for_all_plans_and_come_round(
    folder: Path, tmp_path: Path, net: Supernet
) -> None:
    searched = bound(tasks(folder, tmp_path).searched(), tmp_path)
    count = searched.packs(Split.FITNESS)
    both = searched.answer(net, [DENSE, SMALL], Split.FITNESS, (0, count + 2))
    alone = searched.answer(net, [SMALL], Split.FITNESS, (1, 3))[0]["task_loss"]
    assert np.allclose(both[1]["task_loss"][1:3], alone)
    assert np.allclose(both[1]["task_loss"][:2], both[1]["task_loss"][count:])
    assert not np.allclose(both[0]["task_loss"], both[1]["task_loss"])
    other = searched.answer(net, [SMALL], Split.SELECTION, (1, 3))[0]["task_loss"]
    assert not np.allclose(other, alone)
    assert searched.answer(net, [SMALL], Split.TEST, (0, 2)) == [{}], "no item of test"
    harness = searched._harness[Split.FITNESS]
    sizes = [
        sum(len(harness.requests[n].tokens) for item in pack for n in item.requests)
        for pack in searched._packs[Split.FITNESS]
    ]
    assert WINDOW * 0.8 < np.mean(sizes) < WINDOW * 1.7, "a pack has about the tokens of a window"


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="evaluator.tasks.fitness=12 needs a limit"):
        tasks(folder, tmp_path, limit=None)
    with pytest.raises(SettingError, match="evaluator.tasks.fitness=0 must be at least 1"):
        tasks(folder, tmp_path, fitness=0)
    with pytest.raises(DataError, match=r"fitness=30: questions has \d+ different items beside the 16 of"):
        bound(tasks(folder, tmp_path, fitness=30).searched(), tmp_path)
    assert tasks(folder, tmp_path, fitness=None).searched() is None


def test_a_search_goes_by_them_and_builds_no_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(tiny.text(40_000))
    tiny.save(tiny.llama(blocks=2, noise=0.3), tmp_path / "model")
    words = [f"model={tmp_path / 'model'}", f"data={tmp_path / 'text.txt'}", "window=64", "sequences=4"]
    words += ["calibration.tokens=512", "latency.mode=off", "quiet=true", "tokens=6000", "search=evopress"]
    words += ["search.offspring=4", "search.survivors=[2,1]", "search.windows=[2,4]"]
    words += [
        "selection_windows=4",
        "test_windows=4",
        "finalists=4",
        "uniform=[0.6]",
        f"out={tmp_path / 'run'}",
    ]
    words += ["evaluator=[divergence,tasks]", "evaluator.tasks.tasks=[questions]"]
    words += [f"evaluator.tasks.include={folder}", f"evaluator.tasks.limit={LIMIT}"]
    with pytest.raises(SettingError, match="With evaluator.tasks.fitness=N a search may go by task_loss"):
        run_config(compose([*words, "objectives=[tasks_mean,params]"]), "autoprune")
    words += [
        f"evaluator.tasks.fitness={COUNT}",
        "objectives=[task_loss,params]",
        "constraints={params: 0.6x}",
    ]
    build, built = parts.Parts.build, list[Plan]()

    def counted(self: Any, plan: Plan, *rest: Any) -> Any:
        built.append(plan)
        return build(self, plan, *rest)

    monkeypatch.setattr(parts.Parts, "build", counted)
    run_config(compose(words), "autoprune")
    rows = Front(tmp_path / "run").frame()
    assert (rows["name"] == "front").any() and rows["tasks_mean"].notna().all()
    ledger = Ledger.open(tmp_path / "run" / FILE)
    frame = ledger.to_frame()
    ledger.close()
    assert frame["task_loss"].gt(0).all() and "kl" not in frame and frame["task_loss"].nunique() > 4
    assert len(built) <= 1, "best/ alone"
