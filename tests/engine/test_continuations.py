"""An evaluation scores what follows a prompt, of plans whose KV caches are cut, and of a built model alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autoprune.data import Corpus
from autoprune.evaluation import Context, Evaluation, Scores
from autoprune.objective import Fidelity, Split
from autoprune.recovery.scoring import Scoring
from autoprune.space import Plan
from autoprune.supernet import Supernet
from evaluators.divergence import Divergence
from evaluators.perplexity import Perplexity
from tests import tiny
from tests.caching import cut_plan, masked

PROMPT = 5
ALL = Fidelity(Split.FITNESS, (0, 6))
CUT = {"kv_budget": 4, "kv_sink": 1, "kv_full": 12}
MakeContext = Callable[[Supernet], Context]


@pytest.fixture
def net(make: SimpleNamespace) -> Any:
    return make.supernet(tiny.llama(noise=0.3))


def scores(net: Supernet, corpus: Corpus, context: MakeContext, plan: Plan, prompt: int | None) -> Scores:
    net.adapter.prompt_len = prompt
    known = replace(context(net), prompt_len=prompt)
    found = Evaluation(net, corpus, [Divergence(), Perplexity()], known, 4).evaluate([plan], ALL)[0]
    assert isinstance(found, Scores)
    return found


def test_the_teacher_is_the_dense_model_at_the_same_positions(
    net: Any, corpus: Corpus, context: MakeContext
) -> None:
    plan = cut_plan(net.adapter.shape, CUT)
    ids = torch.from_numpy(corpus.windows(Split.FITNESS)[:6].astype("int64"))
    logits, dense = masked(net.adapter, plan, ids, PROMPT), masked(net.adapter, plan, ids, None)
    p, q = dense.double().log_softmax(-1), logits.double().log_softmax(-1)
    by_hand = (p.exp() * (p - q)).sum(-1)[:, PROMPT:].mean(-1)
    found = scores(net, corpus, context, plan, PROMPT)
    assert found.per_window["kl"].tolist() == pytest.approx(by_hand.tolist(), rel=1e-2)
    assert found.metrics["kl"] > 1e-3


def test_without_a_prompt_nothing_is_cut_and_everything_scored(
    net: Any, corpus: Corpus, context: MakeContext
) -> None:
    plan, dense = cut_plan(net.adapter.shape, CUT), cut_plan(net.adapter.shape, {})
    whole = scores(net, corpus, context, dense, None)
    assert scores(net, corpus, context, plan, None).metrics == whole.metrics
    assert scores(net, corpus, context, dense, PROMPT).metrics["nll"] != whole.metrics["nll"]
    assert abs(scores(net, corpus, context, dense, PROMPT).metrics["kl"]) < 1e-5


def test_a_built_model_is_scored_with_its_own_cache(net: Any, corpus: Corpus, context: MakeContext) -> None:
    plan = cut_plan(net.adapter.shape, CUT)
    expected = scores(net, corpus, context, plan, PROMPT).metrics
    evaluators: list[Any] = [Divergence(), Perplexity()]
    for evaluator in evaluators:
        evaluator.bind(context(net))
    model = net.adapter.install(plan, lambda b, s: net.adapter.weights(b, s.kind), torch.float32)
    found = Scoring(corpus, evaluators, 4, PROMPT).score(model, ALL)
    assert found == pytest.approx(dict(expected), rel=1e-4)
    plain = Scoring(corpus, evaluators, 4).score(model, ALL)
    assert abs(plain["kl"]) < 1e-5  # without a cache nothing is cut
