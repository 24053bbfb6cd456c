"""Greedy decoding with the cache against decoding without; exact match and needles where the answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autoprune.cache import Cache
from autoprune.data import Corpus
from autoprune.errors import DataError, SettingError
from autoprune.evaluation import Context, Failure, FinalEvaluator, Scores
from autoprune.forward import BuiltModel
from autoprune.models.llama import LlamaAdapter
from autoprune.report.paired import by_task
from autoprune.space import Plan
from evaluators.decoding import greedy
from evaluators.exact_match import ExactMatch
from evaluators.needle import Needle
from tests import tiny

PLAN = Plan.of([(2, 48), (1, 8), (0, 24)])


def built(noise: float = 0.3) -> Any:
    """A pruned model with random weights."""
    adapter = LlamaAdapter(tiny.llama(noise=noise))

    def weights(block: int, sublayer: Any) -> Any:
        count = int(sublayer.get(adapter.unit_setting(sublayer.kind)))
        return adapter.units(sublayer.kind).prefix(adapter.weights(block, sublayer.kind), count)

    return adapter.install(PLAN, weights, torch.float32)


class Copier:
    """What it read last comes again as it went on before: the ideal finder of needles. It counts what it is given."""

    device = torch.device("cpu")

    def __init__(self, reach: int = 4) -> None:
        self.reach, self.given = reach, list[int]()

    def __call__(self, input_ids: Tensor, past_key_values: Any, use_cache: bool) -> Any:
        assert use_cache
        self.given.append(input_ids.shape[1])
        seen = input_ids if past_key_values is None else torch.cat([past_key_values, input_ids], 1)
        logits = torch.zeros(*input_ids.shape, tiny.VOCABULARY)
        for row, out in zip(seen.tolist(), logits[:, -1], strict=True):
            cue = row[-self.reach :]
            places = (i for i in range(len(row) - self.reach) if row[i : i + self.reach] == cue)
            at = next(places, None)
            out[0 if at is None else row[at + self.reach]] = 1.0
        return SimpleNamespace(logits=logits, past_key_values=seen)


def context(folder: Path, longest: int = 256) -> Context:
    """Test text of 480 random tokens, and a tokenizer of bytes."""
    np.save(folder / "test.npy", tiny.token_ids((40, 12)).numpy().astype(np.int32))
    corpus = Corpus(folder, "corpus")
    return Context(lambda x: x, Cache(folder / "c"), "d", tiny.tokenizer(), corpus, longest=longest)


@pytest.mark.parametrize("rows", [1, 3])
def test_cached_decoding_is_uncached_argmax(rows: int) -> None:
    model, ids = built(), tiny.token_ids((rows, 9))
    wanted = ids
    with torch.inference_mode():
        for _ in range(8):
            logits = model(input_ids=wanted, use_cache=False).logits
            wanted = torch.cat([wanted, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(greedy(model, ids, 8), wanted[:, 9:])
    assert len(set(wanted[0, 9:].tolist())) > 2, "the model says one thing only: the test is blind"


def test_only_new_tokens_are_read_again() -> None:
    copier = Copier()
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]])
    assert greedy(copier, ids, 3).tolist() == [[5, 6, 7]] and copier.given == [11, 1, 1]
    assert greedy(copier, ids, 3, {6}).tolist() == [[5, 6]]
    both = torch.cat([ids, ids.flip(1)])
    assert greedy(Copier(), both, 4, {5})[1].tolist() == [7, 6, 5]  # the other ended at once


def file_of(folder: Path, *items: Any) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(i if isinstance(i, str) else json.dumps(i) for i in items), encoding="utf-8")
    return str(path)


def item(prompt: str, answer: str) -> dict[str, str]:
    return {"prompt": prompt, "answer": answer}


def scored(evaluator: Any, model: Any, context: Context) -> Scores:
    assert isinstance(evaluator, FinalEvaluator) and evaluator.needs == "model"
    evaluator.bind(context)
    (found,) = evaluator.evaluate(BuiltModel(model), [PLAN])
    assert isinstance(found, Scores)
    return found


def test_answers_that_are_written_count(tmp_path: Path) -> None:
    song = "big red dog\nbig "  # which the copier goes on with as it went on before
    file = file_of(
        tmp_path,
        item(song, " red dog "),
        item(song, "red do"),
        "",
        item("oh " + song, "red dog"),
        item("xyz", "q"),
    )
    evaluator = ExactMatch(file, tokens=12, rows=2)
    found = scored(evaluator, Copier(), context(tmp_path))
    assert found.per_window["exact_match_acc"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert found.metrics["exact_match_acc"] == 0.5
    assert evaluator.price() == sum(n + 12 for n in (16, 16, 19, 3))
    assert by_task(found.per_window, found.per_window)["exact_match"].mean == 0.0  # type: ignore[arg-type]
    assert evaluator.write(Copier())[2] == "red dog"
    short = ExactMatch(file, tokens=12, first_line=False, limit=1)
    assert scored(short, Copier(), context(tmp_path)).per_window["exact_match_acc"].tolist() == [0.0]


def test_what_a_pruned_model_writes_is_its_own_generation(tmp_path: Path) -> None:
    model, prompts = built(), ["def f(x):", "import os"]
    ids = [tiny.tokenizer()(p, return_tensors="pt")["input_ids"] for p in prompts]
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    out = [model.generate(i, **settings)[0, i.shape[1] :] for i in ids]
    texts = [tiny.tokenizer().decode(o).lstrip(" ").partition("\n")[0].strip() for o in out]
    evaluator = ExactMatch(file_of(tmp_path, *(item(p, "-") for p in prompts)), tokens=6)
    evaluator.bind(context(tmp_path))
    assert evaluator.write(model) == texts and any(texts)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "prompts.jsonl has no prompts"),
        (['{"prompt": "a"}'], "prompts.jsonl line 1 has no text 'answer'; wanted"),
        (['{"prompt": "a", "answer": 3}'], "line 1 has no text 'answer'"),
        (['{"prompt": "a", "answer": "b"}', '{"prompt": "a", "answer": " "}'], "line 2: the answer is empty"),
        (["[]"], "line 1 has no text 'prompt'"),
        (["{"], "line 1 is not JSON"),
        (
            [json.dumps(item("a" * 250, "b"))],
            "line 1: 250 tokens and the 32 of evaluator.exact_match.tokens are more",
        ),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ExactMatch(file_of(tmp_path, *lines)).bind(context(tmp_path))
    assert "\n" not in str(caught.value)


def test_settings_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="exact_match.file=.*absent.jsonl does not exist; give a file of JSON lines"
    ):
        ExactMatch(str(tmp_path / "absent.jsonl")).bind(context(tmp_path))
    with pytest.raises(SettingError, match="exact_match.file=null: name a file"):
        ExactMatch()
    with pytest.raises(SettingError, match="exact_match.tokens=0 must be at least 1"):
        ExactMatch("x", tokens=0)
    with pytest.raises(SettingError, match=r"needle.lengths=\[10\] must each be at least 11"):
        Needle(lengths=[10])
    with pytest.raises(SettingError, match=r"needle.depths=\[1.5\] must each be from 0 to 1"):
        Needle(depths=[1.5])
    with pytest.raises(SettingError, match="255 tokens and 2 of the answer are more than the 256"):
        Needle(lengths=[255]).bind(context(tmp_path))
    with pytest.raises(DataError, match="split test has 480 tokens; give more text"):
        Needle(lengths=[481]).bind(context(tmp_path, longest=999))


def test_a_finder_finds_every_needle(tmp_path: Path) -> None:
    made = [Needle(lengths=[40, 80], depths=[0.0, 0.5, 1.0], items=4, rows=3) for _ in range(2)]
    found = scored(made[0], Copier(), context(tmp_path))
    assert found.metrics["needle_acc"] == 1.0 and found.metrics["needle_guess_acc"] == 0.0
    assert set(made[0].metrics) == set(found.metrics) and found.metrics["needle_80_50"] == 1.0
    assert len(found.per_window["needle_acc"]) == 24 and made[0].price() == 2 * 12 * (42 + 82)
    made[1].bind(context(tmp_path))
    assert all(torch.equal(a.prompts, b.prompts) for a, b in zip(made[0]._cells, made[1]._cells, strict=True))


def test_needles_stand_where_they_should(tmp_path: Path) -> None:
    evaluator = Needle(lengths=[60], depths=[0.0, 0.25, 1.0], items=5, cue=3, answer=2, seed=3)
    evaluator.bind(context(tmp_path))
    text = context(tmp_path).corpus.text  # type: ignore[union-attr]
    running = text(evaluator.split).tolist()
    for cell, place in zip(evaluator._cells, (0, 13, 52), strict=True):  # of 52 tokens of hay
        assert cell.prompts.shape == (5, 60) and cell.answers.shape == (5, 2)
        for prompt, answer in zip(cell.prompts.tolist(), cell.answers.tolist(), strict=True):
            assert prompt[place : place + 5] == prompt[-3:] + answer
            hay = prompt[:place] + prompt[place + 5 : -3]
            assert any(running[i : i + 52] == hay for i in range(len(running) - 51))
    other = Needle(lengths=[60], depths=[0.0, 0.25, 1.0], items=5, cue=3, answer=2, seed=4)
    other.bind(context(tmp_path))
    assert not torch.equal(other._cells[0].prompts, evaluator._cells[0].prompts)


def test_a_model_that_looks_elsewhere_finds_none(tmp_path: Path) -> None:
    found = scored(Needle(lengths=[40], items=4), built(), context(tmp_path))
    assert found.metrics["needle_acc"] < 0.5


def test_logits_that_are_not_finite_fail(tmp_path: Path) -> None:
    model = built()
    model.model.norm.weight.data[0] = float("nan")
    needle, exact = Needle(lengths=[20], items=2), ExactMatch(file_of(tmp_path, item("a", "b")))
    for evaluator in (needle, exact):
        evaluator.bind(context(tmp_path))
        (found,) = evaluator.evaluate(BuiltModel(model), [PLAN])
        assert isinstance(found, Failure) and found.reason == "logits are not finite at generated token 0"
