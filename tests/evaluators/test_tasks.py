"""Tasks of lm-eval on plans, built models and checkpoints: the same items, the same answers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.cache import Cache
from autoprune.errors import DataError, SettingError
from autoprune.evaluation import Context, Failure, Scores
from autoprune.forward import BuiltModel
from autoprune.models.llama import LlamaAdapter
from autoprune.space import Plan
from autoprune.supernet import Supernet
from tests import tiny
from tests.prefixes import Prefixes

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")

DENSE, SMALL = Plan.of([(2, 48)] * 3), Plan.of([(1, 8), (2, 0), (2, 30)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The example tasks of the documentation with items."""
    path = tmp_path_factory.mktemp("tasks")
    for example in (root / "docs" / "tasks").glob("*.yaml"):
        (path / example.name).write_text(example.read_text())
    rng = np.random.default_rng(0)
    words = tiny.text(8000).split()
    pick = lambda n: " ".join(rng.choice(words, n))  # noqa: E731
    questions = [
        {"query": pick(5), "choices": [pick(k + 1) for k in range(2 + i % 3)], "gold": 0 if i % 4 else 1}
        for i in range(40)
    ]
    pairs = [{"sentence_good": pick(4), "sentence_bad": pick(4)} for _ in range(12)]
    write(path / "questions.jsonl", questions)
    write(path / "minimal_pairs.jsonl", pairs)
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def context(tmp_path: Path, tokenizer: Any = None, longest: int = 256) -> Context:
    found = tokenizer or tiny.tokenizer()
    if tokenizer is None:
        found.bos_token = "!"
    return Context(lambda x: x, Cache(tmp_path / "c"), "d", found, longest=longest)


def tasks(folder: Path, tmp_path: Path, *names: str, **settings: Any) -> Any:
    from evaluators.tasks import Tasks

    found = Tasks(names or ("questions", "minimal_pairs"), include=str(folder), rows=7, **settings)
    found.bind(context(tmp_path))
    return found


@pytest.fixture(scope="module")
def net() -> Supernet:
    adapter = LlamaAdapter(tiny.llama(noise=0.3))
    return Supernet(adapter, Prefixes(adapter))


def alone(model: Any, prompt: str, continuation: str) -> float:
    """Log-likelihood of a continuation, token by token in fp64."""
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = "!"
    ahead = tokenizer.encode(prompt) if prompt else [tokenizer.bos_token_id]
    ids = ahead + tokenizer.encode(continuation)
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(found[t - 1, ids[t]]) for t in range(len(ahead), len(ids)))


def test_accuracies_are_those_of_a_direct_computation(folder: Path, tmp_path: Path, net: Supernet) -> None:
    (scores,) = tasks(folder, tmp_path, limit=None).evaluate(net, [DENSE])
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    hits, hits_norm = [], []
    for row in rows:
        values = [alone(net.adapter.model, row["query"], " " + c) for c in row["choices"]]
        lengths = [v / len(c) for v, c in zip(values, row["choices"], strict=True)]
        hits.append(int(np.argmax(values)) == row["gold"])
        hits_norm.append(int(np.argmax(lengths)) == row["gold"])
    pairs = [json.loads(line) for line in (folder / "minimal_pairs.jsonl").read_text().splitlines()]
    good = [
        alone(net.adapter.model, "", " " + p["sentence_good"])
        > alone(net.adapter.model, "", " " + p["sentence_bad"])
        for p in pairs
    ]
    assert isinstance(scores, Scores)
    assert scores.per_window["questions_acc"].tolist() == hits
    assert scores.metrics["questions_acc"] == pytest.approx(np.mean(hits))
    assert scores.metrics["questions_acc_norm"] == pytest.approx(np.mean(hits_norm))
    assert scores.metrics["minimal_pairs_acc"] == pytest.approx(np.mean(good))
    error = np.std(hits, ddof=1) / np.sqrt(len(hits))
    assert scores.metrics["questions_acc_stderr"] == pytest.approx(error)
    assert scores.metrics["tasks_mean"] == pytest.approx((np.mean(hits) + np.mean(good)) / 2)


def test_a_plan_its_model_and_its_checkpoint_answer_alike(
    folder: Path, tmp_path: Path, net: Supernet
) -> None:
    evaluator = tasks(folder, tmp_path)
    model = net.adapter.install(SMALL, net.ladders.weights, torch.float32)
    model.save_pretrained(tmp_path / "checkpoint")
    import autoprune

    runners = (net, BuiltModel(model), BuiltModel(autoprune.load(tmp_path / "checkpoint").float()))
    found = [evaluator.evaluate(r, [SMALL])[0] for r in runners]
    values = [evaluator.likelihoods(r, SMALL) for r in runners]
    assert found[0].metrics == found[1].metrics == found[2].metrics
    assert np.allclose(values[0], values[1], atol=1e-4) and np.allclose(values[0], values[2], atol=1e-4)
    assert not np.allclose(values[0], evaluator.likelihoods(net, DENSE), atol=1e-2)


def test_several_plans_in_one_pass_are_each_as_alone(folder: Path, tmp_path: Path, net: Supernet) -> None:
    evaluator, plans = tasks(folder, tmp_path), [SMALL, DENSE, Plan.of([(1, 8), (2, 0), (1, 4)])]
    together = evaluator.evaluate(net, plans)
    again = [evaluator.evaluate(net, [plan])[0] for plan in plans]
    assert [s.metrics for s in together] == [s.metrics for s in again]
    assert (
        len(
            {s.metrics["questions_acc"] for s in together}
            | {s.metrics["questions_acc_norm"] for s in together}
        )
        > 1
    )


def test_nothing_is_rendered_or_tokenised_twice(
    folder: Path, tmp_path: Path, net: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = tasks(folder, tmp_path)
    first = evaluator.evaluate(net, [SMALL])[0]
    from lm_eval import utils

    from evaluators.harness import _Reader

    def never(*args: Any, **settings: Any) -> Any:
        raise AssertionError("again")

    monkeypatch.setattr(_Reader, "tok_encode", never)
    monkeypatch.setattr(utils, "apply_template", never)
    assert evaluator.evaluate(net, [SMALL])[0].metrics == first.metrics


def test_the_sample_is_fixed_and_keeps_the_shares_of_labels(folder: Path, tmp_path: Path) -> None:
    some, again, other = (tasks(folder, tmp_path, "questions", limit=12, seed=s) for s in (0, 0, 1))
    indices = [e._harness._samples["questions"] for e in (some, again, other)]
    assert indices[0] == indices[1] != indices[2] and some.counts == {"questions": 12}
    for chosen in indices:
        assert sum(i % 4 == 0 for i in chosen) == 3  # a quarter has label 1


def test_long_items_lose_their_beginning(folder: Path, tmp_path: Path) -> None:
    from evaluators.tasks import Tasks

    evaluator = Tasks(["questions"], include=str(folder))
    evaluator.bind(context(tmp_path, longest=10))
    assert max(rows.inputs.shape[1] for rows in evaluator._rows) == 10
    assert all((rows.scored.sum(-1) >= 1).all() for rows in evaluator._rows)


def test_answers_that_are_not_finite_fail_their_plan_and_are_located(folder: Path, tmp_path: Path) -> None:
    model = tiny.llama()
    model.model.layers[1].mlp.down_proj.weight[0, 40] = float("nan")
    adapter = LlamaAdapter(model)
    found = tasks(folder, tmp_path).evaluate(Supernet(adapter, Prefixes(adapter)), [DENSE, SMALL])
    assert isinstance(found[1], Scores) and isinstance(found[0], Failure)
    assert found[0].reason == "log-likelihoods are not finite, from block 1 ffn on"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tasks": ["qestions"]}, r"'qestions' is unknown; did you mean 'questions'\?"),
        ({"tasks": []}, "name at least one task"),
        ({"include": "/nowhere"}, "include=/nowhere is not a folder"),
        ({"limit": 0}, "limit=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_be(folder: Path, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    from evaluators.tasks import Tasks

    with pytest.raises(SettingError, match=says) as caught:
        Tasks(**({"tasks": ["questions"], "include": str(folder)} | change)).bind(context(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (None, "the items of mine cannot be read"),
        ([], "mine has no items"),
        ([{"query": "a", "choices": ["b", "c"], "gold": 2}], "mine has a label beyond its choices"),
        (
            [{"query": "a", "choices": ["b", "c"], "gold": g} for g in (0, 3)],
            "item 1 of mine has the label 3; it has 2 choices",
        ),
    ],
)
def test_items_that_cannot_be_used(folder: Path, tmp_path: Path, rows: Any, says: str) -> None:
    text = (folder / "questions.yaml").read_text().replace("questions", "mine")
    (tmp_path / "mine.yaml").write_text(text)
    if rows is not None:
        write(tmp_path / "mine.jsonl", rows)
    with pytest.raises(DataError, match=says) as caught:
        tasks(tmp_path, tmp_path, "mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood_rolling"])
def test_tasks_that_are_not_scored_by_continuations_are_refused(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    """One of several is enough, and before any item is rendered."""
    text = (folder / "questions.yaml").read_text().replace("multiple_choice", kind)
    (folder / "told.yaml").write_text(text.replace("task: questions", "task: told"))
    with pytest.raises(SettingError) as caught:
        tasks(folder, tmp_path, "questions", "told")
    (folder / "told.yaml").unlink()
    says = f"evaluator.tasks.tasks: told is of type {kind}; allowed: loglikelihood, multiple_choice"
    assert str(caught.value) == says


def test_a_task_of_the_network_names_what_to_provide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far.yaml").write_text(
        "task: far\ndataset_path: somebody/far\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: "{{c}}"\ndoc_to_target: g\n'
    )
    with pytest.raises(DataError) as caught:
        tasks(tmp_path, tmp_path, "far")
    line = str(caught.value)
    assert "far takes its items from somebody/far, which cannot be reached" in line and "\n" not in line
    assert "dataset_path: json" in line and "evaluator.tasks.include" in line


@pytest.mark.skipif(find_spec("accelerate") is None, reason="lm-eval's own model needs accelerate")
def test_log_likelihoods_are_those_of_lm_evals_own_model(folder: Path, tmp_path: Path, net: Supernet) -> None:
    from lm_eval.models.huggingface import HFLM

    evaluator = tasks(folder, tmp_path)
    tokenizer = context(tmp_path).tokenizer
    theirs = HFLM(pretrained=net.adapter.model, tokenizer=tokenizer, batch_size=4, max_length=256)
    instances = [i for t in evaluator._harness._tasks.values() for i in t.instances]
    wanted = theirs.loglikelihood(instances, disable_tqdm=True)
    assert np.allclose(evaluator.likelihoods(net, DENSE), [v for v, _ in wanted], atol=1e-4)


@pytest.mark.real
def test_real_sets_on_a_plan_its_model_and_its_checkpoint(
    real_data: Path, root: Path, tmp_path: Path
) -> None:
    """Twelve paradigms of minimal pairs and three sets of questions, 10 items each."""
    from autoprune.models.load import load_model
    from evaluators.tasks import Tasks

    files = sorted((real_data / "blimp").glob("*.jsonl"))[:12]
    files += [real_data / "multiple-choice" / f"{n}.jsonl" for n in ("arc_easy", "copa", "openbook_qa")]
    for file in files:
        kind = "minimal_pairs" if file.parent.name == "blimp" else "questions"
        text = (root / "docs" / "tasks" / f"{kind}.yaml").read_text()
        text = text.replace(f"test: {kind}.jsonl", f"test: {file}").replace(
            f"task: {kind}", f"task: {file.stem}"
        )
        (tmp_path / f"{file.stem}.yaml").write_text(text)
    loaded = load_model(str(real_data / "hf-stories260K"))
    adapter = LlamaAdapter(loaded.model)
    net, shape = Supernet(adapter, Prefixes(adapter)), adapter.shape
    plan = Plan.of([(shape.kv_groups, 3 * shape.ffn // 4), (0, shape.ffn)] + [(2, 64)] * (shape.blocks - 2))
    evaluator = Tasks([f.stem for f in files], include=str(tmp_path), limit=10)
    evaluator.bind(context(tmp_path, loaded.tokenizer, 512))
    model = adapter.install(plan, net.ladders.weights, torch.float32)
    model.save_pretrained(tmp_path / "checkpoint")
    import autoprune

    runners = (net, BuiltModel(model), BuiltModel(autoprune.load(tmp_path / "checkpoint").float()))
    values = np.array([evaluator.likelihoods(r, plan) for r in runners])
    # long items sum to hundreds: float32 alone rounds those by more than 1e-4
    np.testing.assert_allclose(values[1:], np.stack([values[0]] * 2), rtol=1e-6, atol=1e-4)
    found = [evaluator.evaluate(r, [plan])[0].metrics for r in runners]
    accuracies = [
        {m: v for m, v in metrics.items() if m.endswith(("_acc", "_acc_norm"))} for metrics in found
    ]
    assert accuracies[0] == accuracies[1] == accuracies[2] and len(accuracies[0]) == 15 + 3
