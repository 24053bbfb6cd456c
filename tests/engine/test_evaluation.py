"""Batches of plans on windows: fixed groups, paired values, and failures that stay with their plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from autoprune.data import Corpus
from autoprune.errors import DataError, SettingError
from autoprune.evaluation import Batch, Context, Evaluation, Failure, Scores
from autoprune.objective import Fidelity, Split
from autoprune.space import Plan
from autoprune.supernet import Supernet
from evaluators.divergence import Divergence
from evaluators.perplexity import Perplexity
from tests import tiny

MakeContext = Callable[[Supernet], Context]
DENSE = Plan.of([(2, 48)] * 3)
SMALL = Plan.of([(1, 8)] * 3)


@dataclass
class Recorder:
    """An evaluator that writes down its batches and scores a sequence by its first token."""

    metrics: tuple[str, ...] = ("first",)
    needs: Literal["supernet"] = "supernet"
    bound: int = 0
    seen: list[tuple[Split, tuple[int, int], int]] = field(default_factory=list)

    def bind(self, context: Context) -> None:
        self.bound += 1

    def score(self, batch: Batch, logits: Tensor) -> Mapping[str, Tensor]:
        assert logits.shape == (*batch.ids.shape, tiny.VOCABULARY)
        self.seen.append((batch.split, batch.windows, len(batch.ids)))
        return {"first": batch.ids[:, 0].double()}


@pytest.fixture
def net(make: SimpleNamespace) -> Supernet:
    found: Supernet = make.supernet(tiny.llama())
    return found


def test_groups_are_counted_from_the_first_window_whatever_the_plans(
    net: Supernet, corpus: Corpus, context: MakeContext
) -> None:
    recorder = Recorder()
    evaluation = Evaluation(net, corpus, [recorder], context(net), 4)
    for plans in ([DENSE], [DENSE, SMALL]):
        recorder.seen.clear()
        evaluation.evaluate(plans, Fidelity(Split.SELECTION, (1, 11)))
        once = recorder.seen[:: len(plans)]
        assert [w for _, w, _ in once] == [(1, 5), (5, 9), (9, 11)]
        assert [n for _, _, n in once] == [4, 4, 2] and {s for s, _, _ in recorder.seen} == {Split.SELECTION}
    assert recorder.bound == 1


def test_values_are_those_of_the_windows_asked_for_and_average_to_the_metric(
    net: Supernet, corpus: Corpus, context: MakeContext
) -> None:
    evaluation = Evaluation(net, corpus, [Recorder(), Divergence(16), Perplexity()], context(net), 4)
    scores = evaluation.evaluate([DENSE, SMALL], Fidelity(Split.FITNESS, (2, 9)))
    firsts = corpus.windows(Split.FITNESS)[2:9, 0].astype(float)
    for score in scores:
        assert isinstance(score, Scores)
        assert score.per_window["first"].tolist() == firsts.tolist()
        for metric in ("first", "kl", "nll"):
            assert len(score.per_window[metric]) == 7
            assert score.metrics[metric] == pytest.approx(score.per_window[metric].mean(), rel=1e-12)
        assert score.metrics["perplexity"] == pytest.approx(np.exp(score.metrics["nll"]))


def test_scores_of_a_plan_do_not_depend_on_its_neighbours(
    net: Supernet, corpus: Corpus, context: MakeContext, make: SimpleNamespace
) -> None:
    evaluation = Evaluation(net, corpus, [Divergence(16), Perplexity()], context(net), 4)
    plans, fidelity = make.plans(9, 3), Fidelity(Split.FITNESS, (0, 6))
    together = evaluation.evaluate(plans, fidelity)
    backwards = evaluation.evaluate(plans[::-1], fidelity)[::-1]
    alone = [evaluation.evaluate([plan], fidelity)[0] for plan in plans]
    for scores in zip(together, backwards, alone, strict=True):
        hexed = [{m: float(v).hex() for m, v in s.metrics.items()} for s in scores]
        assert hexed[0] == hexed[1] == hexed[2]
        assert all((s.per_window["kl"] == scores[0].per_window["kl"]).all() for s in scores)


def test_growing_fidelities_keep_the_values_of_their_common_windows(
    net: Supernet, corpus: Corpus, context: MakeContext
) -> None:
    evaluation = Evaluation(net, corpus, [Perplexity()], context(net), 4)
    few = evaluation.evaluate([SMALL], Fidelity(Split.FITNESS, (0, 4)))[0]
    many = evaluation.evaluate([SMALL], Fidelity(Split.FITNESS, (0, 11)))[0]
    assert (many.per_window["nll"][:4] == few.per_window["nll"]).all()


def test_non_finite_weights_fail_their_plans_only_and_are_located(
    corpus: Corpus, context: MakeContext, make: SimpleNamespace
) -> None:
    model = tiny.llama()
    model.model.layers[2].mlp.down_proj.weight[3, 5] = float("nan")
    net = make.supernet(model)
    evaluation = Evaluation(net, corpus, [Perplexity()], context(net), 4)
    without = Plan.of([(2, 48), (2, 48), (2, 0)])
    before = Plan.of([(2, 48), (2, 48), (2, 5)])  # keeps neurons 0..4
    found = evaluation.evaluate([DENSE, without, before], Fidelity(Split.FITNESS, (1, 11)))
    assert isinstance(found[0], Failure)
    assert found[0].reason == f"plan {DENSE.key}: nll is not finite on windows 1..5, from block 2 ffn on"
    assert all(isinstance(s, Scores) and np.isfinite(s.per_window["nll"]).all() for s in found[1:])


def test_a_failed_plan_is_not_run_again_on_later_windows(
    corpus: Corpus, context: MakeContext, make: SimpleNamespace
) -> None:
    model = tiny.llama()
    model.model.layers[0].mlp.down_proj.weight[:] = float("nan")
    net = make.supernet(model)
    Evaluation(net, corpus, [Perplexity()], context(net), 4).evaluate(
        [DENSE], Fidelity(Split.FITNESS, (0, 11))
    )
    assert net.telemetry.naive_runs == 6


def test_more_windows_than_there_are_is_an_error(net: Supernet, corpus: Corpus, context: MakeContext) -> None:
    evaluation = Evaluation(net, corpus, [Perplexity()], context(net), 4)
    with pytest.raises(DataError, match="split test has 11 windows, 12 were asked for"):
        evaluation.evaluate([DENSE], Fidelity(Split.TEST, (0, 12)))


@pytest.mark.parametrize("split", [Split.SELECTION, Split.TEST])
def test_a_searchs_evaluation_serves_no_held_out_windows(
    net: Supernet, corpus: Corpus, context: MakeContext, split: Split
) -> None:
    recorder = Recorder()
    evaluation = Evaluation(net, corpus, [recorder], context(net), 4, only=Split.FITNESS)
    evaluation.evaluate([DENSE], Fidelity(Split.FITNESS, (0, 4)))
    with pytest.raises(SettingError, match=f"windows of split {split.value} were asked of a search"):
        evaluation.evaluate([DENSE], Fidelity(split, (0, 4)))
    assert {s for s, _, _ in recorder.seen} == {Split.FITNESS}


def test_logits_are_the_models_own(net: Supernet, corpus: Corpus, context: MakeContext) -> None:
    """What evaluators are shown for the dense plan is what the stock model computes."""
    shown: list[Any] = []

    class Keeper(Recorder):
        def score(self, batch: Batch, logits: Tensor) -> Mapping[str, Tensor]:
            shown.append((batch.ids, logits.clone()))
            return super().score(batch, logits)

    Evaluation(net, corpus, [Keeper()], context(net), 4).evaluate([DENSE], Fidelity(Split.TEST, (0, 6)))
    for ids, found in shown:
        with torch.inference_mode():
            wanted = net.adapter.model(input_ids=ids, use_cache=False).logits
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
